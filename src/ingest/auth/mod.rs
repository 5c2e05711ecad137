//! Who may use the API, and how much of it.
//!
//! | file | does |
//! | --- | --- |
//! | `guard.rs` | decides about each request before its handler |
//! | `scope.rs` | scopes, and which of them an operation needs: the API's document says it |
//! | `tokens.rs`, `grant.rs` | the file of static tokens |
//! | `jwt.rs`, `key_set.rs`, `jwks.rs` | JWTs, the keys that sign them, and their provider |
//! | `look.rs` | looks at the provider for `stocklock doctor` |
//! | `principals.rs`, `bucket.rs` | what each principal uses |
//! | `refusal.rs` | why a request is refused: the answer, and the label of the metric |

mod bucket;
mod grant;
mod guard;
mod jwks;
mod jwt;
mod key_set;
mod look;
mod principals;
mod refusal;
mod scope;
mod tokens;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use anyhow::Context as _;
use prometheus::IntCounterVec;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};

pub(crate) use guard::Caller;
pub(super) use guard::{NoPlaceToWait, RECHECK_EVERY, StreamedOperation, guard};
pub(crate) use look::look_at_provider;
pub(super) use refusal::{HANDSHAKE, REASONS};
pub(crate) use scope::Scope;
pub(crate) use tokens::{NAME_RULE, NewToken, is_name, new_token};

use self::{
    bucket::Bucket,
    grant::Grant,
    jwks::Provider,
    jwt::{Expected, Verified},
    principals::Principals,
    refusal::Refusal,
    scope::Operations,
    tokens::{Tokens, TokensError},
};
use crate::{
    config::{AuthConfig, LimitsConfig},
    lifecycle::Shutdown,
    log_limiter::LogLimiter,
    telemetry::{Component, Metrics},
    watched_files,
};

/// The most JWTs that are remembered as checked. A check takes some 100 µs of CPU time.
const MAX_REMEMBERED: usize = 10_000;

/// Who may use the API, and how much of it.
pub(crate) struct Access {
    operations: Operations,
    /// `None`: there are no static tokens.
    tokens: Option<RwLock<Arc<Tokens>>>,
    /// `None`: JWTs are not accepted.
    jwt: Option<JwtAccess>,
    limits: LimitsConfig,
    principals: Principals,
    all: Arc<Bucket>,
    refusals: IntCounterVec,
    log: LogLimiter,
}

struct JwtAccess {
    provider: Provider,
    expected: Expected,
    /// By the digest of the token.
    remembered: Cache<[u8; 32], Arc<Verified>>,
}

impl Access {
    /// Reads the file of tokens. Connects to nothing yet.
    ///
    /// Fails if the file cannot be used, or the authorities of the provider.
    pub(crate) fn open(
        auth: &AuthConfig,
        limits: &LimitsConfig,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let tokens = match &auth.tokens_file {
            None => None,
            Some(file) => {
                let named = || format!("auth.tokens_file: {}", file.display());
                let tokens = Tokens::parse(&watched_files::read(file).with_context(named)?)
                    .and_then(Tokens::require_some);
                Some(RwLock::new(Arc::new(tokens.with_context(named)?)))
            }
        };
        let jwt = match &auth.jwks {
            None => None,
            Some(jwks) => Some(JwtAccess {
                provider: Provider::new(jwks)?,
                expected: Expected {
                    issuer: jwks.issuer.clone(),
                    audience: jwks.audience.clone(),
                    leeway: jwks.leeway,
                },
                remembered: Cache::new(MAX_REMEMBERED),
            }),
        };
        for reason in REASONS {
            metrics.http_refusals.with_label_values(&[reason]);
        }
        Ok(Self {
            operations: Operations::of(&super::api::own_document()),
            tokens,
            jwt,
            limits: limits.clone(),
            principals: Principals::default(),
            all: Arc::new(Bucket::new(Instant::now())),
            refusals: metrics.http_refusals.clone(),
            log: LogLimiter::default(),
        })
    }

    /// Whether clients must authenticate.
    pub(crate) fn is_on(&self) -> bool {
        self.tokens.is_some() || self.jwt.is_some()
    }

    /// Uses the tokens of a new content of the file: none if it has none. Keeps what it has if the
    /// content cannot be used.
    pub(crate) fn replace_tokens(&self, content: &[u8]) -> Result<(), TokensError> {
        let parsed = Arc::new(Tokens::parse(content)?);
        if let Some(tokens) = &self.tokens {
            *tokens.write().unwrap_or_else(PoisonError::into_inner) = parsed;
        }
        Ok(())
    }

    /// Reads the keys of the provider until a stop is requested. Does nothing without a provider.
    /// `report`: whether an attempt succeeded.
    pub(crate) async fn read_keys(
        &self,
        health: Component,
        report: impl Fn(bool),
        shutdown: Shutdown,
    ) {
        if let Some(jwt) = &self.jwt {
            jwt.provider.run(health, report, shutdown).await;
        }
    }

    fn find_token(&self, token: &str) -> Option<Grant> {
        let tokens = self.tokens.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
        let tokens = Arc::clone(&tokens);
        tokens.find(token).cloned()
    }

    /// What a token grants by what is known now.
    ///
    /// Fails with [`Refusal::UnknownKey`] if newer keys of the provider may know its key.
    fn known_grant(&self, token: &str) -> Result<Grant, Refusal> {
        match (self.find_token(token), &self.jwt) {
            (Some(grant), _) => Ok(grant),
            // Before keys are needed: without them, the client of a removed token would come again.
            (None, Some(jwt)) if jwt::has_three_parts(token) => jwt.verify(token),
            (None, _) => Err(Refusal::UnknownToken),
        }
    }

    /// What a token grants after the keys of the provider were read again.
    async fn ask_for_key(&self, token: &str) -> Result<Grant, Refusal> {
        if let Some(jwt) = &self.jwt {
            jwt.provider.ask(Instant::now()).await;
        }
        self.known_grant(token)
    }

    /// Counts a refused request, and logs it at a limited rate.
    fn count(&self, refusal: &Refusal, route: &str) {
        let reason = refusal.reason();
        self.refusals.with_label_values(&[reason]).inc();
        if let Some(dropped) = self.log.is_due(reason, Instant::now()) {
            tracing::warn!(reason, route, dropped, "request refused");
        }
    }
}

impl JwtAccess {
    fn verify(&self, token: &str) -> Result<Grant, Refusal> {
        let keys = self.provider.keys().ok_or(Refusal::NoKeys)?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        let remembered = self.remembered.get(&digest);
        if let Some(verified) = remembered.filter(|old| old.is_current(&keys, &self.expected)) {
            return Ok(verified.grant.clone());
        }
        let verified = jwt::verify(token, &keys, &self.expected)?;
        let grant = verified.grant.clone();
        self.remembered.insert(digest, Arc::new(verified));
        Ok(grant)
    }
}
