//! Signals → drain → stop, as a value that is passed along.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const SECOND_SIGNAL_STATUS: i32 = 130;

/// Asks a process to stop. Whoever holds it finishes what it has begun and returns.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Stops on SIGTERM and SIGINT; a second signal ends the process at once, with status 130.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let requested = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping: no new work is taken, work in hand is finished");
            requested.request();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("stopped at once, at the second signal");
            std::process::exit(SECOND_SIGNAL_STATUS);
        });
        Ok(shutdown)
    }

    pub fn request(&self) {
        self.0.cancel();
    }

    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns once a stop is requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }
}
