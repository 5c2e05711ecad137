use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::{SharedParts, spawn};
use crate::{
    error_text,
    http::{ListenerTls, listener_files},
    ingest::Access,
    telemetry::{Component, Metrics},
    watched_files::{Reload, WatchedFiles},
};

/// Who may use the API, with the tasks that keep it up to date.
pub(super) struct RunningAccess {
    pub(super) access: Arc<Access>,
    /// `None`: no TLS.
    pub(super) tls: Option<Arc<ListenerTls>>,
    /// They end with the process.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl RunningAccess {
    /// Fails if a file of tokens or of certificates cannot be used.
    pub(super) fn start(shared: &SharedParts) -> anyhow::Result<Self> {
        let SharedParts { config, metrics, health, .. } = shared;
        // Before the client of the provider is made, which takes a moment: ingest must not look
        // ready until the keys are read.
        let keys = config.auth.jwks.as_ref().map(|_| health.register("keys of the provider"));
        let access = Arc::new(Access::open(&config.auth, &config.limits, metrics)?);
        let tls = config.http.tls.as_ref().map(ListenerTls::open).transpose()?.map(Arc::new);
        if !access.is_on() && !config.http.listen.ip().is_loopback() {
            tracing::warn!(
                address = %config.http.listen,
                "the HTTP API listens beyond the loopback without authentication"
            );
        }
        let mut tasks = Vec::new();
        tasks.extend(watch_tokens(shared, &access));
        tasks.extend(keys.map(|keys| read_keys(shared, &access, keys)));
        tasks.extend(watch_certificates(shared, tls.as_ref()));
        Ok(Self { access, tls, _tasks: tasks })
    }
}

fn watch_tokens(
    SharedParts { config, metrics, shutdown, .. }: &SharedParts,
    access: &Arc<Access>,
) -> Option<AbortOnDropHandle<()>> {
    let file = config.auth.tokens_file.clone()?;
    let files = WatchedFiles::new(vec![file.clone()]);
    let (report, access) = (reporter(metrics, "tokens"), Arc::clone(access));
    let replace = move |contents: &[Vec<u8>]| {
        let content = contents.first().map_or(&[][..], Vec::as_slice);
        let named = |error| format!("auth.tokens_file: {}: {error}", file.display());
        access.replace_tokens(content).map_err(named)
    };
    let report = move |reload| report(reload == Reload::Done);
    Some(spawn(files.watch("tokens", replace, report, shutdown.clone())))
}

fn read_keys(
    SharedParts { metrics, shutdown, .. }: &SharedParts,
    access: &Arc<Access>,
    health: Component,
) -> AbortOnDropHandle<()> {
    let (report, access) = (reporter(metrics, "keys"), Arc::clone(access));
    let shutdown = shutdown.clone();
    spawn(async move { access.read_keys(health, report, shutdown).await })
}

fn watch_certificates(
    SharedParts { config, metrics, shutdown, .. }: &SharedParts,
    tls: Option<&Arc<ListenerTls>>,
) -> Option<AbortOnDropHandle<()>> {
    let (tls, files) = (Arc::clone(tls?), listener_files(config.http.tls.as_ref()?));
    let report = reporter(metrics, "certificate");
    let replace = move |contents: &[Vec<u8>]| {
        tls.replace(contents).map_err(|error| error_text::with_causes(&error))
    };
    let report = move |reload| report(reload == Reload::Done);
    let files = WatchedFiles::new(files);
    Some(spawn(files.watch("certificate", replace, report, shutdown.clone())))
}

/// Counts readings of one kind. The argument says whether a reading succeeded.
fn reporter(metrics: &Metrics, what: &'static str) -> impl Fn(bool) + Send + 'static {
    let [ok, failed] =
        ["ok", "failed"].map(|result| metrics.http_reloads.with_label_values(&[what, result]));
    let outdated = metrics.http_outdated.with_label_values(&[what]);
    move |is_ok| {
        if is_ok {
            ok.inc();
        } else {
            failed.inc();
        }
        outdated.set(i64::from(!is_ok));
    }
}
