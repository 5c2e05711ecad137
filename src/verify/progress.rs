use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// A progress bar on standard error, if that is a terminal. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Fails only if the template is wrong.
    pub(crate) fn new() -> Result<Self, indicatif::style::TemplateError> {
        let style = ProgressStyle::with_template(
            "checking {bar:40} {human_pos} of about {human_len} rows, {per_sec}, {elapsed}  {msg}",
        )?;
        let bar = ProgressBar::new(0).with_style(style);
        bar.enable_steady_tick(REDRAW_INTERVAL);
        Ok(Self(bar))
    }

    /// One that nobody sees.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Whether anybody sees it.
    pub(super) fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Adds rows that are yet to be read.
    pub(super) fn expect(&self, rows: u64) {
        self.0.inc_length(rows);
    }

    pub(super) fn advance(&self, rows: u64) {
        self.0.inc(rows);
        // The expected numbers are estimates.
        if self.0.length().is_some_and(|expected| expected < self.0.position()) {
            self.0.set_length(self.0.position());
        }
    }

    /// Says what is awaited.
    pub(super) fn say(&self, what: String) {
        self.0.set_message(what);
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
