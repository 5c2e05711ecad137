//! A token endpoint (RFC 6749) that answers as a test says. Its tokens are JWTs, with a signature
//! if it has a key.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use openssl::{
    base64::encode_block,
    pkey::PKey,
    ssl::{SslAcceptor, SslMethod},
    x509::X509,
};
use serde_json::{Value, json};

use super::{AUDIENCE, Authority, ISSUER, IssuerKey, Subject, in_seconds};

/// The secret of the client. It has characters that a form encodes.
pub(crate) const SECRET: &str = "hush-token +&=";
const CLIENT: &str = "stocklock";
/// What the client sends: the id and the secret, each encoded as in a form.
const CREDENTIALS: &str = "stocklock:hush-token+%2B%26%3D";
const HUGE_BYTES: usize = 4 << 20;

/// How the endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Issuing {
    /// Tokens that live for so many seconds.
    Tokens(i64),
    /// Tokens that no broker accepts, since they ended an hour ago. The answer says else.
    EndedTokens,
    /// It closes the connection without an answer.
    Away,
    /// It never answers.
    Hanging,
    /// This body.
    Text(&'static str),
    /// A body without end, nearly.
    Huge,
}

/// An endpoint that listens on the loopback.
pub(crate) struct TokenEndpoint {
    pub(crate) url: String,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    issuing: Issuing,
    issued: u64,
    key: Option<IssuerKey>,
    silent: Vec<Box<dyn Client>>,
}

/// A client's connection, with TLS or without.
trait Client: Read + Write + Send {}

impl<C: Read + Write + Send> Client for C {}

impl TokenEndpoint {
    pub(crate) fn issuing(issuing: Issuing) -> Self {
        let connected = |client: TcpStream| Some(Box::new(client) as Box<dyn Client>);
        Self::serving("http", issuing, connected)
    }

    /// Its certificate is for `127.0.0.1`, signed by `authority`.
    pub(crate) fn over_tls(issuing: Issuing, authority: &Authority) -> Self {
        let (certificate, key) = authority.sign(Subject { name: "127.0.0.1", is_expired: false });
        let certificate = X509::from_pem(certificate.as_bytes()).expect("a certificate");
        let key = PKey::private_key_from_pem(key.as_bytes()).expect("a key");
        let mut tls = SslAcceptor::mozilla_intermediate(SslMethod::tls()).expect("TLS");
        tls.set_certificate(&certificate).expect("a certificate");
        tls.set_private_key(&key).expect("its key");
        let tls = tls.build();
        let connected =
            move |client: TcpStream| Some(Box::new(tls.accept(client).ok()?) as Box<dyn Client>);
        Self::serving("https", issuing, connected)
    }

    /// `connected` is `None` for a client that does not trust the endpoint.
    fn serving(
        scheme: &str,
        issuing: Issuing,
        connected: impl Fn(TcpStream) -> Option<Box<dyn Client>> + Send + 'static,
    ) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("{scheme}://{}/token", server.local_addr().expect("an address"));
        let shared =
            Arc::new(Mutex::new(Shared { issuing, issued: 0, key: None, silent: Vec::new() }));
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in server.incoming() {
                if let Some(client) = connected(client.expect("a client")) {
                    answer(client, &state);
                }
            }
        });
        Self { url, shared }
    }

    pub(crate) fn now(&self, issuing: Issuing) {
        let mut shared = self.shared.lock().expect("no panic");
        shared.issuing = issuing;
        shared.silent.clear();
    }

    /// From now on, this key signs the tokens.
    pub(crate) fn signs_with(&self, key: IssuerKey) {
        self.shared.lock().expect("no panic").key = Some(key);
    }

    /// How many tokens were issued.
    pub(crate) fn issued(&self) -> u64 {
        self.shared.lock().expect("no panic").issued
    }

    /// Settings of a client at a listener: `("KAFKA__OAUTH_CLIENT_ID", …)`.
    pub(crate) fn settings<'s>(&'s self, listener: &'s str) -> Vec<(&'static str, &'s str)> {
        vec![
            ("KAFKA__BROKERS", listener),
            ("KAFKA__SECURITY_PROTOCOL", "sasl_plaintext"),
            ("KAFKA__SASL_MECHANISM", "OAUTHBEARER"),
            ("KAFKA__OAUTH_TOKEN_URL", &self.url),
            ("KAFKA__OAUTH_CLIENT_ID", CLIENT),
            ("KAFKA__OAUTH_CLIENT_SECRET", SECRET),
            ("KAFKA__OAUTH_SCOPE", "orders stock"),
        ]
    }
}

fn answer(mut client: Box<dyn Client>, shared: &Mutex<Shared>) {
    let request = request(&mut *client);
    let mut shared = shared.lock().expect("no panic");
    let (status, body) = match shared.issuing {
        Issuing::Tokens(life_s) if is_authorised(&request) => {
            shared.issued += 1;
            ("200 OK", token(shared.key.as_ref(), life_s, life_s).to_string())
        }
        Issuing::EndedTokens => ("200 OK", token(shared.key.as_ref(), -3600, 300).to_string()),
        Issuing::Tokens(_) => {
            // A description may repeat what was sent, so no client may log it.
            let refusal = json!({"error": "invalid_client", "error_description": request});
            ("401 Unauthorized", refusal.to_string())
        }
        Issuing::Text(text) => ("200 OK", text.to_owned()),
        Issuing::Huge => ("200 OK", "x".repeat(HUGE_BYTES)),
        Issuing::Away => return,
        Issuing::Hanging => {
            shared.silent.push(client);
            return;
        }
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _sent = client.write_all((head + &body).as_bytes());
}

/// Reads a request with its short body.
fn request(client: &mut dyn Client) -> String {
    let (mut request, mut part) = (String::new(), [0; 4096]);
    while !request.contains("grant_type=client_credentials") {
        match client.read(&mut part) {
            Ok(length) if length > 0 => request += &String::from_utf8_lossy(&part[..length]),
            _ => break,
        }
    }
    request
}

fn is_authorised(request: &str) -> bool {
    let header = format!("authorization: Basic {}", encode_block(CREDENTIALS.as_bytes()));
    request.lines().any(|line| line.eq_ignore_ascii_case(&header))
        && request.ends_with("scope=orders+stock")
}

/// A token that ends in `life_s`. The answer says `expires_in_s`.
fn token(key: Option<&IssuerKey>, life_s: i64, expires_in_s: i64) -> Value {
    let claims = json!({
        "sub": "stocklock", "iss": ISSUER, "aud": AUDIENCE, "iat": in_seconds(0),
        "exp": in_seconds(life_s),
    });
    let token = key.map_or_else(|| unsigned(&claims), |key| key.sign(&claims));
    json!({"access_token": token, "token_type": "Bearer", "expires_in": expires_in_s})
}

fn unsigned(claims: &Value) -> String {
    let part = |json: &Value| {
        let text = encode_block(json.to_string().as_bytes()).replace('+', "-").replace('/', "_");
        text.trim_end_matches('=').to_owned()
    };
    format!("{}.{}.", part(&json!({"alg": "none"})), part(claims))
}
