//! Why a request is refused before its handler sees it.

use std::time::Duration;

use axum::http::{StatusCode, header};

use super::scope::Scope;
use crate::ingest::problem::Problem;

/// Why a request is refused. The label of a metric is [`Self::reason`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    NoToken,
    /// The request has no header with one token.
    Malformed,
    UnknownToken,
    /// The token has the three parts of a JWT, but is none.
    UnreadableJwt,
    WrongAlgorithm,
    UnknownKey,
    BadSignature,
    Expired,
    NotYetValid,
    WrongIssuer,
    WrongAudience,
    BadClaims,
    /// The token gives none of these scopes.
    NoScope(Vec<Scope>),
    /// No key of the provider was read yet.
    NoKeys,
    PrincipalRequests(Duration),
    PrincipalConnections,
    PrincipalWaiters,
    /// All principals together send too many requests.
    AllRequests(Duration),
    TooManyPrincipals,
}

/// Every label of [`Refusal::reason`], and that of a handshake of TLS that failed.
pub(crate) const REASONS: [&str; 19] = [
    "no_token",
    "malformed_token",
    "unknown_token",
    "wrong_algorithm",
    "unknown_key",
    "bad_signature",
    "expired",
    "not_yet_valid",
    "wrong_issuer",
    "wrong_audience",
    "bad_claims",
    "no_scope",
    "no_keys",
    "principal_requests",
    "principal_connections",
    "principal_waiters",
    "all_requests",
    "too_many_principals",
    HANDSHAKE,
];
/// The label of a handshake of TLS that failed.
pub(crate) const HANDSHAKE: &str = "tls_handshake";

impl Refusal {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Malformed | Self::UnreadableJwt => "malformed_token",
            Self::UnknownToken => "unknown_token",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::BadClaims => "bad_claims",
            Self::NoScope(_) => "no_scope",
            Self::NoKeys => "no_keys",
            Self::PrincipalRequests(_) => "principal_requests",
            Self::PrincipalConnections => "principal_connections",
            Self::PrincipalWaiters => "principal_waiters",
            Self::AllRequests(_) => "all_requests",
            Self::TooManyPrincipals => "too_many_principals",
        }
    }

    /// What was wrong, in the client's words. It shows nothing of the token.
    fn detail(&self) -> &'static str {
        match self {
            Self::NoToken => "the request has no token",
            Self::Malformed => "expected one header `Authorization: Bearer TOKEN`",
            Self::UnknownToken => "the token is not known",
            Self::UnreadableJwt => "the token is no JWT that ingest can read",
            Self::WrongAlgorithm => "the token is signed with an algorithm that is not allowed",
            Self::UnknownKey => "the token is signed with a key that is not known",
            Self::BadSignature => "the signature of the token is wrong",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not yet valid",
            Self::WrongIssuer => "the token has another issuer",
            Self::WrongAudience => "the token is for another audience",
            Self::BadClaims => "the token lacks sub, exp, iss or aud, or one is malformed",
            Self::NoScope(_) => "the token does not give the scope that the request needs",
            Self::NoKeys => "the keys of the provider are not known yet",
            Self::PrincipalRequests(_) => "this principal sends too many requests",
            Self::PrincipalConnections => "this principal has too many connections",
            Self::PrincipalWaiters => "too many requests of this principal wait or watch",
            Self::AllRequests(_) => "too many requests",
            Self::TooManyPrincipals => "too many principals send requests",
        }
    }

    /// 401 or 403 (RFC 6750, section 3), 429 for a limit of the principal, else 503.
    pub(super) fn problem(&self) -> Problem {
        let detail = format!("{}; nothing was changed", self.detail());
        match self {
            Self::NoToken => challenge(StatusCode::UNAUTHORIZED, detail, ""),
            Self::Malformed
            | Self::UnknownToken
            | Self::UnreadableJwt
            | Self::WrongAlgorithm
            | Self::UnknownKey
            | Self::BadSignature
            | Self::Expired
            | Self::NotYetValid
            | Self::WrongIssuer
            | Self::WrongAudience
            | Self::BadClaims => {
                let error = format!(
                    ", error=\"invalid_token\", error_description=\"{}\"",
                    self.detail().replace('`', "")
                );
                challenge(StatusCode::UNAUTHORIZED, detail, &error)
            }
            Self::NoScope(scopes) => {
                let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
                let error =
                    format!(", error=\"insufficient_scope\", scope=\"{}\"", scopes.join(" "));
                let detail = format!("{detail}: {}", scopes.join(" or "));
                challenge(StatusCode::FORBIDDEN, detail, &error)
            }
            Self::PrincipalRequests(delay) => {
                Problem::too_many(detail).header(header::RETRY_AFTER, seconds(*delay))
            }
            // The connection ends, so that the client does not keep it.
            Self::PrincipalConnections => {
                Problem::too_many(detail).header(header::CONNECTION, "close")
            }
            Self::PrincipalWaiters => Problem::too_many(detail),
            Self::AllRequests(delay) => {
                Problem::unavailable(detail).header(header::RETRY_AFTER, seconds(*delay))
            }
            Self::NoKeys | Self::TooManyPrincipals => Problem::unavailable(detail),
        }
    }
}

fn challenge(status: StatusCode, detail: String, error: &str) -> Problem {
    let challenge = format!("Bearer realm=\"stocklock\"{error}");
    Problem::new(status, detail).header(header::WWW_AUTHENTICATE, challenge)
}

/// Whole seconds, rounded up.
fn seconds(delay: Duration) -> String {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    seconds.max(1).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_is_a_label_that_begins_at_zero() {
        let delay = Duration::from_millis(1_200);
        let all = [
            Refusal::NoToken,
            Refusal::Malformed,
            Refusal::UnknownToken,
            Refusal::UnreadableJwt,
            Refusal::WrongAlgorithm,
            Refusal::UnknownKey,
            Refusal::BadSignature,
            Refusal::Expired,
            Refusal::NotYetValid,
            Refusal::WrongIssuer,
            Refusal::WrongAudience,
            Refusal::BadClaims,
            Refusal::NoScope(vec![Scope::OrdersRead]),
            Refusal::NoKeys,
            Refusal::PrincipalRequests(delay),
            Refusal::PrincipalConnections,
            Refusal::PrincipalWaiters,
            Refusal::AllRequests(delay),
            Refusal::TooManyPrincipals,
        ];

        for refusal in &all {
            assert!(REASONS.contains(&refusal.reason()), "{refusal:?}");
        }
        let reasons: BTreeSet<_> = all.iter().map(Refusal::reason).collect();
        assert_eq!(reasons.len() + 1, REASONS.len());
        assert_eq!(seconds(delay), "2");
        assert_eq!(seconds(Duration::ZERO), "1");
    }
}
