//! The settings of encryption and identity between a process and the brokers.

use std::{fmt, path::PathBuf};

use super::{formats, keys::SASL_MECHANISMS, values::Values};

const PROTOCOL: &str = "kafka.security_protocol";
const MECHANISM: &str = "kafka.sasl_mechanism";
const CREDENTIALS: [&str; 2] = ["kafka.sasl_username", "kafka.sasl_password"];
const KEY_PASSWORD: &str = "kafka.ssl_key_password";
const OAUTHBEARER: &str = "OAUTHBEARER";
const TOKEN_URL: &str = "kafka.oauth_token_url";
const CLIENT_ID: &str = "kafka.oauth_client_id";
const CLIENT_SECRET: &str = "kafka.oauth_client_secret";
const SCOPE: &str = "kafka.oauth_scope";
const TOKEN_CA: &str = "kafka.oauth_ca_location";
const OAUTH: [&str; 5] = [TOKEN_URL, CLIENT_ID, CLIENT_SECRET, SCOPE, TOKEN_CA];

/// A part of a connection by TLS: its file and its text, under our names and librdkafka's.
struct TlsPart {
    file: &'static str,
    text: &'static str,
    rdkafka_file: &'static str,
    rdkafka_text: &'static str,
}

const CA: TlsPart = TlsPart {
    file: "kafka.ssl_ca_location",
    text: "kafka.ssl_ca_pem",
    rdkafka_file: "ssl.ca.location",
    rdkafka_text: "ssl.ca.pem",
};
const CERTIFICATE: TlsPart = TlsPart {
    file: "kafka.ssl_certificate_location",
    text: "kafka.ssl_certificate_pem",
    rdkafka_file: "ssl.certificate.location",
    rdkafka_text: "ssl.certificate.pem",
};
const KEY: TlsPart = TlsPart {
    file: "kafka.ssl_key_location",
    text: "kafka.ssl_key_pem",
    rdkafka_file: "ssl.key.location",
    rdkafka_text: "ssl.key.pem",
};

/// The client of a token endpoint (RFC 6749, section 4.4: client credentials).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OAuthConfig {
    pub(crate) token_url: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) scope: Option<String>,
    /// The authorities that sign the endpoint's certificate; `None`: those of the system.
    pub(crate) ca: Option<PathBuf>,
}

/// How a process connects to the brokers.
pub(super) struct KafkaSecurity {
    /// The settings that are set, under librdkafka's names.
    pub(super) settings: Vec<(&'static str, String)>,
    pub(super) oauth: Option<OAuthConfig>,
}

impl fmt::Debug for OAuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.client_id, self.token_url)
    }
}

impl Values<'_> {
    /// Refuses settings that the protocol or the mechanism does not use: the user that set them
    /// expects a connection that is more secure.
    pub(super) fn kafka_security(&mut self) -> KafkaSecurity {
        let protocol = self.word(PROTOCOL);
        let mechanism = self.sasl_mechanism();
        let mut settings = vec![
            ("security.protocol", protocol.to_owned()),
            ("sasl.mechanism", mechanism.to_owned()),
        ];
        for (ours, theirs) in CREDENTIALS.into_iter().zip(["sasl.username", "sasl.password"]) {
            settings.push((theirs, self.optional(ours).unwrap_or_default()));
        }
        for part in [CA, CERTIFICATE, KEY] {
            let (file, text) = (self.optional(part.file), self.optional(part.text));
            settings.push((part.rdkafka_file, file.unwrap_or_default()));
            settings.push((part.rdkafka_text, text.unwrap_or_default()));
        }
        let password = self.optional(KEY_PASSWORD).unwrap_or_default();
        settings.push(("ssl.key.password", password));
        self.check_sasl(protocol, mechanism);
        self.check_tls(protocol);
        settings.retain(|(_, value)| !value.is_empty());
        KafkaSecurity { settings, oauth: self.kafka_oauth(mechanism) }
    }

    /// Reads the client of the token endpoint, if the mechanism is OAUTHBEARER.
    fn kafka_oauth(&mut self, mechanism: &str) -> Option<OAuthConfig> {
        let or_none = |text: &str| match text {
            "" => Ok(None),
            text => formats::token_url(text).map(Some),
        };
        let token_url = self.read(TOKEN_URL, or_none)?;
        if mechanism != OAUTHBEARER {
            return None;
        }
        Some(OAuthConfig {
            token_url,
            client_id: self.optional(CLIENT_ID)?,
            client_secret: self.optional(CLIENT_SECRET)?,
            scope: self.optional(SCOPE),
            ca: self.optional(TOKEN_CA).map(PathBuf::from),
        })
    }

    fn sasl_mechanism(&mut self) -> &'static str {
        self.read(MECHANISM, |text| match text {
            "" => Ok(""),
            text => formats::one_of(text, &SASL_MECHANISMS).map_err(|expected| {
                format!("{expected}: this build has no other mechanism (no Cyrus SASL, no GSSAPI)")
            }),
        })
    }

    fn check_sasl(&mut self, protocol: &str, mechanism: &str) {
        let of_sasl = [&[MECHANISM][..], &CREDENTIALS, &OAUTH].concat();
        if !protocol.starts_with("sasl_") {
            let error = format!(
                "expected no value, because {PROTOCOL} is {protocol}: set that to sasl_ssl, or \
                 remove this key"
            );
            self.refuse_set(&of_sasl, &error);
            return;
        }
        let needed = match mechanism {
            // A mechanism that is wrong is refused already.
            "" if self.optional(MECHANISM).is_some() => return,
            OAUTHBEARER => &OAUTH[..3],
            _ => &CREDENTIALS,
        };
        let needed = [&[MECHANISM][..], needed].concat();
        for name in &needed {
            if self.optional(name).is_none() {
                let with =
                    if mechanism.is_empty() { String::new() } else { format!(" with {mechanism}") };
                let error = format!("expected a value, because {PROTOCOL} is {protocol}{with}");
                self.refuse(name, &error);
            }
        }
        if mechanism.is_empty() {
            return;
        }
        let (unused, other) = match mechanism {
            OAUTHBEARER => (&CREDENTIALS[..], "PLAIN or SCRAM-…"),
            _ => (&OAUTH[..], OAUTHBEARER),
        };
        let error = format!(
            "expected no value, because {MECHANISM} is {mechanism}: set that to {other}, or \
             remove this key"
        );
        self.refuse_set(unused, &error);
    }

    fn check_tls(&mut self, protocol: &str) {
        let parts = [CA, CERTIFICATE, KEY];
        if !protocol.ends_with("ssl") {
            let names: Vec<_> = parts.iter().flat_map(|part| [part.file, part.text]).collect();
            let error = format!(
                "expected no value, because {PROTOCOL} is {protocol}, which has no TLS: set that \
                 to ssl or sasl_ssl, or remove this key"
            );
            self.refuse_set(&[&names[..], &[KEY_PASSWORD]].concat(), &error);
            return;
        }
        for part in &parts {
            if self.optional(part.file).is_some() && self.optional(part.text).is_some() {
                let error = format!("expected no value, because {} is set: remove one", part.file);
                self.refuse(part.text, &error);
            }
        }
        let [_, certificate, key] = parts.map(|part| {
            [part.file, part.text].into_iter().find(|name| self.optional(name).is_some())
        });
        match (certificate, key) {
            (Some(certificate), None) => {
                let error =
                    format!("expected a value, because {certificate} is set: or set {}", KEY.text);
                self.refuse(KEY.file, &error);
            }
            (None, Some(key)) => {
                let error =
                    format!("expected a value, because {key} is set: or set {}", CERTIFICATE.text);
                self.refuse(CERTIFICATE.file, &error);
            }
            _ => {}
        }
        if key.is_none() && self.optional(KEY_PASSWORD).is_some() {
            let error =
                format!("expected {} or {}, because this is its password", KEY.file, KEY.text);
            self.refuse(KEY_PASSWORD, &error);
        }
    }

    /// Notes the error for each of these keys that is set.
    fn refuse_set(&mut self, names: &[&str], error: &str) {
        for name in names {
            if self.optional(name).is_some() {
                self.refuse(name, error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, KafkaConfig, Layers};

    const PLAIN: [&str; 4] = [
        "security_protocol=SASL_SSL",
        "sasl_mechanism=plain",
        "sasl_username=u",
        "sasl_password=p",
    ];
    const OAUTH: [&str; 5] = [
        "security_protocol=sasl_ssl",
        "sasl_mechanism=OAUTHBEARER",
        "oauth_token_url=https://id.example.com/token?tenant=1",
        "oauth_client_id=stocklock",
        "oauth_client_secret=hush",
    ];

    fn resolve(settings: &[&str]) -> Result<KafkaConfig, Vec<String>> {
        let flags: Vec<_> = settings.iter().map(|setting| format!("kafka.{setting}")).collect();
        match Config::resolve(&Layers::read(None, std::iter::empty(), &flags)) {
            Ok(config) => Ok(config.kafka),
            Err(ConfigError(errors)) => Err(errors),
        }
    }

    /// Fails the test unless the settings have one error, about `key` and with the words.
    #[track_caller]
    fn refuses(settings: &[&str], key: &str, words: &str) {
        let errors = resolve(settings).expect_err("an error");
        let begin = format!("kafka.{key} = ");
        assert!(
            errors.len() == 1 && errors[0].starts_with(&begin) && errors[0].contains(words),
            "{settings:?}: {errors:?}"
        );
        assert!(!errors[0].contains("hush"), "{errors:?}");
    }

    fn without<const N: usize>(settings: [&'static str; N], name: &str) -> Vec<&'static str> {
        settings.into_iter().filter(|setting| !setting.starts_with(name)).collect()
    }

    fn with<'s>(settings: &[&'s str], more: &[&'s str]) -> Vec<&'s str> {
        [settings, more].concat()
    }

    #[test]
    fn settings_that_are_set_go_to_librdkafka() {
        let plain = resolve(&PLAIN).unwrap();
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
        ] {
            assert!(plain.security.contains(&(name, value.to_owned())), "{:?}", plain.security);
        }
        assert_eq!(plain.oauth, None);

        let pem =
            ["security_protocol=ssl", "ssl_certificate_pem=C", "ssl_key_pem=K", "ssl_ca_pem=A"];
        let texts = resolve(&pem).unwrap().security;
        for (name, value) in
            [("ssl.certificate.pem", "C"), ("ssl.key.pem", "K"), ("ssl.ca.pem", "A")]
        {
            assert!(texts.contains(&(name, value.to_owned())), "{texts:?}");
        }
    }

    #[test]
    fn oauthbearer_needs_its_keys_and_no_password() {
        let oauth = resolve(&OAUTH).unwrap().oauth.unwrap();
        assert_eq!((oauth.client_id.as_str(), oauth.scope), ("stocklock", None));

        for name in ["oauth_token_url", "oauth_client_id", "oauth_client_secret"] {
            refuses(&without(OAUTH, name), name, "with OAUTHBEARER");
        }
        refuses(&with(&OAUTH, &["sasl_username=u"]), "sasl_username", "PLAIN or SCRAM");
        refuses(&with(&OAUTH, &["sasl_password=hush"]), "sasl_password", "PLAIN or SCRAM");
        for url in ["http://id.example.com/token", "https://u:hush@a/token", "https://a/t#x", "t"] {
            let url = format!("oauth_token_url={url}");
            refuses(&with(&without(OAUTH, "oauth_token_url"), &[&url]), "oauth_token_url", "URL");
        }
        let loopback = "oauth_token_url=http://127.0.0.1:8080/token";
        resolve(&with(&without(OAUTH, "oauth_token_url"), &[loopback])).unwrap();
    }

    #[test]
    fn settings_that_the_protocol_does_not_use_are_refused() {
        for (setting, key) in [
            ("sasl_mechanism=PLAIN", "sasl_mechanism"),
            ("sasl_username=u", "sasl_username"),
            ("sasl_password=hush", "sasl_password"),
            ("oauth_client_secret=hush", "oauth_client_secret"),
            ("oauth_scope=s", "oauth_scope"),
        ] {
            refuses(&[setting], key, "set that to sasl_ssl");
            refuses(&["security_protocol=ssl", setting], key, "set that to sasl_ssl");
        }
        for key in ["ssl_ca_location", "ssl_ca_pem", "ssl_key_pem", "ssl_key_password"] {
            let setting = format!("{key}=v");
            refuses(&[&setting], key, "has no TLS: set that to ssl or sasl_ssl");
        }
        let plaintext = with(&PLAIN[1..], &["security_protocol=sasl_plaintext"]);
        refuses(&with(&plaintext, &["ssl_ca_location=f"]), "ssl_ca_location", "has no TLS");
        refuses(&with(&PLAIN, &["oauth_scope=s"]), "oauth_scope", "set that to OAUTHBEARER");
    }

    #[test]
    fn a_mechanism_of_another_build_is_refused() {
        for mechanism in ["GSSAPI", "SCRAM", "AWS_MSK_IAM"] {
            let set = format!("sasl_mechanism={mechanism}");
            let settings = with(&without(PLAIN, "sasl_mechanism"), &[&set]);
            refuses(&settings, "sasl_mechanism", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTH");
        }
        for name in ["sasl_mechanism", "sasl_username", "sasl_password"] {
            refuses(&without(PLAIN, name), name, "kafka.security_protocol is sasl_ssl");
        }
    }

    #[test]
    fn a_certificate_and_a_key_go_together_as_file_or_text() {
        let ssl = ["security_protocol=ssl"];
        for kind in ["location", "pem"] {
            let [certificate, key] =
                ["certificate", "key"].map(|name| format!("ssl_{name}_{kind}=v"));
            refuses(&with(&ssl, &[&certificate]), "ssl_key_location", "or set kafka.ssl_key_pem");
            refuses(&with(&ssl, &[&key]), "ssl_certificate_location", "ssl_certificate_pem");
            resolve(&with(&ssl, &[&certificate, &key])).unwrap();
            let twice = with(&ssl, &["ssl_ca_location=f", "ssl_ca_pem=hush"]);
            refuses(&twice, "ssl_ca_pem", "remove one");
        }
        let password = with(&ssl, &["ssl_key_password=hush"]);
        refuses(&password, "ssl_key_password", "this is its password");
    }
}
