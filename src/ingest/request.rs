//! An order request, parsed from JSON.

use axum::http::StatusCode;
use serde::de::DeserializeSeed;

use super::{
    json::{
        AdjustmentsDraft, AdjustmentsSeed, FieldErrors, HoldSeed, OrderDraft, OrderForm, OrderSeed,
    },
    problem::Problem,
};
use crate::domain::{Lines, OrderId, adjustment::AdjustmentRequest};

/// The most bytes of a request's body: 1 MiB.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;

/// A valid order as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderRequest {
    pub(crate) reference: Option<String>,
    pub(crate) customer_id: Option<String>,
    /// How long the order holds its stock, unless it is confirmed.
    pub(crate) hold_seconds: Option<u32>,
    pub(crate) lines: Lines,
}

/// A valid order of a batch. It has an id or a key, or none of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchOrder {
    pub(crate) order_id: Option<OrderId>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) request: OrderRequest,
}

impl BatchOrder {
    /// Fails as [`OrderRequest::parse`] does.
    pub(crate) fn parse(line: &[u8], hold_max_seconds: u32) -> Result<Self, Problem> {
        let (draft, request) = read_order(line, hold_max_seconds, OrderForm::OfBatch)?;
        let OrderDraft { order_id, idempotency_key, .. } = draft;
        Ok(Self { order_id, idempotency_key, request })
    }
}

impl OrderRequest {
    /// `hold_max_seconds`: the longest hold that is valid.
    ///
    /// Fails with a 400 if the body is not JSON. Fails with a 422 if it is JSON but not a valid
    /// order; the 422 names the wrong fields, 20 at most.
    pub(crate) fn parse(body: &[u8], hold_max_seconds: u32) -> Result<Self, Problem> {
        Ok(read_order(body, hold_max_seconds, OrderForm::Single)?.1)
    }
}

/// A valid order of a record of the intake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordOrder {
    pub(super) order_id: Option<OrderId>,
    pub(super) request: OrderRequest,
}

impl RecordOrder {
    /// Fails as [`OrderRequest::parse`] does.
    pub(super) fn parse(text: &[u8], hold_max_seconds: u32) -> Result<Self, Problem> {
        let (draft, request) = read_order(text, hold_max_seconds, OrderForm::OfIntake)?;
        Ok(Self { order_id: draft.order_id, request })
    }
}

/// Reads an order, whose fields are moved out of the draft. Fails as [`OrderRequest::parse`] does.
fn read_order(
    text: &[u8],
    hold_max_seconds: u32,
    form: OrderForm,
) -> Result<(OrderDraft, OrderRequest), Problem> {
    let errors = FieldErrors::default();
    let seed = OrderSeed { errors: &errors, form, hold_max_seconds };
    let mut draft = read_json(text, seed, &errors)?;
    match (errors.into_inner().as_slice(), Lines::new(std::mem::take(&mut draft.lines))) {
        ([], Ok(lines)) => {
            let request = OrderRequest {
                reference: draft.reference.take(),
                customer_id: draft.customer_id.take(),
                hold_seconds: draft.hold_seconds,
                lines,
            };
            Ok((draft, request))
        }
        (errors, _) => Err(Problem::invalid(errors)),
    }
}

/// A valid request to extend a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExtendRequest {
    pub(super) hold_seconds: u32,
}

impl ExtendRequest {
    /// `hold_max_seconds`: the longest hold that is valid.
    ///
    /// Fails with a 400 if the body is not JSON, and with a 422 if it is not a valid request.
    pub(super) fn parse(body: &[u8], hold_max_seconds: u32) -> Result<Self, Problem> {
        let errors = FieldErrors::default();
        let hold_seconds =
            read_json(body, HoldSeed { errors: &errors, hold_max_seconds }, &errors)?;
        match (errors.into_inner().as_slice(), hold_seconds) {
            ([], Some(hold_seconds)) => Ok(Self { hold_seconds }),
            (errors, _) => Err(Problem::invalid(errors)),
        }
    }
}

impl AdjustmentRequest {
    /// Fails with a 400 if the body is not JSON. Fails with a 422 if it is not a valid request.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let errors = FieldErrors::default();
        let AdjustmentsDraft { request_id, adjustments } =
            read_json(body, AdjustmentsSeed { errors: &errors }, &errors)?;
        match (errors.into_inner().as_slice(), Self::new(request_id, adjustments)) {
            ([], Ok(request)) => Ok(request),
            (errors, _) => Err(Problem::invalid(errors)),
        }
    }
}

/// Reads a body by a seed that adds what is wrong to `errors`.
///
/// Fails with a 400 if the body is not JSON, unless there are [`FieldErrors::are_enough`] before.
fn read_json<'de, T: Default>(
    body: &'de [u8],
    seed: impl DeserializeSeed<'de, Value = T>,
    errors: &FieldErrors,
) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    match seed.deserialize(&mut json).and_then(|draft| json.end().map(|()| draft)) {
        Err(error) if !errors.are_enough() => {
            Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))
        }
        read => Ok(read.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD_MAX_SECONDS: u32 = 86_400;

    fn parse(body: &[u8]) -> Result<OrderRequest, Problem> {
        OrderRequest::parse(body, HOLD_MAX_SECONDS)
    }

    /// The pointers to the fields that the answer to `body` names as wrong.
    fn wrong_fields(body: &str) -> Vec<String> {
        pointers(&parse(body.as_bytes()).unwrap_err())
    }

    fn pointers(problem: &Problem) -> Vec<String> {
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY);
        problem.body()["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn an_order_is_read_with_the_fields_of_the_caller() {
        let line = r#"{"product_id":"a","quantity":1000000}"#;
        let body = format!(r#"{{"reference":"r","customer_id":null,"lines":[{line}]}}"#);

        let order = parse(body.as_bytes()).unwrap();

        assert_eq!((order.reference.as_deref(), order.customer_id), (Some("r"), None));
        assert_eq!(order.lines.as_slice()[0].quantity(), 1_000_000);
    }

    #[test]
    fn a_number_without_a_fraction_is_whole_however_it_is_written() {
        for quantity in ["2", "2.0", "2e0", "0.2e1"] {
            let body = format!(r#"{{"lines":[{{"product_id":"a","quantity":{quantity}}}]}}"#);

            let order = parse(body.as_bytes()).unwrap();

            assert_eq!(order.lines.as_slice()[0].quantity(), 2, "{quantity}");
        }
    }

    #[test]
    fn a_hold_lasts_whole_seconds_up_to_the_longest() {
        let line = r#"{"product_id":"a","quantity":1}"#;
        let body = |hold: &str| format!(r#"{{"lines":[{line}],"hold_seconds":{hold}}}"#);
        for (hold, expected) in
            [("1", Some(1)), ("1.0", Some(1)), ("86400", Some(86_400)), ("null", None)]
        {
            let order = parse(body(hold).as_bytes()).unwrap();

            assert_eq!(order.hold_seconds, expected, "{hold}");
        }
        for hold in
            ["0", "-1", "86401", "1.5", "\"1\"", "true", "[1]", "{}", "99999999999999999999"]
        {
            assert_eq!(wrong_fields(&body(hold)), ["/hold_seconds"], "{hold}");
        }
        assert_eq!(wrong_fields(&body(r#"1,"hold_seconds":1"#)), ["/hold_seconds"]);
    }

    #[test]
    fn an_extension_has_a_hold_and_nothing_else() {
        let parse = |body: &str| ExtendRequest::parse(body.as_bytes(), HOLD_MAX_SECONDS);

        assert_eq!(parse(r#"{"hold_seconds":60}"#).unwrap().hold_seconds, 60);
        for (body, expected) in [
            ("{}", "/hold_seconds"),
            ("[]", ""),
            ("7", ""),
            (r#"{"hold_seconds":null}"#, "/hold_seconds"),
            (r#"{"hold_seconds":86401}"#, "/hold_seconds"),
            (r#"{"hold_seconds":1,"hold_seconds":1}"#, "/hold_seconds"),
            (r#"{"hold_seconds":1,"lines":[]}"#, "/lines"),
        ] {
            assert_eq!(pointers(&parse(body).unwrap_err()), [expected], "{body}");
        }
        for body in ["", "{", r#"{"hold_seconds":1}x"#] {
            assert_eq!(parse(body).unwrap_err().status(), StatusCode::BAD_REQUEST, "{body:?}");
        }
    }

    #[test]
    fn each_wrong_field_of_an_adjustment_is_pointed_at() {
        let parse = |body: &str| AdjustmentRequest::parse(body.as_bytes());
        let item = |rest: &str| {
            let item = format!(r#"{{"product_id":"a","reason":"r"{rest}}}"#);
            format!(r#"{{"request_id":"x","adjustments":[{item}]}}"#)
        };

        assert!(parse(&item(r#","delta":-2,"if_version":1,"reference":"r""#)).is_ok());
        assert!(parse(&item(r#","set":0,"delta":null"#)).is_ok());
        for (body, expected) in [
            ("[]".to_owned(), &[""][..]),
            ("{}".to_owned(), &["/request_id", "/adjustments"]),
            (r#"{"request_id":"","adjustments":[]}"#.to_owned(), &["/request_id", "/adjustments"]),
            (r#"{"request_id":"x","adjustments":[7],"x":1}"#.to_owned(), &["/adjustments/0", "/x"]),
            (item(""), &["/adjustments/0/delta"]),
            (item(r#","delta":1,"set":1"#), &["/adjustments/0/set"]),
            (item(r#","delta":0"#), &["/adjustments/0/delta"]),
            (item(r#","delta":1.5"#), &["/adjustments/0/delta"]),
            (item(r#","set":-1"#), &["/adjustments/0/set"]),
            (item(r#","set":1,"if_version":"1""#), &["/adjustments/0/if_version"]),
            (item(r#","set":1,"reference":"""#), &["/adjustments/0/reference"]),
            (item(r#","set":1,"set":1"#), &["/adjustments/0/set"]),
            (item(r#","set":1,"x/y":1"#), &["/adjustments/0/x~1y"]),
        ] {
            assert_eq!(pointers(&parse(&body).unwrap_err()), expected, "{body}");
        }
        let one = r#"{"product_id":"a","delta":1,"reason":"r"}"#;
        let twice = format!(r#"{{"request_id":"x","adjustments":[{one},{one}]}}"#);
        assert_eq!(pointers(&parse(&twice).unwrap_err()), ["/adjustments/1/product_id"]);
        let many: Vec<_> = (0..1_001).map(|n| one.replace("\"a\"", &format!("\"p{n}\""))).collect();
        let many =
            |count| format!(r#"{{"request_id":"x","adjustments":[{}]}}"#, many[..count].join(","));
        assert!(parse(&many(1_000)).is_ok());
        assert_eq!(pointers(&parse(&many(1_001)).unwrap_err()), ["/adjustments"]);
    }

    #[test]
    fn each_wrong_field_is_pointed_at() {
        assert_eq!(wrong_fields("[]"), [""]);
        assert_eq!(wrong_fields("{}"), ["/lines"]);
        assert_eq!(wrong_fields(r#"{"lines":[]}"#), ["/lines"]);
        assert_eq!(wrong_fields(r#"{"lines":[{}]}"#), ["/lines/0/product_id", "/lines/0/quantity"]);
        assert_eq!(wrong_fields(r#"{"lines":[7]}"#), ["/lines/0"]);
        let bad_line = concat!(
            r#"{"lines":[{"product_id":"a","quantity":1},"#,
            r#"{"product_id":"a b","quantity":0,"x/y":1}],"extra":1}"#
        );
        assert_eq!(
            wrong_fields(bad_line),
            ["/lines/1/product_id", "/lines/1/quantity", "/lines/1/x~1y", "/extra"]
        );
        for quantity in ["0", "-1", "1000001", "1.5", "1e300", "\"1\"", "null"] {
            let body = format!(r#"{{"lines":[{{"product_id":"a","quantity":{quantity}}}]}}"#);
            assert_eq!(wrong_fields(&body), ["/lines/0/quantity"], "{quantity}");
        }
        let long = format!(
            r#"{{"reference":"{}","lines":[{{"product_id":"a","quantity":1}}]}}"#,
            "é".repeat(129)
        );
        assert_eq!(wrong_fields(&long), ["/reference"]);
    }

    #[test]
    fn too_many_lines_are_counted() {
        let lines = vec![r#"{"product_id":"a","quantity":1}"#; 101].join(",");
        assert_eq!(wrong_fields(&format!(r#"{{"lines":[{lines}]}}"#)), ["/lines"]);
    }

    #[test]
    fn a_repeated_field_is_refused_wherever_it_stands() {
        let line = r#"{"product_id":"a","quantity":1}"#;
        assert_eq!(wrong_fields(&format!(r#"{{"lines":[{line}],"lines":[{line}]}}"#)), ["/lines"]);
        assert_eq!(
            wrong_fields(&format!(r#"{{"reference":"r","lines":[{line}],"reference":"r"}}"#)),
            ["/reference"]
        );
        let repeated = r#"{"lines":[{"product_id":"a","quantity":1,"quantity":2}]}"#;
        assert_eq!(wrong_fields(repeated), ["/lines/0/quantity"]);
        // An escape does not hide it.
        let escaped = r#"{"lines":[{"product_id":"a","quantity":1,"qu\u0061ntity":2}]}"#;
        assert_eq!(wrong_fields(escaped), ["/lines/0/quantity"]);
    }

    #[test]
    fn at_most_twenty_wrong_fields_are_shown_and_each_is_cut() {
        let unknown: Vec<_> = (0..131_071).map(|n| format!(r#""{n}":0"#)).collect();
        for body in [
            format!("{{{}}}", unknown.join(",")),
            format!(r#"{{"lines":[{}]}}"#, vec!["{}"; 100].join(",")),
            format!(r#"{{"lines":[{}]}}"#, vec!["7"; 100_000].join(",")),
        ] {
            assert_eq!(wrong_fields(&body).len(), 20);
        }
        let long = "x".repeat(1_000_000);
        for body in [
            format!(r#"{{"{long}":1}}"#),
            format!(r#"{{"reference":"{long}"}}"#),
            format!(r#"{{"lines":[{{"product_id":"{long}","quantity":"{long}","{long}":1}}]}}"#),
            format!(r#"{{"lines":[{{"product_id":"a","quantity":{}}}]}}"#, "1".repeat(300)),
        ] {
            let problem = parse(body.as_bytes()).unwrap_err();
            let shown = problem.body().to_string();
            assert!(shown.len() < 1_500, "{} bytes", shown.len());
        }
    }

    #[test]
    fn values_of_a_wrong_kind_are_no_broken_json() {
        let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for value in
            ["null", "true", "7", "-7", "1.5", "\"a\"", "[]", "{}", "[[1],{\"a\":[2]}]", &nested]
        {
            for body in [
                format!(r#"{{"x":{value}}}"#),
                format!(r#"{{"lines":[{{"product_id":"a","quantity":1,"x":{value}}}]}}"#),
            ] {
                assert!(!wrong_fields(&body).is_empty(), "{body:.80}");
            }
        }
        for value in ["null", "true", "7", "-7", "1.5", "\"a\"", "[]", "{\"a\":1}"] {
            assert_eq!(
                wrong_fields(&format!(r#"{{"lines":[{value}]}}"#))[0].split('/').nth(1),
                Some("lines"),
                "{value}"
            );
            assert_ne!(wrong_fields(value), [""; 0], "{value}");
        }
    }

    #[test]
    fn a_body_that_is_not_json_is_a_bad_request() {
        for body in ["", "{", "{}x", "\u{0}"] {
            let problem = parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), StatusCode::BAD_REQUEST, "{body:?}");
        }
    }
}
