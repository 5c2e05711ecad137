//! The keys of the provider of JWTs (RFC 7517): read at an interval, and kept while it is away.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::refusal::Refusal;
use crate::{
    backoff::{Backoff, jittered},
    config::JwksConfig,
    error_text,
    lifecycle::Shutdown,
    log_limiter::LogLimiter,
    telemetry::Component,
    trust,
};

/// The algorithms that a JWT may be signed with. None of them has a secret that ingest would share.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
/// The modulus of RSA, 2048 to 4096 bits, in digits of base64.
const MODULUS_DIGITS: RangeInclusive<usize> = 342..=683;
const MAX_KEYS: usize = 100;
const MAX_ANSWER_BYTES: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most time for a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The least time between two readings of the keys that unknown keys cause.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The shortest pause after a failure.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The keys of a provider.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<SigningKey>,
    digest: [u8; 32],
}

/// A key, and the algorithms that it may be used with.
#[derive(Debug)]
pub(super) struct SigningKey {
    id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

impl KeySet {
    /// Parses a JWKS. Passes over keys of another kind, such as those for encryption.
    ///
    /// Fails if no key is left.
    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let document: Value = serde_json::from_slice(bytes).context("the answer is no JSON")?;
        let listed = document["keys"].as_array().context("the answer has no member keys")?;
        if listed.len() > MAX_KEYS {
            bail!("the answer has more than {MAX_KEYS} keys");
        }
        let keys: Vec<_> = listed.iter().filter_map(SigningKey::parse).collect();
        if keys.is_empty() {
            bail!("the answer has no key that a JWT may be signed with");
        }
        Ok(Self { keys, digest: Sha256::digest(document["keys"].to_string()).into() })
    }

    /// The key of a token, for the algorithm that the token names. A token without the id of a key
    /// is accepted if there is one key.
    ///
    /// Fails with [`Refusal::UnknownKey`], or with [`Refusal::WrongAlgorithm`] if the key is for
    /// another algorithm.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&SigningKey, Refusal> {
        let is_named = |key: &&SigningKey| match id {
            Some(_) => key.id.as_deref() == id,
            None => self.keys.len() == 1,
        };
        let mut named = self.keys.iter().filter(is_named).peekable();
        named.peek().ok_or(Refusal::UnknownKey)?;
        named.find(|key| key.algorithms.contains(&algorithm)).ok_or(Refusal::WrongAlgorithm)
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Whether a modulus of RSA has 2048 to 4096 bits.
fn is_good_modulus(base64: &str) -> bool {
    // Leading zeros do not count.
    MODULUS_DIGITS.contains(&base64.trim_start_matches('A').len())
}

impl SigningKey {
    fn parse(listed: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(listed.clone()).ok()?;
        let verifies = jwk
            .common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let is_for_signatures =
            matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        if !verifies || !is_for_signatures {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if is_good_modulus(&rsa.n) => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
            // A secret, or a kind that this program does not know.
            _ => return None,
        };
        if let Some(named) = listed["alg"].as_str() {
            algorithms.retain(|algorithm| format!("{algorithm:?}") == named);
        }
        let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| !algorithms.is_empty())?;
        Some(Self { id: jwk.common.key_id, algorithms, key })
    }
}

/// The provider, and the keys that it had last.
#[derive(Debug)]
pub(super) struct Provider {
    url: String,
    refresh: Duration,
    http: reqwest::Client,
    /// `None` until they are read for the first time.
    keys: watch::Sender<Option<Arc<KeySet>>>,
    /// The last reading that an unknown key asked for.
    asked: watch::Sender<Asked>,
    /// The number of the last [`Asked`] reading that has ended.
    answered: watch::Sender<u64>,
    log: LogLimiter,
}

#[derive(Debug, Default)]
struct Asked {
    number: u64,
    at: Option<Instant>,
}

impl Provider {
    /// Does not connect. Fails if the authorities of `auth.jwks_ca_location` cannot be used.
    pub(super) fn new(config: &JwksConfig) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        let JwksConfig { url, ca, .. } = config;
        let trusted = trust::authorities(url, ca.as_deref(), "auth.jwks_ca_location")?;
        if let Some(authorities) = trusted {
            builder = builder.tls_certs_only(authorities);
        }
        if config.url.starts_with("http://") {
            // The provider is on this machine, and a proxy would answer in its place.
            builder = builder.no_proxy();
        }
        Ok(Self {
            url: config.url.clone(),
            refresh: config.refresh,
            http: builder.build()?,
            keys: watch::Sender::new(None),
            asked: watch::Sender::new(Asked::default()),
            answered: watch::Sender::new(0),
            log: LogLimiter::default(),
        })
    }

    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.borrow().clone()
    }

    /// Reads the keys for a token whose key is not known. Many requests share one reading, and
    /// there is one a minute at most. Waits for the last of these readings, for
    /// [`ANSWER_TIMEOUT`] at most. Returns at once if that reading has ended.
    pub(super) async fn ask(&self, now: Instant) {
        let mut wanted = 0;
        self.asked.send_if_modified(|asked| {
            let is_due = asked.at.is_none_or(|at| now.saturating_duration_since(at) >= ASK_EVERY);
            if is_due {
                *asked = Asked { number: asked.number + 1, at: Some(now) };
            }
            wanted = asked.number;
            is_due
        });
        let mut answered = self.answered.subscribe();
        let has_ended = answered.wait_for(|answered| *answered >= wanted);
        let _answered = timeout(ANSWER_TIMEOUT, has_ended).await;
    }

    /// Reads the keys until a stop is requested. Ready once they were read for the first time.
    /// `report`: whether an attempt succeeded.
    pub(super) async fn run(&self, health: Component, report: impl Fn(bool), shutdown: Shutdown) {
        let (mut backoff, mut asked) = (Backoff::default(), self.asked.subscribe());
        loop {
            let number = asked.borrow_and_update().number;
            let Ok(read) = shutdown.interruptible(self.read()).await else { return };
            report(read.is_ok());
            let delay = match read {
                Ok(keys) => {
                    backoff = Backoff::default();
                    self.replace(keys);
                    health.ready();
                    jittered(self.refresh, 0.9..1.1)
                }
                Err(error) => {
                    self.log_failure(&error);
                    if self.keys().is_none() {
                        health.not_ready("the provider's keys were not read yet");
                    }
                    backoff.next_delay().max(MIN_PAUSE)
                }
            };
            self.answered.send_replace(number);
            let waited = health.waiting(async {
                tokio::select! {
                    () = shutdown.requested() => false,
                    Ok(()) = asked.changed() => true,
                    () = sleep(delay) => true,
                }
            });
            if !waited.await {
                return;
            }
        }
    }

    fn replace(&self, keys: KeySet) {
        let is_new = self.keys().is_none_or(|last| last.digest != keys.digest);
        if is_new {
            tracing::info!(keys = keys.keys.len(), "keys of the provider read");
            self.keys.send_replace(Some(Arc::new(keys)));
        }
    }

    fn log_failure(&self, error: &anyhow::Error) {
        let text = error_text::with_causes(error.as_ref());
        if let Some(dropped) = self.log.is_due("keys", Instant::now()) {
            let url = shown(&self.url);
            tracing::warn!(url, error = text, dropped, "keys of the provider not read");
        }
    }

    /// The error has no URL: its query may have a secret.
    async fn read(&self) -> anyhow::Result<KeySet> {
        let sent = self.http.get(&self.url).send().await;
        let mut response = sent.map_err(reqwest::Error::without_url)?;
        // A redirect has no keys, and is not followed.
        ensure!(response.status().is_success(), "status {}", response.status());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER_BYTES {
                bail!("the answer has more than {MAX_ANSWER_BYTES} bytes");
            }
        }
        KeySet::parse(&bytes)
    }
}

/// The URL as logs show it: without a query.
fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn rsa(id: &str) -> Value {
        json!({"kty": "RSA", "kid": id, "n": "Q".repeat(342), "e": "AQAB"})
    }

    fn parse(keys: &[Value]) -> anyhow::Result<KeySet> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes())
    }

    #[test]
    fn keys_that_sign_are_kept_with_their_algorithms() {
        let mut pinned = rsa("b");
        pinned["alg"] = json!("PS256");

        let keys = parse(&[rsa("a"), pinned]).unwrap();

        let find = |id, algorithm| keys.find(id, algorithm).map(|key| key.algorithms.clone());
        assert_eq!(find(Some("a"), Algorithm::RS256).unwrap(), RSA);
        assert_eq!(find(Some("b"), Algorithm::PS256).unwrap(), [Algorithm::PS256]);
        assert_eq!(find(Some("b"), Algorithm::RS256).unwrap_err(), Refusal::WrongAlgorithm);
        assert_eq!(find(Some("c"), Algorithm::RS256).unwrap_err(), Refusal::UnknownKey);
        let nameless = find(None, Algorithm::RS256).unwrap_err();
        assert_eq!(nameless, Refusal::UnknownKey, "two keys, and the token names none");
        assert!(parse(&[rsa("a")]).unwrap().find(None, Algorithm::RS256).is_ok());
    }

    #[test]
    fn of_two_keys_of_one_id_the_algorithm_decides() {
        let mut other = rsa("a");
        other["alg"] = json!("PS512");
        let mut one = rsa("a");
        one["alg"] = json!("RS256");

        let keys = parse(&[one, other]).unwrap();

        let found = keys.find(Some("a"), Algorithm::PS512).unwrap();
        assert_eq!(found.algorithms, [Algorithm::PS512]);
    }

    #[test]
    fn secrets_weak_keys_and_keys_for_encryption_are_passed_over() {
        let [mut encrypts, mut hmac, mut weak] = ["a", "b", "c"].map(rsa);
        let [mut padded, mut huge, mut wraps] = ["e", "f", "g"].map(rsa);
        encrypts["use"] = json!("enc");
        wraps["key_ops"] = json!(["wrapKey"]);
        hmac["alg"] = json!("HS256");
        weak["n"] = json!("Q".repeat(171));
        padded["n"] = json!("A".repeat(171) + &"Q".repeat(171));
        huge["n"] = json!("Q".repeat(684));
        let secret = json!({"kty": "oct", "kid": "d", "k": "c2VjcmV0"});

        let of_another_kind = [secret, json!(7), json!({"kty": "new"})];
        for key in [encrypts, wraps, hmac, weak, padded, huge].into_iter().chain(of_another_kind) {
            assert!(parse(std::slice::from_ref(&key)).is_err(), "{key}");
            assert!(parse(&[key, rsa("z")]).is_ok());
        }
        assert!(KeySet::parse(b"<html>").is_err());
        assert!(KeySet::parse(b"[]").is_err());
        assert!(parse(&vec![rsa("a"); 101]).is_err());
    }

    #[tokio::test]
    async fn an_answer_without_success_is_named_by_its_status() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?key=hush", listener.local_addr().unwrap());
        let provider = Provider::new(&JwksConfig {
            url: url.clone(),
            ca: None,
            issuer: String::new(),
            audience: String::new(),
            refresh: Duration::MAX,
            leeway: Duration::ZERO,
        });
        let provider = provider.unwrap();
        let answering = async {
            let (mut client, _) = listener.accept().await.unwrap();
            let _read = client.read(&mut [0; 4096]).await.unwrap();
            let redirect = "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
            client.write_all(redirect.as_bytes()).await.unwrap();
        };

        let (redirected, ()) = tokio::join!(provider.read(), answering);
        drop(listener);
        let away = error_text::with_causes(provider.read().await.unwrap_err().as_ref());

        assert_eq!(redirected.unwrap_err().to_string(), "status 302 Found");
        assert!(!away.contains("hush"), "{away}");
        assert_eq!(format!("{}?key=hush", shown(&url)), url);
    }
}
