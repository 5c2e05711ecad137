//! A Prometheus server that scrapes the roles of a test.

use std::fmt::Write as _;

use serde_json::Value;
use stocklock_servers::{Lifetime, Patience, Running};
use tempfile::TempDir;

use super::{PATIENCE, Role, blocking, free_address, http_get, wait_for};

/// Time between two scrapes, and between two evaluations of the rules.
const INTERVAL: &str = "250ms";

/// A server that is killed when it is dropped.
pub(crate) struct Prometheus {
    running: Running<stocklock_servers::Prometheus>,
    /// Dropped last: the server works in it.
    _dir: TempDir,
}

impl Prometheus {
    /// Starts a server with these rule files. It scrapes each role as a job with the role's name,
    /// in the namespace `shop`.
    pub(crate) async fn start(roles: &[(&str, &Role)], rule_files: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = format!(
            "global: {{scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, \
             evaluation_interval: {INTERVAL}}}\nrule_files: [\"*.rules\"]\nscrape_configs:\n"
        );
        for (job, role) in roles {
            let target = role.admin.trim_start_matches("http://");
            writeln!(
                config,
                "- {{job_name: {job}, static_configs: [{{targets: [\"{target}\"], \
                 labels: {{namespace: shop, pod: {job}-0}}}}]}}"
            )
            .expect("a string takes it");
        }
        for (number, text) in rule_files.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{number}.rules")), text).expect("written");
        }
        let (path, address) = (dir.path().to_owned(), free_address());
        let start = move || {
            let service = stocklock_servers::Prometheus::new(path, &address, &config)?;
            Running::start(service, Lifetime::OfParent, &Patience::new(PATIENCE))
        };
        Self { running: blocking(start).await.expect("Prometheus answers"), _dir: dir }
    }

    /// The `data` of an answer of its API, or the error that it reports.
    pub(crate) async fn ask(
        &self,
        path: &str,
        arguments: &[(&str, &str)],
    ) -> Result<Value, String> {
        let url = format!("{}/api/v1/{path}", self.running.service.url());
        let url = reqwest::Url::parse_with_params(&url, arguments).expect("a URL");
        let answer = http_get(url).await.expect("an answer");
        let mut body: Value = answer.json().await.expect("JSON");
        match body["status"].as_str() {
            Some("success") => Ok(body["data"].take()),
            _ => Err(body["error"].to_string()),
        }
    }

    /// Waits until a query has a result.
    pub(crate) async fn has(&self, query: &str) {
        wait_for(async || {
            let found = self.ask("query", &[("query", query)]).await?;
            let is_there = found["result"].as_array().is_some_and(|series| !series.is_empty());
            if is_there { Ok(()) } else { Err(format!("no result: {query}")) }
        })
        .await;
    }
}
