//! A broker with a listener for each way to connect: plaintext, TLS, client certificates, SASL.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use stocklock_servers::{Kafka, Lifetime, Patience, Running};
use tempfile::TempDir;

use super::{AUDIENCE, Authority, ISSUER, Provider, Subject, free_address, world::PATIENCE};

/// The user of the SASL listener.
pub(crate) const USER: &str = "stocklock";
pub(crate) const PASSWORD: &str = "hush-sasl";

/// The listeners beside the plain one: the name, and the protocol.
const LISTENERS: [(&str, &str); 7] = [
    ("TLS", "SSL"),
    ("MUTUAL", "SSL"),
    ("EXPIRED", "SSL"),
    ("OTHERNAME", "SSL"),
    ("SASL", "SASL_SSL"),
    ("OAUTH", "SASL_PLAINTEXT"),
    ("JWKS", "SASL_PLAINTEXT"),
];
/// The listeners with TLS, and their certificates.
const CERTIFICATES: [(&str, Subject); 5] = [
    ("tls", SERVER),
    ("mutual", SERVER),
    ("sasl", SERVER),
    ("expired", Subject { name: "127.0.0.1", is_expired: true }),
    ("othername", Subject { name: "nowhere.example", is_expired: false }),
];
const SERVER: Subject = Subject { name: "127.0.0.1", is_expired: false };
/// A loaded machine starts a broker slowly.
const START_PATIENCE: Duration = PATIENCE.saturating_mul(3);
/// A session ends after this time, milliseconds, unless the client authenticates again.
const SESSION_MS: &str = "5000";

/// A broker, and the authority that signed its certificates.
pub(crate) struct SecureKafka {
    pub(crate) authority: Authority,
    /// Its keys sign the tokens that the listener `JWKS` takes.
    pub(crate) provider: Provider,
    broker: Running<Kafka>,
    addresses: Vec<(&'static str, String)>,
    folder: TempDir,
}

impl SecureKafka {
    /// The broker that tests share while any of them runs.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<SecureKafka>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *shared = Arc::downgrade(&started);
            started
        })
    }

    /// Starts a broker, and waits until it answers.
    pub(crate) fn start() -> Self {
        let (authority, patience) = (Authority::new(), Patience::new(START_PATIENCE));
        let folder = tempfile::tempdir().expect("a folder");
        let plain = free_address();
        let addresses: Vec<_> = LISTENERS.map(|(name, _)| (name, free_address())).to_vec();
        let kafka = Kafka::new(folder.path().join("kafka"), &plain).expect("Kafka's jars");
        let controller = free_address();
        let kafka = kafka.with_controller(&controller);
        authority.write(&folder.path().join("ca.crt"));
        let provider = Provider::serving(&[]);
        let mut properties = properties(&folder, &plain, &controller, &addresses);
        properties.extend(validated_by(&provider));
        let properties: Vec<_> =
            properties.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let kafka =
            kafka.with_properties(&properties).with_scram_user("SCRAM-SHA-512", USER, PASSWORD);
        let allowed = "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls";
        let kafka = kafka.with_option(&format!("{allowed}={}", provider.url));
        write_certificates(&authority, &folder);
        let broker = Running::start(kafka, Lifetime::OfParent, &patience).expect("it answers");
        let addresses = addresses.into_iter().chain([("PLAIN", plain)]).collect();
        Self { authority, provider, broker, addresses, folder }
    }

    /// The address of a listener: `PLAIN` or one of [`LISTENERS`].
    pub(crate) fn address(&self, listener: &str) -> &str {
        let found = self.addresses.iter().find(|(name, _)| *name == listener);
        &found.unwrap_or_else(|| panic!("no listener {listener}")).1
    }

    /// The file of the authority's certificate.
    pub(crate) fn ca(&self) -> String {
        self.file("ca.crt")
    }

    /// Writes a certificate of the authority for a client, and its key. Answers both files.
    pub(crate) fn client_files(&self) -> [String; 2] {
        let (certificate, key) = self.client_texts();
        std::fs::write(self.folder.path().join("client.crt"), certificate).expect("written");
        std::fs::write(self.folder.path().join("client.key"), key).expect("written");
        ["client.crt", "client.key"].map(|name| self.file(name))
    }

    /// The same as texts.
    pub(crate) fn client_texts(&self) -> (String, String) {
        self.authority.sign(Subject { name: "client.example", is_expired: false })
    }

    /// Ends the broker as a crash does, gives it new certificates of the same authority, and
    /// starts it again.
    pub(crate) fn renew_certificates(&mut self) {
        self.broker.process.kill().expect("killed");
        write_certificates(&self.authority, &self.folder);
        self.broker.restart(&Patience::new(START_PATIENCE)).expect("it answers");
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn store(folder: &TempDir, listener: &str) -> PathBuf {
    folder.path().join(format!("{listener}.pem"))
}

/// Writes a store for each listener: the key, and the certificate.
fn write_certificates(authority: &Authority, folder: &TempDir) {
    for (listener, subject) in CERTIFICATES {
        let (certificate, key) = authority.sign(subject);
        std::fs::write(store(folder, listener), key + &certificate).expect("written");
    }
}

fn properties(
    folder: &TempDir,
    plain: &str,
    controller: &str,
    addresses: &[(&'static str, String)],
) -> Vec<(String, String)> {
    let advertised = addresses.iter().map(|(name, address)| format!("{name}://{address}"));
    let advertised: Vec<_> = advertised.chain([format!("PLAINTEXT://{plain}")]).collect();
    let protocols = LISTENERS.map(|(name, protocol)| format!("{name}:{protocol}")).join(",");
    let mut all = vec![
        ("listeners".to_owned(), format!("{},CONTROLLER://{controller}", advertised.join(","))),
        ("advertised.listeners".to_owned(), advertised.join(",")),
        (
            "listener.security.protocol.map".to_owned(),
            format!("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,{protocols}"),
        ),
        ("inter.broker.listener.name".to_owned(), "PLAINTEXT".to_owned()),
        ("broker.session.timeout.ms".to_owned(), "2000".to_owned()),
        ("broker.heartbeat.interval.ms".to_owned(), "500".to_owned()),
    ];
    let mut set = |listener: &str, key: &str, value: &str| {
        all.push((format!("listener.name.{listener}.{key}"), value.to_owned()));
    };
    for (listener, _) in CERTIFICATES {
        set(listener, "ssl.keystore.type", "PEM");
        let file = store(folder, listener).display().to_string();
        set(listener, "ssl.keystore.location", &file);
    }
    set("mutual", "ssl.client.auth", "required");
    set("mutual", "ssl.truststore.type", "PEM");
    let ca = folder.path().join("ca.crt").display().to_string();
    set("mutual", "ssl.truststore.location", &ca);
    let package = "org.apache.kafka.common.security";
    set("sasl", "sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-512");
    let plain_users =
        format!("{package}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";");
    set("sasl", "plain.sasl.jaas.config", &plain_users);
    let scram = format!("{package}.scram.ScramLoginModule required;");
    set("sasl", "scram-sha-512.sasl.jaas.config", &scram);
    // Its validator takes JWTs without a signature.
    set("oauth", "sasl.enabled.mechanisms", "OAUTHBEARER");
    let unsecured = format!(
        "{package}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"b\";"
    );
    set("oauth", "oauthbearer.sasl.jaas.config", &unsecured);
    set("oauth", "oauthbearer.connections.max.reauth.ms", SESSION_MS);
    all
}

/// The listener `JWKS` takes tokens that a key of the provider signed. Kafka checks them itself.
fn validated_by(provider: &Provider) -> Vec<(String, String)> {
    let package = "org.apache.kafka.common.security.oauthbearer";
    let login = format!("{package}.OAuthBearerLoginModule required;");
    let validator = format!("{package}.OAuthBearerValidatorCallbackHandler");
    let properties = [
        ("sasl.enabled.mechanisms", "OAUTHBEARER"),
        ("oauthbearer.sasl.jaas.config", &login),
        ("oauthbearer.sasl.server.callback.handler.class", &validator),
        ("oauthbearer.connections.max.reauth.ms", SESSION_MS),
        ("sasl.oauthbearer.jwks.endpoint.url", &provider.url),
        ("sasl.oauthbearer.expected.issuer", ISSUER),
        ("sasl.oauthbearer.expected.audience", AUDIENCE),
    ];
    let of_listener =
        |(key, value): (&str, &str)| (format!("listener.name.jwks.{key}"), value.into());
    properties.map(of_listener).to_vec()
}
