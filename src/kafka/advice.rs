//! What to do about the usual mistakes in the settings of a connection.

/// What librdkafka or OpenSSL says, and the advice. The first row whose texts are all found counts.
const ADVICE: [(&[&str], &str); 18] = [
    (
        &["certificate has expired"],
        "renew the broker's certificate: it has expired, or the clock of this machine is wrong",
    ),
    (
        &["certificate is not yet valid"],
        "correct the clock of this machine or of the authority: the certificate is not valid yet",
    ),
    (&["hostname mismatch"], WRONG_NAME),
    (&["IP address mismatch"], WRONG_NAME),
    (&["self-signed certificate"], UNTRUSTED),
    (&["unable to get local issuer certificate"], UNTRUSTED),
    (
        &["certificate verify failed"],
        "name the authority of the broker's certificate in kafka.ssl_ca_location or \
         kafka.ssl_ca_pem; if it is the right one, the certificate has expired or has another host \
         name, which stocklock doctor tells apart",
    ),
    (&["connecting to a SSL listener"], MAY_WANT_TLS),
    // A record of TLS, read as the length of an answer.
    (&["Invalid response size 35"], WANTS_TLS),
    (&["SSL", "wrong version number"], NO_TLS),
    (&["SSL handshake failed", "connecting to a PLAINTEXT broker listener"], NO_TLS),
    (&["SSL connection closed by peer", "in state SSL_HANDSHAKE"], NO_TLS),
    (&["certificate required"], NO_CERTIFICATE),
    (
        &["SSL", "alert"],
        "the broker refuses this client's certificate: check kafka.ssl_certificate_location (or \
         _pem), its validity, and the authorities that the broker trusts",
    ),
    (
        &["mechanism handshake failed"],
        "set kafka.sasl_mechanism to a mechanism that the broker supports",
    ),
    (
        &["Failed to acquire SASL OAUTHBEARER token"],
        "check kafka.oauth_token_url, kafka.oauth_client_id and kafka.oauth_client_secret, and \
         the token endpoint",
    ),
    (&["broker might require SASL authentication"], NO_SASL),
    (&["unexpected message", "client SSL authentication"], NO_CERTIFICATE),
];

const WANTS_TLS: &str = "the port expects TLS: set kafka.security_protocol to ssl or sasl_ssl";
/// A broker that is down, behind a proxy that accepts connections, looks the same.
const MAY_WANT_TLS: &str = "the port may expect TLS: then set kafka.security_protocol to ssl or \
                            sasl_ssl";
const WRONG_NAME: &str = "use in kafka.brokers and in the brokers' advertised.listeners a name \
                          that the certificate has, or issue the certificate for this name";
const UNTRUSTED: &str = "name the authority that signed the broker's certificate in \
                         kafka.ssl_ca_location or kafka.ssl_ca_pem";
const NO_TLS: &str = "the port has no TLS: use the broker's TLS port in kafka.brokers, or set \
                      kafka.security_protocol to plaintext or sasl_plaintext";
const NO_CERTIFICATE: &str = "the broker expects a client certificate: set \
                              kafka.ssl_certificate_location and kafka.ssl_key_location (or _pem)";
const NO_SASL: &str = "the port expects SASL: set kafka.security_protocol to sasl_ssl, and \
                       kafka.sasl_mechanism";
const REFUSED_TOKEN: &str = "the broker refuses the token: check kafka.oauth_scope, the clocks, \
                             and the issuer and the audience that the broker expects";
const REFUSED_USER: &str = "check kafka.sasl_username and kafka.sasl_password, and that the broker \
                            has this user for this mechanism";

/// What to do about a failure of a connection, in one sentence. `None` if the text names no usual
/// mistake.
pub(super) fn advice(text: &str) -> Option<&'static str> {
    let has = |texts: &&(&[&str], &str)| texts.0.iter().all(|part| text.contains(part));
    if let Some((_, advice)) = ADVICE.iter().find(has) {
        return Some(advice);
    }
    // The first request of a connection. librdkafka 2.12 names the listener no more.
    let is_cut_off = text.contains("Disconnected") && text.contains("in state APIVERSION_QUERY");
    if is_cut_off && !text.contains("ssl://") {
        return Some(MAY_WANT_TLS);
    }
    let is_refused = ["SASL authentication error", "SASL authentication failed"]
        .iter()
        .any(|part| text.contains(part));
    match (is_refused, is_about_token(text)) {
        (true, true) => Some(REFUSED_TOKEN),
        (true, false) => Some(REFUSED_USER),
        _ => None,
    }
}

/// Whether a failure of a connection says that a broker answers and refuses.
pub(super) fn is_refusal(text: &str) -> bool {
    advice(text).is_some_and(|advice| advice != MAY_WANT_TLS)
}

/// Whether a failure of a connection says that a broker refuses the token.
pub(super) fn is_refused_token(text: &str) -> bool {
    advice(text) == Some(REFUSED_TOKEN)
}

/// Whether a broker refused a token, and not a password.
fn is_about_token(text: &str) -> bool {
    ["OAUTHBEARER", "invalid_token", "token", "JWT"].iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_mistake_has_its_advice() {
        for (text, remedy) in [
            (
                "ssl://b:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::\
                 certificate verify failed: broker certificate could not be verified",
                "kafka.ssl_ca_location",
            ),
            ("certificate verify failed: unable to get local issuer certificate", UNTRUSTED),
            ("certificate verify failed: self-signed certificate in certificate chain", UNTRUSTED),
            ("certificate verify failed: hostname mismatch", WRONG_NAME),
            ("certificate verify failed: certificate has expired", "renew"),
            (
                "Disconnected: requesting ApiVersion: might be caused by incorrect \
                 security.protocol configuration (connecting to a SSL listener?) or broker \
                 version is < 0.10",
                MAY_WANT_TLS,
            ),
            (
                "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
                NO_TLS,
            ),
            ("b:9093/bootstrap: Disconnected (after 2ms in state APIVERSION_QUERY)", MAY_WANT_TLS),
            ("b:9093/bootstrap: Receive failed: Invalid response size 352518400", WANTS_TLS),
            ("SSL handshake failed: error:0A00010B:SSL routines::wrong version number", NO_TLS),
            (
                "Disconnected: SSL connection closed by peer (after 1ms in state SSL_HANDSHAKE)",
                NO_TLS,
            ),
            (
                "Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: \
                 SSL alert number 116",
                NO_CERTIFICATE,
            ),
            (
                "SASL authentication error: Authentication failed during authentication due to \
                 invalid credentials with SASL mechanism SCRAM-SHA-512",
                REFUSED_USER,
            ),
            (
                "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: \
                 broker's supported mechanisms: SCRAM-SHA-512",
                "kafka.sasl_mechanism",
            ),
            ("SASL authentication error: {\"status\":\"invalid_token\"}", REFUSED_TOKEN),
            (
                "Failed to acquire SASL OAUTHBEARER token: http://id/token: 401, invalid_client",
                "kafka.oauth_client_secret",
            ),
        ] {
            let said = advice(text).unwrap_or_default();

            assert!(said.contains(remedy), "{text}: {said}");
        }
    }

    #[test]
    fn a_connection_that_only_ends_is_no_refusal() {
        let ends = "b:9093/bootstrap: Disconnected (after 2ms in state APIVERSION_QUERY)";
        let refuses = "SASL authentication error: Authentication failed";

        assert!(!is_refusal(ends) && is_refusal(refuses));
    }

    #[test]
    fn a_failure_without_a_known_mistake_has_no_advice() {
        for text in [
            "Connection refused",
            "Local: Timed out",
            "Broker: Not leader",
            "b:9092/1: Disconnected (after 5000ms in state UP)",
            "ssl://b:9093/1: Disconnected (after 2ms in state APIVERSION_QUERY)",
            "",
        ] {
            assert_eq!(advice(text), None, "{text}");
        }
    }
}
