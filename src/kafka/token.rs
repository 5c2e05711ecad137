//! Tokens for brokers that authenticate with OAUTHBEARER.
//!
//! A process has one [`TokenSource`] for each client of a token endpoint. Its thread asks the
//! endpoint and renews the token before it ends, so that the callbacks of librdkafka only read
//! memory.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kafka_token::Token;
use prometheus::IntCounter;
use rdkafka::client::OAuthToken;

use super::token_endpoint;
use crate::{
    backoff::{Backoff, jittered},
    config::{KafkaConfig, OAuthConfig},
    error_text,
    log_limiter::LogLimiter,
    telemetry::Metrics,
};

/// The label of the token endpoint in metrics.
const DEPENDENCY: &str = "token_endpoint";
/// How long a client waits for the first token of its process. Its callbacks wait too.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The same after there was a token once. The endpoint is away then.
const LATER_WAIT: Duration = Duration::from_secs(1);
/// A token that ends sooner is not given to a client any more.
const MIN_LEFT: Duration = Duration::from_millis(500);
/// The longest that a client keeps its token before it asks for the present one. It only costs a
/// look at memory. The token may have been replaced since the brokers refused it.
const CLIENT_KEEPS: Duration = Duration::from_secs(30);
/// The least time between two tokens if brokers refuse them.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The part of a token's life after which the next token is asked for.
const RENEW_AFTER: f64 = 0.7;
/// The shortest pause after a failure.
const MIN_PAUSE: Duration = Duration::from_millis(500);

/// The sources of this process. Clients with equal settings share their token.
static SOURCES: LazyLock<Mutex<BTreeMap<OAuthConfig, Arc<TokenSource>>>> =
    LazyLock::new(Mutex::default);

/// A token with its end.
#[derive(Clone)]
pub(super) struct IssuedToken {
    pub(super) value: String,
    pub(super) principal: String,
    pub(super) ends_at: SystemTime,
}

/// Gets tokens for the clients of a process.
pub(super) struct TokenSource {
    oauth: OAuthConfig,
    state: Mutex<State>,
    changed: Condvar,
    retries: OnceLock<IntCounter>,
    log: LogLimiter,
}

#[derive(Default)]
struct State {
    token: Option<IssuedToken>,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// A broker has refused a token since the present one was received.
    is_refused: bool,
    /// A client found the token ended, although the last attempt gave it. The wall clock has
    /// jumped, or the machine was suspended.
    is_wanted: bool,
    had_token: bool,
}

/// What gives a client its tokens. Empty if the brokers want none.
#[derive(Clone, Default)]
pub(super) struct Tokens(Option<Arc<TokenSource>>);

impl Tokens {
    /// The source of these settings. The first call starts its thread.
    pub(super) fn of(kafka: &KafkaConfig) -> Self {
        Self(kafka.oauth.as_ref().map(|oauth| {
            let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sources.entry(oauth.clone()).or_insert_with(|| TokenSource::start(oauth)))
        }))
    }

    /// The present token, as librdkafka's callback returns it. Blocks for 5 s at most, and only
    /// while there is no token. Fails with the cause; librdkafka asks again 10 s later.
    pub(super) fn for_callback(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let token = self.present()?;
        Ok(OAuthToken {
            lifetime_ms: millis(token.ends_at.min(SystemTime::now() + CLIENT_KEEPS)),
            token: token.value,
            principal_name: token.principal,
        })
    }

    /// The same for a client that is given its token, because it has no callback. `None` if the
    /// brokers want no token.
    pub(super) fn for_client(&self) -> Result<Option<Token>, String> {
        if self.0.is_none() {
            return Ok(None);
        }
        let token = self.present()?;
        let ends_at_ms = millis(token.ends_at);
        Ok(Some(Token { value: token.value, principal: token.principal, ends_at_ms }))
    }

    fn present(&self) -> Result<IssuedToken, String> {
        let source = self.0.as_ref().ok_or("kafka.sasl_mechanism is not OAUTHBEARER")?;
        source.present()
    }
}

/// Makes the process ask for new tokens soon: a broker refuses the present one.
pub(super) fn note_refused_token() {
    for source in SOURCES.lock().unwrap_or_else(PoisonError::into_inner).values() {
        source.state().is_refused = true;
        source.changed.notify_all();
    }
}

/// Counts the attempts to get a token that are repeated, if brokers want tokens.
pub(crate) fn count_token_retries(kafka: &KafkaConfig, metrics: &Metrics) {
    let Some(source) = Tokens::of(kafka).0 else { return };
    metrics.begin_retries(&[DEPENDENCY]);
    let _counted_already = source.retries.set(metrics.retries.with_label_values(&[DEPENDENCY]));
}

impl TokenSource {
    fn start(oauth: &OAuthConfig) -> Arc<Self> {
        let source = Arc::new(Self {
            oauth: oauth.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
            retries: OnceLock::new(),
            log: LogLimiter::default(),
        });
        let renewed = Arc::clone(&source);
        let started =
            std::thread::Builder::new().name("tokens".to_owned()).spawn(move || renewed.renew());
        if let Err(error) = started {
            source.state().failure = Some(format!("cannot start a thread: {error}"));
        }
        source
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for tokens as long as the process lives.
    fn renew(&self) {
        let mut backoff = Backoff::default();
        loop {
            let pause = match token_endpoint::ask(&self.oauth) {
                Ok(token) => {
                    backoff = Backoff::default();
                    self.note_token(token)
                }
                Err(error) => {
                    self.note_failure(&error_text::with_causes(error.as_ref()));
                    backoff.next_delay().max(jittered(MIN_PAUSE, 1.0..2.0))
                }
            };
            self.pause(pause);
        }
    }

    /// Waits for the time until the next attempt, or less if a broker refuses the token or a
    /// client finds it ended.
    fn pause(&self, time: Duration) {
        let least = time.min(jittered(REFUSED_PAUSE, 1.0..1.25));
        std::thread::sleep(least);
        self.wait_for_demand(time.saturating_sub(least));
    }

    fn wait_for_demand(&self, limit: Duration) {
        let is_good = |state: &mut State| !state.is_refused && !state.is_wanted;
        drop(self.changed.wait_timeout_while(self.state(), limit, is_good));
    }

    /// Returns how long the token is used until the next one is asked for.
    fn note_token(&self, token: IssuedToken) -> Duration {
        let left = token.ends_at.duration_since(SystemTime::now()).unwrap_or_default();
        let mut state = self.state();
        let is_first = !state.had_token;
        if is_first || state.is_refused || state.failure.is_some() {
            let (endpoint, lives_s) = (token_endpoint::shown(&self.oauth), left.as_secs());
            let principal = &token.principal;
            tracing::info!(endpoint, principal, lives_s, "token received");
        }
        *state = State { token: Some(token), had_token: true, ..State::default() };
        self.changed.notify_all();
        left.mul_f64(RENEW_AFTER)
    }

    fn note_failure(&self, why: &str) {
        if let Some(retries) = self.retries.get() {
            retries.inc();
        }
        let endpoint = token_endpoint::shown(&self.oauth);
        if let Some(dropped_lines) = self.log.is_due(why, Instant::now()) {
            let advice = token_endpoint::advice(why);
            tracing::warn!(endpoint, error = why, advice, dropped_lines, "no token received");
        }
        self.state().failure = Some(format!("{endpoint}: {why}"));
        self.changed.notify_all();
    }

    /// The token, if it lives for long enough. Wakes the thread that renews it if it does not: the
    /// thread waits by the monotonic clock, and the end of a token is a time of the wall clock.
    fn present(&self) -> Result<IssuedToken, String> {
        let is_usable = |token: &IssuedToken| token.ends_at > SystemTime::now() + MIN_LEFT;
        let usable = |state: &State| state.token.clone().filter(is_usable);
        let mut state = self.state();
        // After a failure, the backoff says when to ask again.
        if state.token.is_some() && state.failure.is_none() && usable(&state).is_none() {
            state.is_wanted = true;
            self.changed.notify_all();
        }
        let limit = if state.had_token { LATER_WAIT } else { FIRST_WAIT };
        let waits = |state: &mut State| usable(state).is_none();
        let waited = self.changed.wait_timeout_while(state, limit, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        usable(&state).ok_or_else(|| {
            let silent = || format!("{}: no answer yet", token_endpoint::shown(&self.oauth));
            state.failure.clone().unwrap_or_else(silent)
        })
    }
}

fn millis(time: SystemTime) -> i64 {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source whose token has ended. It has no thread.
    fn source(failure: Option<String>) -> TokenSource {
        let oauth = OAuthConfig {
            token_url: "http://127.0.0.1:9/token".to_owned(),
            client_id: "client".to_owned(),
            client_secret: String::new(),
            scope: None,
            ca: None,
        };
        let ended = IssuedToken {
            value: "hush".to_owned(),
            principal: "client".to_owned(),
            ends_at: SystemTime::now() - Duration::from_secs(60),
        };
        let token = Some(ended);
        let state = State { token, failure, had_token: true, ..State::default() };
        TokenSource {
            oauth,
            state: Mutex::new(state),
            changed: Condvar::new(),
            retries: OnceLock::new(),
            log: LogLimiter::default(),
        }
    }

    #[test]
    fn a_client_that_finds_the_token_ended_wakes_its_renewal() {
        let source = source(None);
        let begun = Instant::now();

        std::thread::scope(|scope| {
            scope.spawn(|| source.wait_for_demand(Duration::from_secs(60)));
            assert!(source.present().is_err());
        });

        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_client_does_not_shorten_the_pause_after_a_failure() {
        let source = source(Some("status 503".to_owned()));

        let failed = source.present().map(|_| ());

        assert_eq!(failed, Err("status 503".to_owned()));
        assert!(!source.state().is_wanted);
    }
}
