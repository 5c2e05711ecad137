//! What a person does about a failure of TLS, in one sentence. Pure.

use std::{error::Error, io, sync::Arc};

use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// How the settings of one client name what its TLS needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlsTerms {
    /// Names the file of the authorities that the client trusts.
    pub(crate) authority: &'static str,
    /// Names the files of the client's own certificate and key.
    pub(crate) own_certificate: &'static str,
    /// Says what to write for a port without TLS.
    pub(crate) without_tls: &'static str,
}

/// The failure of TLS among the causes of `error`. `None` if there is none.
///
/// [`io::Error`] hides what it carries from [`Error::source`], and a client may share an error.
pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<TlsError>() {
            return Some(found);
        }
        if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            return find(&**shared);
        }
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

/// What a person does about `error`.
pub(crate) fn advice(error: &TlsError, terms: &TlsTerms) -> String {
    use CertificateError as Refused;
    let TlsTerms { authority, own_certificate, without_tls } = terms;
    match error {
        TlsError::InvalidCertificate(refused) => match refused {
            Refused::UnknownIssuer | Refused::BadSignature => {
                format!("name the authority that signed the server's certificate in {authority}")
            }
            Refused::NotValidForName | Refused::NotValidForNameContext { .. } => {
                "connect by a name that is in the server's certificate, or have it issued for \
                 this one"
                    .to_owned()
            }
            Refused::Expired | Refused::ExpiredContext { .. } => {
                "renew the server's certificate, which has expired, or correct the clock of this \
                 machine"
                    .to_owned()
            }
            Refused::NotValidYet | Refused::NotValidYetContext { .. } => {
                "correct the clock of this machine: the server's certificate is not valid yet"
                    .to_owned()
            }
            _ => format!(
                "give the server a certificate of version 3 with its host name, signed by an \
                 authority of {authority}"
            ),
        },
        TlsError::AlertReceived(alert) if is_about_our_certificate(*alert) => format!(
            "the server refused this client's certificate, or its absence: set {own_certificate}, \
             signed by an authority that the server trusts"
        ),
        TlsError::InvalidMessage(_) => {
            format!("the port does not speak TLS: name the port that does, or {without_tls}")
        }
        TlsError::InconsistentKeys(_) => {
            format!("the key does not belong to the certificate: correct {own_certificate}")
        }
        _ => "allow TLS 1.2 or 1.3 at the server, with ciphers that rustls has".to_owned(),
    }
}

/// A server that wants a certificate of a client sends one of these.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::HandshakeFailure
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}

/// As a client has it whose server shows a certificate of an unknown authority.
#[cfg(test)]
pub(crate) fn untrusted() -> io::Error {
    let refused = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
    io::Error::new(io::ErrorKind::InvalidData, refused)
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    const TERMS: TlsTerms = TlsTerms {
        authority: "the.ca",
        own_certificate: "the.certificate and the.key",
        without_tls: "write plain://",
    };

    #[test]
    fn each_failure_of_tls_has_its_advice() {
        let refused = TlsError::InvalidCertificate;
        for (error, expected) in [
            (refused(CertificateError::UnknownIssuer), "in the.ca"),
            (refused(CertificateError::BadSignature), "in the.ca"),
            (refused(CertificateError::NotValidForName), "by a name that is in"),
            (refused(CertificateError::Expired), "renew the server's certificate"),
            (refused(CertificateError::NotValidYet), "correct the clock"),
            (refused(CertificateError::BadEncoding), "of version 3"),
            (TlsError::AlertReceived(AlertDescription::CertificateRequired), "set the.certificate"),
            (TlsError::AlertReceived(AlertDescription::ProtocolVersion), "TLS 1.2 or 1.3"),
            (TlsError::InvalidMessage(InvalidMessage::InvalidContentType), "write plain://"),
        ] {
            let advice = advice(&error, &TERMS);

            assert!(advice.contains(expected), "{error}: {advice}");
            assert!(advice.split(' ').count() <= 25, "{advice}");
        }
    }

    #[test]
    fn a_failure_is_found_within_the_errors_that_clients_make_of_it() {
        let failure = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let shared: Arc<dyn Error + Send + Sync> = Arc::new(untrusted());

        assert_eq!(find(&failure()), Some(&failure()));
        assert_eq!(find(&untrusted()), Some(&failure()));
        assert_eq!(find(&shared), Some(&failure()));
        assert_eq!(find(&io::Error::from(io::ErrorKind::TimedOut)), None);
    }
}
