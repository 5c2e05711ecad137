//! The dashboards and the alert rules of the chart name only what live roles show.

mod promql;

use std::{fs, path::Path};

use promql::names_in;
use serde_json::{Value, json};

use crate::harness::{Api, Database, Prometheus, Role, Strategy, World, lines, wait_for};

/// The folder of the chart.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/stocklock");
/// The variables of the dashboards, and what Grafana puts in their place.
const VARIABLES: [(&str, &str); 4] = [
    ("$namespace", ".*"),
    ("$job", "ingest|worker|compensator"),
    ("$pod", ".*"),
    ("$__rate_interval", "1m"),
];

/// A query, and where it stands.
struct Query {
    place: String,
    text: String,
    /// The labels that the legend of its series names.
    legend: Vec<String>,
}

/// The texts of the files in a folder of the chart, with their names.
fn files(folder: &str) -> Vec<(String, String)> {
    let read = |path: &Path| fs::read_to_string(path).expect("a text");
    let entries = fs::read_dir(Path::new(CHART).join(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.map(|path| (path.display().to_string(), read(&path))).collect()
}

/// The rule files of the chart.
pub(crate) fn rules() -> Vec<String> {
    files("rules").into_iter().map(|(_, text)| text).collect()
}

/// The labels in a legend such as `{{topic}}, {{class}}`.
fn labels_of_legend(legend: &str) -> Vec<String> {
    let labels = legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    labels.map(|label| label.trim().to_owned()).collect()
}

fn without_variables(query: &str) -> String {
    VARIABLES
        .iter()
        .fold(query.to_owned(), |query, (variable, value)| query.replace(variable, value))
}

/// The queries of the panels and of the variables of all dashboards.
fn queries_of_dashboards() -> Vec<Query> {
    let mut queries = Vec::new();
    for (path, text) in files("dashboards") {
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().expect("a title");
            for described in ["description", "type"] {
                assert!(panel[described].is_string(), "{path}: {title}: no {described}");
            }
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
            for target in panel["targets"].as_array().expect("queries") {
                queries.push(Query {
                    place: format!("{path}: {title}"),
                    text: without_variables(target["expr"].as_str().expect("a query")),
                    legend: labels_of_legend(target["legendFormat"].as_str().expect("a legend")),
                });
            }
        }
        for variable in dashboard["templating"]["list"].as_array().expect("variables") {
            // label_values(SELECTOR, LABEL)
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            let Some((selector, label)) = query
                .strip_prefix("label_values(")
                .and_then(|inner| inner.strip_suffix(')')?.rsplit_once(", "))
            else {
                continue;
            };
            queries.push(Query {
                place: format!("{path}: variable {label}"),
                text: without_variables(selector),
                legend: vec![label.to_owned()],
            });
        }
    }
    queries
}

/// The queries of all rules that Prometheus has loaded.
async fn queries_of_rules(prometheus: &Prometheus) -> Vec<Query> {
    let data = prometheus.ask("rules", &[]).await.expect("rules");
    let groups = data["groups"].as_array().expect("groups");
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
    let text = |rule: &Value, key: &str| rule[key].as_str().expect("a text").to_owned();
    rules
        .map(|rule| Query {
            place: text(rule, "name"),
            text: text(rule, "query"),
            legend: Vec::new(),
        })
        .collect()
}

/// What is wrong with a query: Prometheus cannot evaluate it, a selector finds no series, or no
/// series has a label that the query or its legend names.
async fn complaint(prometheus: &Prometheus, query: &Query) -> Option<String> {
    let Query { place, text, legend } = query;
    if let Err(error) = prometheus.ask("query", &[("query", text)]).await {
        return Some(format!("{place}: {error}: {text}"));
    }
    let names = names_in(text);
    if names.selectors.is_empty() {
        return Some(format!("{place}: no metric in {text}"));
    }
    let mut found = Vec::new();
    for selector in &names.selectors {
        let series = prometheus.ask("series", &[("match[]", selector)]).await;
        match series.as_ref().map(Value::as_array) {
            Ok(Some(series)) if !series.is_empty() => found.extend(series.clone()),
            _ => return Some(format!("{place}: no series: {selector}")),
        }
    }
    let missing = names
        .labels
        .iter()
        .chain(legend)
        .find(|label| !found.iter().any(|labels| labels.get(label.as_str()).is_some()));
    missing.map(|label| format!("{place}: no series has the label {label}: {text}"))
}

/// Roles under `redlock` with everything on that shows metrics, after some orders.
async fn busy_roles() -> (World, [Role; 3]) {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.configure(&[
        ("INGEST__INTAKE", "true"),
        ("TOPICS__STOCK_ADJUSTMENTS", "{name}.stock-adjustments"),
        ("TOPICS__STOCK_ADJUSTMENTS_DLQ", "{name}.stock-adjustments.dlq"),
        ("TOPICS__STOCK_LEVELS", "{name}.stock-levels"),
    ]);
    world.import(&[("a", 100)]);
    let ingest = world.start("ingest").await;
    let worker = world.start("worker").await;
    let compensator = world.start("compensator").await;
    let api = Api::of(&ingest);
    api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
    api.place_and_wait(&lines(&[("a", 1000)]), 60).await.is(409);
    let request = json!({"request_id": "1", "adjustments": [
        {"product_id": "a", "delta": 1, "reason": "count"}
    ]});
    api.adjust(&request).await.is(200);
    (world, [ingest, worker, compensator])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_a_dashboard_or_a_rule_finds_what_live_roles_show() {
    let (_world, [ingest, worker, compensator]) = busy_roles().await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];

    let prometheus = Prometheus::start(&roles, &rules()).await;
    for query in ["sum(up) == 3", "namespace:stocklock_slow_decisions:ratio_rate3d"] {
        prometheus.has(query).await;
    }
    let mut queries = queries_of_dashboards();
    queries.extend(queries_of_rules(&prometheus).await);

    assert!(queries.len() > 100, "only {} queries were read", queries.len());
    // Some series come a little later than the first scrape, such as those of rules.
    wait_for(async || {
        let mut complaints = Vec::new();
        for query in &queries {
            complaints.extend(complaint(&prometheus, query).await);
        }
        if complaints.is_empty() { Ok(()) } else { Err(format!("{complaints:#?}")) }
    })
    .await;
    for (wrong, because) in [
        ("sum(stocklock_orders_total)", "no series"),
        ("stocklock_retries_total{dependency=\"redi\"}", "no series"),
        ("sum by (strategi) (stocklock_orders_decided_total)", "the label strategi"),
        ("sum(rate(stocklock_orders_decided_total))", "expected type range vector"),
    ] {
        let (place, text) = ("here".to_owned(), wrong.to_owned());
        let found = complaint(&prometheus, &Query { place, text, legend: Vec::new() }).await;
        assert!(found.as_ref().is_some_and(|found| found.contains(because)), "{wrong}: {found:?}");
    }
}
