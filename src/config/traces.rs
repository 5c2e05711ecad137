//! The settings of traces: the variables `OTEL_…` of OpenTelemetry, under their own names.
//!
//! The exporter itself reads the headers of its request: `…_HEADERS`.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

/// The longest time and the largest queue that a variable may ask for.
const MAX_TIME_MS: u64 = 600_000;
const MAX_QUEUED_SPANS: usize = 1_000_000;
const MAX_LINKS: usize = 100_000;
const PROTOCOL: &str = "http/protobuf";

/// Where spans go, and which.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TracesConfig {
    /// The URL that spans are sent to.
    pub(crate) endpoint: String,
    /// How long a request may take.
    pub(crate) timeout: Duration,
    /// The file of the authorities that sign the collector's certificate; `None`: the system's.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) sampler: SamplerConfig,
    pub(crate) queue: SpanQueueConfig,
    /// The most links of a span.
    pub(crate) max_links: usize,
}

/// Which traces are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SamplerConfig {
    /// The share of the traces that begin here, 0 to 1.
    pub(crate) ratio: f64,
    /// Whether a caller's trace is sampled if the caller samples it.
    pub(crate) is_parent_based: bool,
}

/// The spans that wait for the exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanQueueConfig {
    /// A span above it is dropped.
    pub(crate) max_queued: usize,
    /// The most spans of one request, at most `max_queued`.
    pub(crate) max_batch: usize,
    /// The longest time that a span waits for others.
    pub(crate) delay: Duration,
}

/// The settings of traces as the environment has them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TracesSettings {
    /// `None`: traces are off.
    pub(crate) traces: Option<TracesConfig>,
    /// What is wrong with a variable, and what is done instead.
    pub(crate) warnings: Vec<String>,
}

impl TracesSettings {
    /// Reads the variables of the environment. A variable without a usable value has its default,
    /// as OpenTelemetry specifies.
    pub(crate) fn of_variables(variables: impl Iterator<Item = (String, String)>) -> Self {
        let is_set =
            |(name, value): &(String, String)| name.starts_with("OTEL_") && !value.is_empty();
        let mut read = Variables { set: variables.filter(is_set).collect(), warnings: Vec::new() };
        let traces = read.traces();
        Self { traces, warnings: read.warnings }
    }
}

/// The variables that are set and not empty.
struct Variables {
    set: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.set.get(name).map(|value| value.trim())
    }

    /// The variable of traces, or else the one of all signals.
    fn otlp(&self, name: &str) -> Option<&str> {
        let of_traces = self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
        of_traces.or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }

    fn traces(&mut self) -> Option<TracesConfig> {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let exporters = self.get("OTEL_TRACES_EXPORTER").unwrap_or("otlp").to_owned();
        if !exporters.split(',').any(|exporter| exporter.trim() == "otlp") {
            if exporters != "none" {
                self.warn("OTEL_TRACES_EXPORTER", &exporters, "otlp or none; traces are off");
            }
            return None;
        }
        let endpoint = self.endpoint()?;
        let protocol = self.otlp("PROTOCOL").unwrap_or(PROTOCOL).to_owned();
        if protocol != PROTOCOL {
            self.warn("OTEL_EXPORTER_OTLP_PROTOCOL", &protocol, "http/protobuf; traces are off");
            return None;
        }
        self.warn_of_unsupported();
        let max_queued = self.number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, MAX_QUEUED_SPANS);
        Some(TracesConfig {
            endpoint,
            timeout: self.otlp_timeout(),
            certificate: self.otlp("CERTIFICATE").map(PathBuf::from),
            sampler: self.sampler(),
            queue: SpanQueueConfig {
                max_queued,
                max_batch: self
                    .number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, MAX_QUEUED_SPANS)
                    .min(max_queued),
                delay: self.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            },
            max_links: self.number("OTEL_SPAN_LINK_COUNT_LIMIT", 128, MAX_LINKS),
        })
    }

    /// Variables of the specification that have no effect here.
    fn warn_of_unsupported(&mut self) {
        for (name, instead) in [
            ("COMPRESSION", "spans are sent without compression"),
            ("CLIENT_CERTIFICATE", "no client certificate is sent"),
            ("CLIENT_KEY", "no client certificate is sent"),
        ] {
            let is_set = |value: &str| !(name == "COMPRESSION" && value == "none");
            if self.otlp(name).is_some_and(is_set) {
                let warning = format!("OTEL_EXPORTER_OTLP_{name}: not supported; {instead}");
                self.warnings.push(warning);
            }
        }
    }

    /// The endpoint of all signals is a base, to which the path of traces is added.
    fn endpoint(&mut self) -> Option<String> {
        let of_traces = self.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").map(str::to_owned);
        let of_all = self.get("OTEL_EXPORTER_OTLP_ENDPOINT");
        let of_all = of_all.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
        let endpoint = of_traces.or(of_all)?;
        // The exporter would send no password of the URL, and would show it in its errors.
        let is_usable = url::Url::parse(&endpoint).is_ok_and(|url| {
            let is_http = ["http", "https"].contains(&url.scheme()) && url.has_host();
            is_http && url.username().is_empty() && url.password().is_none()
        });
        if !is_usable {
            self.warnings.push(
                "OTEL_EXPORTER_OTLP_ENDPOINT: expected an http or https URL without a user; traces \
                 are off"
                    .to_owned(),
            );
        }
        is_usable.then_some(endpoint)
    }

    /// `OTEL_BSP_EXPORT_TIMEOUT` bounds the export, which is one request.
    fn otlp_timeout(&mut self) -> Duration {
        let of_traces = "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT";
        let of_request = match self.get(of_traces) {
            Some(_) => self.millis(of_traces, 10_000),
            None => self.millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000),
        };
        of_request.min(self.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000))
    }

    fn sampler(&mut self) -> SamplerConfig {
        let named = self.get("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_always_on").to_owned();
        let (is_parent_based, root) = match named.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, named.as_str()),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio(),
            _ => {
                let expected = "always_on, always_off or traceidratio, each also behind \
                                parentbased_; the sampler is parentbased_always_on";
                self.warn("OTEL_TRACES_SAMPLER", &named, expected);
                return SamplerConfig { ratio: 1.0, is_parent_based: true };
            }
        };
        SamplerConfig { ratio, is_parent_based }
    }

    fn ratio(&mut self) -> f64 {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.get(name).map(str::to_owned) else { return 1.0 };
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        if ratio.is_none() {
            self.warn(name, &text, "a number from 0 to 1; the ratio is 1");
        }
        ratio.unwrap_or(1.0)
    }

    fn millis(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.within(name, default, 1, MAX_TIME_MS))
    }

    fn number(&mut self, name: &str, default: usize, max: usize) -> usize {
        self.within(name, default, 1, max)
    }

    fn within<T>(&mut self, name: &str, default: T, min: T, max: T) -> T
    where
        T: FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        let Some(text) = self.get(name).map(str::to_owned) else { return default };
        let value = text.parse().ok().filter(|value| (min..=max).contains(value));
        value.unwrap_or_else(|| {
            self.warn(name, &text, &format!("{min} to {max}; it is {default}"));
            default
        })
    }

    fn warn(&mut self, name: &str, value: &str, expected: &str) {
        self.warnings.push(format!("{name} = {value:?}: expected {expected}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    fn read(variables: &[(&str, &str)]) -> TracesSettings {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        TracesSettings::of_variables(variables.iter().map(text))
    }

    fn on(variables: &[(&str, &str)]) -> TracesConfig {
        let settings = read(&[&[ENDPOINT], variables].concat());
        assert_eq!(settings.warnings, [""; 0]);
        settings.traces.unwrap()
    }

    #[test]
    fn traces_are_off_without_an_endpoint() {
        for variables in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[("OTEL_TRACES_EXPORTER", "otlp")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
        ] {
            let off = TracesSettings { traces: None, warnings: Vec::new() };
            assert_eq!(read(variables), off, "{variables:?}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let TracesConfig { endpoint, timeout, certificate, sampler, queue, max_links } = on(&[]);

        assert_eq!(endpoint, "http://collector:4318/v1/traces");
        assert_eq!((timeout, certificate), (Duration::from_secs(10), None));
        assert_eq!(sampler, SamplerConfig { ratio: 1.0, is_parent_based: true });
        let delay = Duration::from_secs(5);
        assert_eq!(queue, SpanQueueConfig { max_queued: 2_048, max_batch: 512, delay });
        assert_eq!(max_links, 128);
    }

    #[test]
    fn the_variables_of_traces_come_before_those_of_all_signals() {
        let config = on(&[
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/x"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "8"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca"),
        ]);

        assert_eq!(config.endpoint, "https://traces/x");
        assert_eq!(config.timeout, Duration::from_millis(8));
        assert_eq!(config.certificate, Some("/ca".into()));
    }

    #[test]
    fn each_sampler_of_the_specification_is_known() {
        for (name, ratio, is_parent_based) in [
            ("always_on", 1.0, false),
            ("always_off", 0.0, false),
            ("traceidratio", 0.25, false),
            ("parentbased_always_on", 1.0, true),
            ("parentbased_always_off", 0.0, true),
            ("parentbased_traceidratio", 0.25, true),
        ] {
            let arg = ("OTEL_TRACES_SAMPLER_ARG", "0.25");
            let config = on(&[("OTEL_TRACES_SAMPLER", name), arg]);

            assert_eq!(config.sampler, SamplerConfig { ratio, is_parent_based }, "{name}");
        }
    }

    #[test]
    fn a_variable_without_a_usable_value_is_named() {
        for (name, value, is_on) in [
            ("OTEL_TRACES_SAMPLER", "jaeger_remote", true),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0", true),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s", true),
            ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1", true),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", true),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/secret.crt", true),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/secret.key", true),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false),
            ("OTEL_TRACES_EXPORTER", "zipkin", false),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", false),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector", false),
        ] {
            let TracesSettings { traces, warnings } = read(&[ENDPOINT, (name, value)]);

            assert_eq!(traces.is_some(), is_on, "{name}");
            assert!(warnings.len() == 1 && warnings[0].starts_with(name), "{warnings:?}");
            assert!(!warnings[0].contains("secret"), "{warnings:?}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert_eq!(read(&[&[ENDPOINT], &ratio[..]].concat()).warnings.len(), 1);
    }
}
