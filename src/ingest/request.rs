use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::problem::{FieldError, Problem};
use crate::domain::{Line, Lines, MAX_LINES, MAX_QUANTITY, ProductId};

pub const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_TEXT_CHARS: usize = 128;

/// An order as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRequest {
    pub reference: Option<String>,
    pub customer_id: Option<String>,
    pub lines: Lines,
}

impl OrderRequest {
    /// Fails with 400 where the body is no JSON, and with 422 and every field that is to blame where it is no order.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(Problem::invalid(&[error("", "must be an object with lines")]));
        };
        let mut fields = Fields { object, errors: Vec::new() };
        let (reference, customer_id) = (fields.text("reference"), fields.text("customer_id"));
        let lines = fields.lines();
        fields.refuse_others();
        match lines {
            Some(lines) if fields.errors.is_empty() => Ok(Self { reference, customer_id, lines }),
            _ => Err(Problem::invalid(&fields.errors)),
        }
    }
}

fn error(pointer: impl Into<String>, detail: impl Into<String>) -> FieldError {
    FieldError { pointer: pointer.into(), detail: detail.into() }
}

/// Takes the known fields out of an object and gathers what is wrong with them.
struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    fn text(&mut self, name: &str) -> Option<String> {
        match self.object.remove(name)? {
            Value::Null => None,
            Value::String(text) if (1..=MAX_TEXT_CHARS).contains(&text.chars().count()) => Some(text),
            _ => {
                let detail = format!("must be a string of 1 to {MAX_TEXT_CHARS} characters");
                self.errors.push(error(format!("/{name}"), detail));
                None
            }
        }
    }

    /// Answers none where anything is wrong with them, which is among the errors then.
    fn lines(&mut self) -> Option<Lines> {
        let expected = format!("must be an array of 1 to {MAX_LINES} lines");
        let lines = match self.object.remove("lines") {
            Some(Value::Array(lines)) if (1..=MAX_LINES).contains(&lines.len()) => lines,
            Some(Value::Array(lines)) => {
                self.errors.push(error("/lines", format!("{expected}, not {}", lines.len())));
                return None;
            }
            Some(_) => {
                self.errors.push(error("/lines", expected));
                return None;
            }
            None => {
                self.errors.push(error("/lines", format!("is missing; {expected}")));
                return None;
            }
        };
        let parsed: Vec<_> = lines.into_iter().enumerate().map(|(index, line)| self.line(index, line)).collect();
        Lines::new(parsed.into_iter().collect::<Option<_>>()?).ok()
    }

    fn line(&mut self, index: usize, line: Value) -> Option<Line> {
        let pointer = format!("/lines/{index}");
        let Value::Object(mut line) = line else {
            self.errors.push(error(pointer, "must be an object with product_id and quantity"));
            return None;
        };
        let product_id = match line.remove("product_id") {
            Some(Value::String(id)) => ProductId::parse(&id).map_err(|e| e.to_string()),
            Some(_) => Err("must be a string".to_owned()),
            None => Err("is missing".to_owned()),
        };
        let quantity = match line.remove("quantity") {
            Some(value) => value
                .as_i64()
                .filter(|n| (1..=MAX_QUANTITY).contains(n))
                .ok_or_else(|| format!("must be a whole number from 1 to {MAX_QUANTITY}, not {value:.40}")),
            None => Err(format!("is missing; must be a whole number from 1 to {MAX_QUANTITY}")),
        };
        for name in line.keys() {
            self.errors.push(error(
                format!("{pointer}/{}", escape(name)),
                "unknown field; a line has product_id and quantity",
            ));
        }
        let product_id = product_id.map_err(|e| self.errors.push(error(format!("{pointer}/product_id"), e)));
        let quantity = quantity.map_err(|e| self.errors.push(error(format!("{pointer}/quantity"), e)));
        Line::new(product_id.ok()?, quantity.ok()?).ok()
    }

    fn refuse_others(&mut self) {
        for name in self.object.keys() {
            let detail = "unknown field; an order has reference, customer_id and lines";
            self.errors.push(error(format!("/{}", escape(name)), detail));
        }
    }
}

/// A name within a JSON pointer (RFC 6901, section 3).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blamed(body: &str) -> Vec<String> {
        let problem = OrderRequest::parse(body.as_bytes()).unwrap_err();
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY);
        problem.body()["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_order_is_read_with_what_the_caller_adds() {
        let body = r#"{"reference":"r","customer_id":null,"lines":[{"product_id":"a","quantity":1000000}]}"#;
        let order = OrderRequest::parse(body.as_bytes()).unwrap();
        assert_eq!((order.reference.as_deref(), order.customer_id), (Some("r"), None));
        assert_eq!(order.lines.as_slice()[0].quantity(), 1_000_000);
    }

    #[test]
    fn each_field_that_is_to_blame_is_pointed_at() {
        assert_eq!(blamed("[]"), [""]);
        assert_eq!(blamed("{}"), ["/lines"]);
        assert_eq!(blamed(r#"{"lines":[]}"#), ["/lines"]);
        assert_eq!(blamed(r#"{"lines":[{}]}"#), ["/lines/0/product_id", "/lines/0/quantity"]);
        assert_eq!(blamed(r#"{"lines":[7]}"#), ["/lines/0"]);
        let bad_line =
            r#"{"lines":[{"product_id":"a","quantity":1},{"product_id":"a b","quantity":0,"x/y":1}],"extra":1}"#;
        assert_eq!(blamed(bad_line), ["/lines/1/x~1y", "/lines/1/product_id", "/lines/1/quantity", "/extra"]);
        for quantity in ["0", "-1", "1000001", "1.5", "\"1\"", "null"] {
            let body = format!(r#"{{"lines":[{{"product_id":"a","quantity":{quantity}}}]}}"#);
            assert_eq!(blamed(&body), ["/lines/0/quantity"], "{quantity}");
        }
        let long = format!(r#"{{"reference":"{}","lines":[{{"product_id":"a","quantity":1}}]}}"#, "é".repeat(129));
        assert_eq!(blamed(&long), ["/reference"]);
    }

    #[test]
    fn too_many_lines_are_counted() {
        let lines = vec![r#"{"product_id":"a","quantity":1}"#; 101].join(",");
        assert_eq!(blamed(&format!(r#"{{"lines":[{lines}]}}"#)), ["/lines"]);
    }

    #[test]
    fn what_is_no_json_is_a_bad_request() {
        for body in ["", "{", "{}x", "\u{0}"] {
            let problem = OrderRequest::parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), StatusCode::BAD_REQUEST, "{body:?}");
        }
    }
}
