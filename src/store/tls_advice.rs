//! What a person does about a server that does not let a client in, in one sentence. Pure.

use std::{borrow::Cow, fmt, io};

use sqlx::mysql::MySqlDatabaseError;

use super::error::raised_by_server;
use crate::tls_advice::{self, TlsTerms};

const TERMS: TlsTerms = TlsTerms {
    authority: "ssl-ca of the URL",
    own_certificate: "ssl-cert and ssl-key of the URL",
    without_tls: "use ssl-mode=DISABLED on a trusted network",
};

const ACCESS_DENIED: u16 = 1045;
const ACCESS_DENIED_WITHOUT_PASSWORD: u16 = 1698;
const SECURE_TRANSPORT_REQUIRED: u16 = 3159;

/// What a person does about an error of the login or of TLS. `None` for any other error.
///
/// A server says no more than "access denied", whether the password is wrong or the account wants
/// TLS or a certificate. Without TLS, `caching_sha2_password` needs an RSA key of the server.
pub(super) fn advice(error: &sqlx::Error) -> Option<Cow<'static, str>> {
    if let Some(failure) = tls_advice::find(error) {
        return Some(tls_advice::advice(failure, &TERMS).into());
    }
    let advice = match error {
        sqlx::Error::Tls(why) if why.to_string().contains("does not support TLS") => {
            "give the server a certificate (ssl_cert and ssl_key), or use ssl-mode=DISABLED on a \
             trusted network"
        }
        sqlx::Error::Tls(_) => "correct the host, ssl-ca, ssl-cert and ssl-key of the URL",
        sqlx::Error::Configuration(_) => {
            "correct ssl-cert and ssl-key of the URL: files of PEM, both or neither"
        }
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            "correct ssl-ca, ssl-cert, ssl-key or socket of the URL: one names a file that does \
             not exist"
        }
        sqlx::Error::Protocol(why) if why.contains("authentication plugin") => {
            "give the account caching_sha2_password or mysql_native_password: the client has no \
             other plugin"
        }
        _ => match raised_by_server(error).map(MySqlDatabaseError::number)? {
            ACCESS_DENIED | ACCESS_DENIED_WITHOUT_PASSWORD => {
                "correct user and password; caching_sha2_password and REQUIRE SSL need \
                 ssl-mode=VERIFY_IDENTITY, REQUIRE X509 also ssl-cert and ssl-key"
            }
            SECURE_TRANSPORT_REQUIRED => {
                "the server takes no connection without TLS: add \
                 ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE to the URL"
            }
            _ => return None,
        },
    };
    Some(advice.into())
}

/// Whether the server answered and TLS failed, which no waiting mends.
pub(super) fn is_failure_of_tls(error: &sqlx::Error) -> bool {
    tls_advice::find(error).is_some() || matches!(error, sqlx::Error::Tls(_))
}

/// The text of an error, with the advice behind it.
pub(super) struct Advised<'a>(pub(super) &'a sqlx::Error);

impl fmt::Display for Advised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        match advice(error) {
            Some(advice) => write!(f, "{error} ({advice})"),
            None => write!(f, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_brings_its_advice_and_another_error_none() {
        let untrusted = sqlx::Error::Io(tls_advice::untrusted());
        let without = sqlx::Error::Tls("server does not support TLS".into());
        let gone = sqlx::Error::Io(io::ErrorKind::ConnectionRefused.into());

        assert!(Advised(&untrusted).to_string().contains("in ssl-ca of the URL)"));
        assert!(Advised(&without).to_string().contains("give the server a certificate"));
        assert!(is_failure_of_tls(&untrusted) && is_failure_of_tls(&without));
        assert_eq!(Advised(&gone).to_string(), gone.to_string());
        assert!(!is_failure_of_tls(&gone));
    }
}
