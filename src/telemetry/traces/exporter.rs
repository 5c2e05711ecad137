use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use prometheus::IntCounter;
use tokio::sync::oneshot;

use super::{SpanQueue, Traces};
use crate::{config::TracesConfig, telemetry::Metrics, trust};

/// The time between two log lines about spans that were not exported.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// The service's name, unless the environment has one.
const SERVICE_NAME: &str = "stocklock";
/// What the detector of the SDK says if the environment has no name.
const UNKNOWN_SERVICE: &str = "unknown_service";

/// The thread that sends spans to the collector.
pub(crate) struct SpanExport {
    queue: Arc<SpanQueue>,
    ended: oneshot::Receiver<()>,
}

impl Traces {
    /// Starts the thread that sends spans. Does not wait for the collector.
    ///
    /// Fails if a certificate cannot be read, or if the thread cannot be started.
    pub(crate) fn start(
        config: &TracesConfig,
        metrics: &Metrics,
    ) -> anyhow::Result<(Self, SpanExport)> {
        let count = |result: &str| metrics.trace_spans.with_label_values(&[result]);
        let (exported, failed, dropped) = (count("exported"), count("failed"), count("dropped"));
        let queue = Arc::new(SpanQueue::new(config.queue, dropped.clone()));
        let exporting = Exporting {
            exporter: exporter(config.clone())?,
            queue: Arc::clone(&queue),
            exported,
            failed,
            dropped,
            unreported: Unreported::default(),
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("traces".into());
        let running = thread.spawn(move || {
            exporting.run();
            let _nobody_waits = end.send(());
        });
        running.context("cannot start the thread that sends traces")?;
        Ok((Self::on(config, Arc::clone(&queue)), SpanExport { queue, ended }))
    }
}

impl SpanExport {
    /// Sends the spans that wait, for `limit` at most. The others are lost.
    pub(crate) async fn stopped(self, limit: Duration) {
        self.queue.close();
        if tokio::time::timeout(limit, self.ended).await.is_err() {
            let waiting = self.queue.len();
            tracing::warn!(waiting, ?limit, "spans not exported before the stop");
        }
    }
}

/// Makes the exporter on a thread of its own: its client must not be made on one of the runtime's.
fn exporter(config: TracesConfig) -> anyhow::Result<SpanExporter> {
    let making = std::thread::spawn(move || {
        let mut client = reqwest::blocking::Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none());
        let TracesConfig { endpoint, certificate, .. } = &config;
        let file = certificate.as_deref();
        let trusted = trust::authorities(endpoint, file, "OTEL_EXPORTER_OTLP_CERTIFICATE")?;
        if let Some(authorities) = trusted {
            client = client.tls_certs_only(authorities);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.build()?)
            .with_endpoint(config.endpoint)
            .with_timeout(config.timeout);
        let mut exporter = exporter.build().context("cannot make the exporter of traces")?;
        exporter.set_resource(&resource());
        anyhow::Ok(exporter)
    });
    making.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked").into()))
}

/// The attributes that `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` give the process.
fn resource() -> Resource {
    let detected = Resource::builder().build();
    let name = detected.iter().find(|(key, _)| key.as_str() == "service.name");
    let is_named = name.is_some_and(|(_, name)| !name.as_str().starts_with(UNKNOWN_SERVICE));
    if is_named {
        return detected;
    }
    Resource::builder().with_service_name(SERVICE_NAME).build()
}

/// What the thread works with.
struct Exporting {
    exporter: SpanExporter,
    queue: Arc<SpanQueue>,
    exported: IntCounter,
    failed: IntCounter,
    dropped: IntCounter,
    unreported: Unreported,
}

/// The failures since the last log line.
#[derive(Default)]
struct Unreported {
    logged_at: Option<Instant>,
    failed: u64,
    /// Of the counter of dropped spans, what the log has reported.
    dropped_before: u64,
    error: Option<String>,
}

impl Exporting {
    /// Sends batches until the queue is closed and empty.
    fn run(mut self) {
        while let Some(spans) = self.queue.next_batch() {
            self.export(spans);
            self.report();
        }
    }

    fn export(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        if spans.is_empty() {
            return;
        }
        match futures::executor::block_on(self.exporter.export(spans)) {
            Ok(()) => self.exported.inc_by(count),
            Err(error) => {
                self.failed.inc_by(count);
                self.unreported.failed += count;
                self.unreported.error = Some(error.to_string());
            }
        }
    }

    /// Logs what was lost, once a minute at most.
    fn report(&mut self) {
        let unreported = &mut self.unreported;
        let dropped = self.dropped.get() - unreported.dropped_before;
        let is_due = unreported.logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if !is_due || unreported.failed + dropped == 0 {
            return;
        }
        let error = unreported.error.take();
        tracing::warn!(failed = unreported.failed, dropped, error, "spans not exported");
        *unreported = Unreported {
            logged_at: Some(Instant::now()),
            failed: 0,
            dropped_before: self.dropped.get(),
            error: None,
        };
    }
}
