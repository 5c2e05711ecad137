//! The provider of JWTs: its keys are read at an interval, and kept while it is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::key_set::KeySet;
use crate::{
    backoff::{Backoff, jittered},
    config::JwksConfig,
    error_text,
    lifecycle::Shutdown,
    log_limiter::LogLimiter,
    telemetry::Component,
    trust,
};

const MAX_ANSWER_BYTES: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most time for a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The least time between two readings of the keys that unknown keys cause.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The shortest pause after a failure.
const MIN_PAUSE: Duration = Duration::from_secs(1);

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
        let is_new = self.keys().is_none_or(|last| last.digest() != keys.digest());
        if is_new {
            tracing::info!(keys = keys.len(), "keys of the provider read");
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
    pub(super) async fn read(&self) -> anyhow::Result<KeySet> {
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
pub(super) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

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
