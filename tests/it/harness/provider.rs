//! A provider of JWTs: its keys, which it serves as a test says, and the tokens that it signs.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://id.example.com";
pub(crate) const AUDIENCE: &str = "stocklock";

/// A key of a provider.
pub(crate) struct IssuerKey {
    id: String,
    key: EncodingKey,
    algorithm: Algorithm,
    /// As a JWKS has it.
    pub(crate) public: Value,
}

/// How a provider answers.
#[derive(Debug, Clone)]
pub(crate) enum Answering {
    Keys(Vec<Value>),
    Text(&'static str),
    /// It answers with these keys after this time.
    Late(Duration, Vec<Value>),
    /// It closes the connection without an answer.
    Away,
    /// It never answers.
    Hanging,
}

/// A provider that listens on the loopback.
pub(crate) struct Provider {
    pub(crate) url: String,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    answering: Answering,
    readings: u64,
    silent: Vec<TcpStream>,
}

impl IssuerKey {
    /// A key of the curve P-256.
    pub(crate) fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let pem = pair.serialize_pem();
        Self::of(id, EncodingKey::from_ec_pem(pem.as_bytes()).expect("a key"), Algorithm::ES256)
    }

    pub(crate) fn of(id: &str, key: EncodingKey, algorithm: Algorithm) -> Self {
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).expect("a public key");
        jwk.common.key_id = Some(id.to_owned());
        let public = serde_json::to_value(jwk).expect("JSON");
        Self { id: id.to_owned(), key, algorithm, public }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        encode(&header, claims, &self.key).expect("signed")
    }
}

/// Seconds from now on as a claim has a time.
pub(crate) fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("a time") + seconds
}

/// Good claims of a subject that may read orders.
pub(crate) fn claims(subject: &str) -> Value {
    json!({
        "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "exp": in_seconds(600),
        "scope": "openid orders:read",
    })
}

impl Provider {
    pub(crate) fn serving(keys: &[&IssuerKey]) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/keys", server.local_addr().expect("an address"));
        let answering = Answering::Keys(keys.iter().map(|key| key.public.clone()).collect());
        let shared = Shared { answering, readings: 0, silent: Vec::new() };
        let shared = Arc::new(Mutex::new(shared));
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in server.incoming() {
                answer(client.expect("a client"), &state);
            }
        });
        Self { url, shared }
    }

    pub(crate) fn now(&self, answering: Answering) {
        self.shared.lock().expect("no panic").answering = answering;
    }

    pub(crate) fn rotates_to(&self, keys: &[&IssuerKey]) {
        self.now(Answering::Keys(keys.iter().map(|key| key.public.clone()).collect()));
    }

    /// How often the keys were asked for.
    pub(crate) fn readings(&self) -> u64 {
        self.shared.lock().expect("no panic").readings
    }

    /// The settings of a role that trusts it.
    pub(crate) fn settings<'s>(&'s self, refresh: &'s str) -> Vec<(&'static str, &'s str)> {
        vec![
            ("STOCKLOCK__AUTH__JWKS_URL", &self.url),
            ("STOCKLOCK__AUTH__ISSUER", ISSUER),
            ("STOCKLOCK__AUTH__AUDIENCE", AUDIENCE),
            ("STOCKLOCK__AUTH__JWKS_REFRESH", refresh),
            ("STOCKLOCK__AUTH__CLOCK_LEEWAY", "5s"),
        ]
    }
}

fn answer(mut client: TcpStream, shared: &Mutex<Shared>) {
    let mut request = [0; 4096];
    let _read = client.read(&mut request);
    let mut shared = shared.lock().expect("no panic");
    shared.readings += 1;
    let answering = shared.answering.clone();
    let body = match answering {
        Answering::Late(time, keys) => {
            drop(shared);
            std::thread::sleep(time);
            json!({"keys": keys}).to_string()
        }
        Answering::Keys(keys) => json!({"keys": keys}).to_string(),
        Answering::Text(text) => text.to_owned(),
        Answering::Away => return,
        Answering::Hanging => {
            shared.silent.push(client);
            return;
        }
    };
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _sent = client.write_all((head + &body).as_bytes());
}
