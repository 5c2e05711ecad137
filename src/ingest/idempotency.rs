//! The `Idempotency-Key` header, and what makes two requests equal.

use axum::http::{HeaderMap, StatusCode};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{json::is_key, problem::Problem};
use crate::store::NewOrder;

/// The form of the text that is digested. Digests of another form may be compared beside these.
const FORM: &str = "stocklock order request 1\n";

/// The key of a request. `None` if it has none.
///
/// A key is bare, or a quoted string (RFC 9651, section 3.3.3), which stands for the key inside.
/// Fails with a 400 unless it is 1 to 255 visible ASCII characters, and given once.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refused = |why: &str| {
        let detail = format!("Idempotency-Key: {why}; nothing was saved");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    };
    if values.next().is_some() {
        return Err(refused("given more than once"));
    }
    let key = match value.as_bytes() {
        [b'"', quoted @ ..] => unquoted(quoted),
        bare => Some(bare.to_vec()),
    };
    let key = key.filter(|key| is_key(key)).and_then(|key| String::from_utf8(key).ok());
    key.map(Some).ok_or_else(|| {
        refused("1 to 255 visible ASCII characters are allowed, bare or as a quoted string")
    })
}

/// The text of a quoted string, whose first quote is cut off. `None` if it is malformed.
fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let (mut text, mut rest) = (Vec::new(), quoted);
    loop {
        match rest {
            [b'"'] => return Some(text),
            [b'\\', escaped @ (b'"' | b'\\'), after @ ..] => {
                text.push(*escaped);
                rest = after;
            }
            [b'"' | b'\\', ..] | [] => return None,
            [byte, after @ ..] => {
                text.push(*byte);
                rest = after;
            }
        }
    }
}

/// The digest of the request that makes an order. It does not depend on the order of the fields,
/// nor on white space. A field that is null counts as missing.
pub(super) fn digest(order: &NewOrder) -> [u8; 32] {
    let content = json!([order.reference, order.customer_id, order.hold_seconds, order.lines]);
    let digest = Sha256::new().chain_update(FORM).chain_update(content.to_string());
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Line, Lines, OrderId, ProductId};

    fn read(values: &[&[u8]]) -> Result<Option<String>, StatusCode> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("idempotency-key", value.to_vec().try_into().unwrap());
        }
        key(&headers).map_err(|problem| problem.status())
    }

    #[test]
    fn a_key_is_read_bare_or_as_a_quoted_string() {
        assert_eq!(read(&[]), Ok(None));
        for (value, expected) in [
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            ("\"k-1\"", "k-1"),
            ("k\"1", "k\"1"),
            ("a,b;c", "a,b;c"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
        ] {
            assert_eq!(read(&[value.as_bytes()]), Ok(Some(expected.to_owned())), "{value}");
        }
        let longest = "x".repeat(255);
        assert_eq!(read(&[format!("\"{longest}\"").as_bytes()]), Ok(Some(longest.clone())));
    }

    #[test]
    fn a_malformed_key_is_a_bad_request() {
        let too_long = "x".repeat(256);
        for value in [
            "",
            "\"",
            "\"\"",
            "\"k",
            "\"k\"x",
            "\"k\";p=1",
            "\"a\"b\"",
            r#""a\b""#,
            r#""a\""#,
            "a b",
            "\"a b\"",
            "a\tb",
            &too_long,
        ] {
            assert_eq!(read(&[value.as_bytes()]), Err(StatusCode::BAD_REQUEST), "{value}");
        }
        assert_eq!(read(&["é".as_bytes()]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(read(&[b"k", b"k"]), Err(StatusCode::BAD_REQUEST));
    }

    fn order(lines: &[(&str, i64)]) -> NewOrder {
        let line = |(id, quantity): &(&str, i64)| {
            Line::new(ProductId::parse(id).unwrap(), *quantity).unwrap()
        };
        NewOrder {
            order_id: OrderId::generate(),
            reference: None,
            customer_id: None,
            hold_seconds: None,
            lines: Lines::new(lines.iter().map(line).collect()).unwrap(),
            accepted_at: chrono::Utc::now(),
        }
    }

    #[test]
    fn each_part_of_a_request_is_in_its_digest() {
        let plain = order(&[("a", 1), ("b", 2)]);
        let text = || Some("x".to_owned());
        let different = [
            order(&[("b", 2), ("a", 1)]),
            order(&[("a", 1), ("b", 3)]),
            order(&[("a", 1)]),
            NewOrder { reference: text(), ..plain.clone() },
            NewOrder { customer_id: text(), ..plain.clone() },
            NewOrder { hold_seconds: Some(1), ..plain.clone() },
        ];

        let mut digests: Vec<_> = different.iter().map(digest).collect();
        digests.push(digest(&plain));
        digests.sort_unstable();
        digests.dedup();

        assert_eq!(digests.len(), different.len() + 1);
        assert_eq!(digest(&order(&[("a", 1), ("b", 2)])), digest(&plain));
    }

    /// Stored digests must stay comparable.
    #[test]
    fn the_digest_of_a_request_does_not_change_with_the_version() {
        let mut order = order(&[("sku-1", 2)]);
        order.reference = Some("r".to_owned());

        let text = "stocklock order request 1\n[\"r\",null,null,[[\"sku-1\",2]]]";

        assert_eq!(digest(&order), <[u8; 32]>::from(Sha256::digest(text)));
    }
}
