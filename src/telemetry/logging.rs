use std::{fmt, io, io::IsTerminal as _};

use serde::ser::{SerializeMap, Serializer as _};
use serde_json::{Serializer, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use super::LogFilter;
use crate::config::{LogConfig, LogFormat};

/// Starts to write log lines to standard error, and returns their filter. Lines that cannot be
/// written are lost. Fails if `log.level` is neither a level nor a list of directives, or if
/// logging was started before.
pub(crate) fn init_logging(log: &LogConfig) -> anyhow::Result<LogFilter> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| {
        anyhow::anyhow!("log.level = {:?}: expected a level or directives: {e}", log.level)
    })?;
    let (filter, handle) = reload::Layer::new(filter);
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let initialised = match log.format {
        LogFormat::Json => filtered.with(lines.event_format(JsonLines)).try_init(),
        LogFormat::Text => filtered.with(lines.with_ansi(io::stderr().is_terminal())).try_init(),
    };
    initialised.map_err(|e| anyhow::anyhow!("cannot start logging: {e}"))?;
    Ok(LogFilter::new(handle, &log.level))
}

/// Writes one JSON object per line: `timestamp`, `level`, `message` and the other fields, `target`.
/// A list is an array.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = Vec::new();
        let mut write = || {
            let mut serializer = Serializer::new(&mut line);
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry("timestamp", &timestamp)?;
            map.serialize_entry("level", metadata.level().as_str())?;
            let mut fields = Fields { map, written: Ok(()) };
            event.record(&mut fields);
            fields.written?;
            fields.map.serialize_entry("target", metadata.target())?;
            fields.map.end()
        };
        write().map_err(|_: serde_json::Error| fmt::Error)?;
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

struct Fields<M: SerializeMap> {
    map: M,
    written: Result<(), M::Error>,
}

impl<M: SerializeMap> Fields<M> {
    fn write(&mut self, field: &Field, value: impl Into<Value>) {
        // These fields come from the bridge of the crate `log`; the metadata has them already.
        if self.written.is_ok() && !field.name().starts_with("log.") {
            self.written =
                self.map.serialize_entry(field.name().trim_start_matches("r#"), &value.into());
        }
    }
}

impl<M: SerializeMap> Visit for Fields<M> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let list = list(&format!("{value:#?}"));
        self.write(field, list.unwrap_or_else(|| format!("{value:?}").into()));
    }
}

/// Parses a list that `{:#?}` wrote, which has one item per line. `None` for any other text, and
/// for a list whose items take several lines.
fn list(text: &str) -> Option<Value> {
    if text == "[]" {
        return Some(Value::Array(Vec::new()));
    }
    let items = text.strip_prefix("[\n")?.strip_suffix(",\n]")?.split(",\n").map(|item| {
        let item = item.strip_prefix("    ").filter(|item| !item.contains('\n'))?;
        // JSON has the same numbers, texts and booleans. Any other item becomes a text.
        Some(serde_json::from_str(item).unwrap_or_else(|_| item.into()))
    });
    items.collect::<Option<Vec<_>>>().map(Value::Array)
}

#[cfg(test)]
mod tests;
