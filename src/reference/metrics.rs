use std::collections::BTreeMap;

use prometheus::proto::{MetricFamily, MetricType};

use super::{check_page, code, table};
use crate::telemetry::{MeasuredBy, Metrics, made_metrics};

const NONE: MeasuredBy =
    MeasuredBy { ingest: false, intake: false, worker: false, compensator: false };
const INGEST: MeasuredBy = MeasuredBy { ingest: true, intake: true, ..NONE };
const WORKER: MeasuredBy = MeasuredBy { worker: true, ..NONE };
const COMPENSATOR: MeasuredBy = MeasuredBy { compensator: true, ..NONE };

#[test]
fn the_page_of_metrics_is_what_the_registry_has() {
    let metrics = Metrics::new().unwrap();
    let shown: BTreeMap<_, _> =
        metrics.families().into_iter().map(|family| (family.name().to_owned(), family)).collect();
    let rows = made_metrics().into_iter().map(|made| {
        let labels = made.labels.iter().map(|label| labelled(label, shown.get(&made.name)));
        [
            code(&made.name),
            kind(made.kind).to_owned(),
            labels.collect::<Vec<_>>().join("; "),
            roles(&made.name),
            made.help,
        ]
    });
    let head = ["metric", "type", "labels", "shown by", "meaning"];
    let mut body = table(head, rows);
    body += "\nThe page names the values of a label that are known in every process. Such series \
             begin at 0.\n[dead-letters.md](dead-letters.md) has the values of `class`. Every role \
             also shows the `process_*`\nmetrics of the Prometheus client. Ingest shows what \
             consumers measure\nonly with `ingest.intake`. Lags and dependencies have more \
             details:\n\
             [operations.md](../operations.md#lag-and-dependencies-as-metrics).\n";

    check_page("metrics.md", "Metrics", "src/telemetry/metrics.rs", &body);
}

/// A label, with the values that it has in a new registry.
fn labelled(label: &str, family: Option<&MetricFamily>) -> String {
    let pairs = family
        .into_iter()
        .flat_map(MetricFamily::get_metric)
        .flat_map(prometheus::proto::Metric::get_label);
    let mut values: Vec<_> =
        pairs.filter(|pair| pair.name() == label).map(|pair| code(pair.value())).collect();
    values.sort();
    values.dedup();
    // The version changes with each release.
    if values.is_empty() || label == "version" {
        code(label)
    } else {
        format!("{} ({})", code(label), values.join(", "))
    }
}

fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    }
}

fn roles(metric: &str) -> String {
    let roles = [("ingest", INGEST), ("worker", WORKER), ("compensator", COMPENSATOR)];
    let shown: Vec<_> =
        roles.iter().filter(|(_, by)| by.measures(metric)).map(|(role, _)| *role).collect();
    if shown.len() == roles.len() { "every role".to_owned() } else { shown.join(", ") }
}
