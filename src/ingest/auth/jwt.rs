//! JWTs (RFC 7519), as RFC 8725 says to check them: the key decides the algorithm, not the token.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    grant::{Grant, LimitChanges},
    key_set::{ALGORITHMS, KeySet},
    refusal::Refusal,
    scope::{Scope, Scopes},
    tokens::{JWT_PREFIX, hex},
};

const MAX_SUBJECT_BYTES: usize = 255;
/// Bytes of the digest that stands for a subject: the caller of idempotency keys is a short text.
const SUBJECT_DIGEST_BYTES: usize = 20;

/// What a JWT must say.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audience: String,
    /// How much the clocks may differ.
    pub(super) leeway: Duration,
}

/// A JWT that was checked.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) grant: Grant,
    /// Seconds since 1970.
    expires_at: u64,
    /// The digest of the keys with which it was checked.
    keys: [u8; 32],
}

impl Verified {
    /// Whether the token is still as good as when it was checked, with these keys.
    pub(super) fn is_current(&self, keys: &KeySet, expected: &Expected) -> bool {
        let now = jsonwebtoken::get_current_timestamp();
        self.keys == keys.digest()
            && now < self.expires_at.saturating_add(expected.leeway.as_secs())
    }
}

/// Whether a token has the three parts of a signed JWT (RFC 7515, section 3.1). A token of the file
/// has no dot.
pub(super) fn has_three_parts(token: &str) -> bool {
    token.split('.').count() == 3
}

/// Checks a JWT. Fails with [`Refusal::UnknownKey`] if newer keys of the provider may know it.
pub(super) fn verify(token: &str, keys: &KeySet, expected: &Expected) -> Result<Verified, Refusal> {
    let header = decode_header(token).map_err(|_| Refusal::UnreadableJwt)?;
    // It names extensions that a reader must understand. Ingest knows none.
    if header.crit.is_some() {
        return Err(Refusal::UnreadableJwt);
    }
    // Before the key is looked up: such a token never makes ingest ask the provider.
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Refusal::WrongAlgorithm);
    }
    let key = keys.find(header.kid.as_deref(), header.alg)?;
    let validation = validation(header.alg, expected);
    let claims: Value =
        decode(token, &key.key, &validation).map_err(|error| refusal(error.kind()))?.claims;
    let subject = claims["sub"].as_str().unwrap_or_default();
    if subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES {
        return Err(Refusal::BadClaims);
    }
    let expires_at = seconds(&claims["exp"]).ok_or(Refusal::BadClaims)?;
    let grant = Grant {
        name: principal(&expected.issuer, subject),
        scopes: scopes(&claims),
        limits: LimitChanges::default(),
    };
    Ok(Verified { grant, expires_at, keys: keys.digest() })
}

fn validation(algorithm: Algorithm, expected: &Expected) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = expected.leeway.as_secs();
    validation.validate_nbf = true;
    validation.set_issuer(&[&expected.issuer]);
    validation.set_audience(&[&expected.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation
}

fn refusal(error: &ErrorKind) -> Refusal {
    match error {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYetValid,
        ErrorKind::InvalidIssuer => Refusal::WrongIssuer,
        ErrorKind::InvalidAudience => Refusal::WrongAudience,
        ErrorKind::InvalidAlgorithm => Refusal::WrongAlgorithm,
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::InvalidSubject => Refusal::BadClaims,
        ErrorKind::InvalidToken | ErrorKind::Json(_) | ErrorKind::Utf8(_) => Refusal::UnreadableJwt,
        _ => Refusal::BadSignature,
    }
}

/// A time of a claim, which may have a fraction.
fn seconds(claim: &Value) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and the claim was checked"
    )]
    let of_fraction = |number: f64| number as u64;
    claim.as_u64().or_else(|| claim.as_f64().map(of_fraction))
}

/// The name of the principal: the same for each token of a subject.
fn principal(issuer: &str, subject: &str) -> Arc<str> {
    let digest = Sha256::digest(format!("{issuer}\n{subject}"));
    format!("{JWT_PREFIX}{}", hex(&digest[..SUBJECT_DIGEST_BYTES])).into()
}

/// The scopes of `scope` (RFC 8693), `scp` and `scopes`: a text with spaces, or an array. Scopes of
/// other APIs are passed over.
fn scopes(claims: &Value) -> Scopes {
    let named = ["scope", "scp", "scopes"].into_iter().map(|name| &claims[name]);
    let texts = named.flat_map(|claim| match claim {
        Value::String(text) => text.split(' ').collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    });
    texts.filter_map(Scope::parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes_are_read_in_each_form_and_others_are_passed_over() {
        let all: Scopes = [Scope::OrdersRead, Scope::StockWrite].into_iter().collect();
        for claims in [
            json!({"scope": "openid orders:read stock:write"}),
            json!({"scp": ["orders:read", "stock:write", 7]}),
            json!({"scopes": ["stock:write"], "scp": "orders:read"}),
        ] {
            assert_eq!(scopes(&claims), all, "{claims}");
        }
        assert!(scopes(&json!({"scope": "orders:read,stock:write"})).is_empty());
        assert!(scopes(&json!({"scope": 7})).is_empty());
    }

    #[test]
    fn a_token_of_a_file_is_no_jwt() {
        for jwt in ["a.b.c", "a.b.", ".."] {
            assert!(has_three_parts(jwt), "{jwt}");
        }
        for other in ["sl_0123", "a.b", "a.b.c.d", ""] {
            assert!(!has_three_parts(other), "{other}");
        }
    }

    #[test]
    fn a_principal_is_a_short_name_of_issuer_and_subject() {
        let name = principal("https://id", "user|1");

        assert_eq!(name.len(), 44);
        assert!(!name.contains(':') && name.is_ascii());
        assert_ne!(principal("https://id", "user|2"), name);
        assert_ne!(principal("https://other", "user|1"), name);
    }
}
