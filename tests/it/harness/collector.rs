use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    process::Child,
};

use serde_json::Value;

use super::{Program, Role, World, wait_for};

/// A collector of OpenTelemetry, which keeps the spans that it receives. It is killed when it is
/// dropped.
pub(crate) struct Collector {
    pub(crate) url: String,
    process: Child,
    file: tempfile::TempPath,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let program = Program::python("tests/clients/collector.py");
        let mut process = program.start(&[&file.display().to_string()]);
        let mut url = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut url).expect("its URL");
        Self { url: url.trim().to_owned(), process, file }
    }

    /// Starts a role that sends its spans to this collector, under a service's name of its own. A
    /// role that is to die may do so before it is ready.
    pub(crate) async fn traced(
        &self,
        world: &World,
        role: &str,
        settings: &[(&str, &str)],
    ) -> Role {
        let service = format!("stocklock-{role}");
        let own = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.url.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_SERVICE_NAME", &service),
        ];
        let started = Role::spawn(&world.env, role, &[&own, settings].concat());
        if !settings.iter().any(|(name, _)| *name == "STOCKLOCK_CRASH_AT") {
            started.ready().await;
        }
        started
    }

    /// All spans that it has received.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let text = std::fs::read_to_string(&self.file).expect("its file");
        // The last line may not be complete.
        let spans = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        spans.map(Span).collect()
    }

    /// Waits until a trace has so many spans.
    pub(crate) async fn trace(&self, trace_id: &str, spans: usize) -> Trace {
        wait_for(async || {
            let all = self.spans();
            let found: Vec<_> =
                all.into_iter().filter(|s| s.text("trace_id") == trace_id).collect();
            match found.len() {
                count if count == spans => Ok(Trace(found)),
                count => Err(format!("{count} of {spans} spans: {}", Trace(found).tree(""))),
            }
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("it has ended");
    }
}

/// A span as the collector received it.
#[derive(Debug, Clone)]
pub(crate) struct Span(Value);

impl Span {
    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.0["is_error"] == true
    }

    pub(crate) fn attribute(&self, name: &str) -> &Value {
        &self.0["attributes"][name]
    }

    pub(crate) fn service(&self) -> &str {
        self.0["resource"]["service.name"].as_str().unwrap_or_default()
    }

    /// The ids of the spans that it has a link to.
    pub(crate) fn links(&self) -> Vec<&str> {
        let links = self.0["links"].as_array().expect("links").iter();
        links.map(|link| link["span_id"].as_str().expect("an id")).collect()
    }

    pub(crate) fn dropped_links(&self) -> u64 {
        self.0["dropped_links"].as_u64().expect("a count")
    }
}

/// The spans of one trace.
#[derive(Debug)]
pub(crate) struct Trace(Vec<Span>);

impl Trace {
    /// The only span of this name.
    pub(crate) fn only(&self, name: &str) -> &Span {
        let mut found = self.0.iter().filter(|span| span.text("name") == name);
        match (found.next(), found.next()) {
            (Some(span), None) => span,
            _ => panic!("not one span {name}: {}", self.tree("")),
        }
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.0
    }

    /// A line for each span, below its parent: name, kind, service, and what became of the order.
    /// The names are shown without `prefix`.
    pub(crate) fn tree(&self, prefix: &str) -> String {
        let ids: HashMap<_, _> = self.0.iter().map(|span| (span.text("span_id"), span)).collect();
        let mut text = String::new();
        let is_root = |span: &&Span| !ids.contains_key(span.text("parent_span_id"));
        for root in self.0.iter().filter(is_root) {
            self.branch(root, 0, prefix, &mut text);
        }
        text
    }

    fn branch(&self, span: &Span, depth: usize, prefix: &str, text: &mut String) {
        let name = span.text("name").replacen(prefix, "", 1);
        let name = format!("{:indent$}{name}", "", indent = 2 * depth);
        let (kind, service) = (span.text("kind"), span.service());
        let status = span.attribute("stocklock.order.status").as_str();
        let code = span.attribute("http.response.status_code").as_u64();
        let outcome = status.map(str::to_owned).or(code.map(|code| code.to_string()));
        let line = format!("{name:<34}{kind:<10}{service:<24}{}", outcome.unwrap_or_default());
        writeln!(text, "{}", line.trim_end()).expect("a string takes it");
        let id = span.text("span_id");
        let mut below: Vec<_> =
            self.0.iter().filter(|span| span.text("parent_span_id") == id).collect();
        below.sort_by_key(|span| span.0["start"].as_u64());
        for child in below {
            self.branch(child, depth + 1, prefix, text);
        }
    }
}
