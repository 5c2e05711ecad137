//! The filter of the log lines, which an operator changes while the process runs.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use tracing::level_filters::LevelFilter;
use tracing_log::{AsLog as _, log};
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::log_level;

/// The longest directives, bytes.
pub(crate) const MAX_DIRECTIVES_BYTES: usize = 4096;
/// How long a change may hold. After it, the filter is `log.level` again.
const MIN_CHANGE: Duration = Duration::from_secs(1);
const MAX_CHANGE: Duration = Duration::from_secs(7 * 86_400);

/// The filter of this process's log lines. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogFilter(Arc<Inner>);

struct Inner {
    handle: reload::Handle<EnvFilter, Registry>,
    /// The directives of `log.level`.
    configured: String,
    current: Mutex<Current>,
}

struct Current {
    directives: String,
    /// How often the filter was replaced.
    generation: u64,
    /// When the filter becomes `log.level` again, and the task that makes it so.
    ends: Option<(DateTime<Utc>, AbortOnDropHandle<()>)>,
}

/// Why the filter was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogFilterError {
    /// The directives or the duration are wrong. The text says what, where, and what is allowed.
    #[error("{0}")]
    Invalid(String),
    #[error("the log filter cannot be replaced: {0}")]
    Replace(#[from] reload::Error),
}

/// A filter, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShownLogFilter {
    pub(crate) directives: String,
    /// The directives of `log.level`.
    pub(crate) configured: String,
    /// When the filter becomes `log.level` again. `None`: not by itself.
    pub(crate) until: Option<DateTime<Utc>>,
}

impl LogFilter {
    /// `handle` replaces the filter, which is of the directives `configured` now.
    pub(super) fn new(handle: reload::Handle<EnvFilter, Registry>, configured: &str) -> Self {
        let current =
            Mutex::new(Current { directives: configured.to_owned(), generation: 0, ends: None });
        Self(Arc::new(Inner { handle, configured: configured.to_owned(), current }))
    }

    pub(crate) fn show(&self) -> ShownLogFilter {
        self.shown(&self.current())
    }

    /// Replaces the filter, and logs that. After `duration`, the filter is `log.level` again;
    /// `None`: it stays until the next change or the end of the process. Must be called in the
    /// async runtime.
    ///
    /// Fails with [`LogFilterError::Invalid`] if the directives are wrong or too long, or if the
    /// duration is not between 1 s and 7 d.
    pub(crate) fn change(
        &self,
        directives: &str,
        duration: Option<Duration>,
    ) -> Result<ShownLogFilter, LogFilterError> {
        let directives = directives.trim();
        check(directives, duration).map_err(LogFilterError::Invalid)?;
        let until = duration.and_then(|duration| {
            Utc::now().checked_add_signed(TimeDelta::from_std(duration).ok()?)
        });
        let mut current = self.current();
        self.replace(&mut current, directives, until)?;
        let generation = current.generation;
        current.ends = duration.zip(until).map(|(duration, until)| {
            let filter = self.clone();
            let ending = tokio::spawn(async move {
                tokio::time::sleep(duration).await;
                if let Err(error) = filter.end(generation) {
                    tracing::error!(%error, "log filter not changed");
                }
            });
            (until, AbortOnDropHandle::new(ending))
        });
        Ok(self.shown(&current))
    }

    /// Makes the filter `log.level` again. Fails with [`LogFilterError::Replace`].
    pub(crate) fn reset(&self) -> Result<ShownLogFilter, LogFilterError> {
        self.reset_from(&mut self.current())
    }

    /// Ends the change that made this generation. Does nothing if the filter was replaced since: a
    /// timer cannot be stopped once it has fired, and waits while another change is being made.
    fn end(&self, generation: u64) -> Result<(), LogFilterError> {
        let mut current = self.current();
        if current.generation == generation {
            self.reset_from(&mut current)?;
        }
        Ok(())
    }

    fn reset_from(&self, current: &mut Current) -> Result<ShownLogFilter, LogFilterError> {
        self.replace(current, &self.0.configured, None)?;
        current.ends = None;
        Ok(self.shown(current))
    }

    fn replace(
        &self,
        current: &mut Current,
        directives: &str,
        until: Option<DateTime<Utc>>,
    ) -> Result<(), LogFilterError> {
        let filter = EnvFilter::try_new(directives)
            .map_err(|error| LogFilterError::Invalid(error.to_string()))?;
        let until = until.map(|until| until.to_rfc3339_opts(SecondsFormat::Secs, true));
        let former = current.directives.clone();
        let log_change = || tracing::info!(directives, former, until, "log filter changed");
        // The line is written under the filter that lets it pass.
        let is_logged_before = tracing::enabled!(tracing::Level::INFO);
        if is_logged_before {
            log_change();
        }
        self.0.handle.reload(filter)?;
        directives.clone_into(&mut current.directives);
        current.generation += 1;
        // Libraries that use the crate `log` ask this level first.
        log::set_max_level(LevelFilter::current().as_log());
        if !is_logged_before {
            log_change();
        }
        Ok(())
    }

    fn shown(&self, current: &Current) -> ShownLogFilter {
        ShownLogFilter {
            directives: current.directives.clone(),
            configured: self.0.configured.clone(),
            until: current.ends.as_ref().map(|(until, _)| *until),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails with what is wrong with the directives or with the duration of a change.
pub(crate) fn check(directives: &str, duration: Option<Duration>) -> Result<(), String> {
    if directives.len() > MAX_DIRECTIVES_BYTES {
        return Err(format!(
            "expected directives of {MAX_DIRECTIVES_BYTES} bytes at most, found {}",
            directives.len()
        ));
    }
    log_level(directives)?;
    match duration {
        Some(duration) if !(MIN_CHANGE..=MAX_CHANGE).contains(&duration) => Err(format!(
            "for: expected a duration from 1s to 7d, found {}",
            humantime::format_duration(duration)
        )),
        Some(_) | None => Ok(()),
    }
}

impl ShownLogFilter {
    pub(crate) fn to_json(&self) -> Value {
        let until = self.until.map(|until| until.to_rfc3339_opts(SecondsFormat::Secs, true));
        json!({"directives": self.directives, "configured": self.configured, "until": until})
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.show()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> (reload::Layer<EnvFilter, Registry>, LogFilter) {
        let (layer, handle) = reload::Layer::new(EnvFilter::new("error"));
        (layer, LogFilter::new(handle, "error"))
    }

    #[tokio::test]
    async fn the_timer_of_an_earlier_change_ends_no_later_one() {
        let (_layer, filter) = filter();
        let hour = Some(Duration::from_secs(3600));
        filter.change("warn", hour).unwrap();
        let earlier = filter.current().generation;
        let later = filter.change("off", hour).unwrap();

        filter.end(earlier).unwrap();
        assert_eq!(filter.show(), later);

        let generation = filter.current().generation;
        filter.end(generation).unwrap();
        assert_eq!((filter.show().directives.as_str(), filter.show().until), ("error", None));
    }

    #[tokio::test]
    async fn a_filter_that_cannot_be_replaced_is_shown_as_it_was() {
        let (layer, filter) = filter();
        drop(layer);

        assert!(matches!(filter.change("warn", None), Err(LogFilterError::Replace(_))));

        assert_eq!(filter.show().directives, "error");
    }
}
