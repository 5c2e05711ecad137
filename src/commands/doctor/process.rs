//! The configuration, and the limits of the process itself.

use super::{Check, Finding, Findings, Needs, Remedy, Verdict};
use crate::{
    commands::config::refused_at_start,
    config::{Config, InsecureConnection},
    http::OpenFiles,
};

pub(super) fn look(config: &Config, needs: &Needs<'_>) -> Vec<Finding> {
    let mut findings = Findings::of("process", "");
    look_at_configuration(config, &mut findings);
    look_at_open_files(config, needs, &mut findings);
    findings.into_vec()
}

/// Connections of the roles that nobody protects, as the settings have them.
pub(super) fn look_for_insecure(config: &Config, needs: &Needs<'_>) -> Vec<Finding> {
    config.insecure_connections().iter().filter_map(|it| insecure(it, needs)).collect()
}

/// `None` if the roles do not use the connection.
fn insecure(connection: &InsecureConnection, needs: &Needs<'_>) -> Option<Finding> {
    let InsecureConnection { section, key, server, risk, remedy } = connection;
    let is_used = match *section {
        "redis" => needs.redis(),
        store => needs.stores().iter().any(|look| {
            look.store.as_str() == store && (look.is_migrated || !key.ends_with("migrate_url"))
        }),
    };
    let remedy = format!("{key}: {remedy}, or set {section}.insecure_tls = true");
    is_used.then(|| Finding {
        dependency: section,
        subject: server.clone(),
        check: Check::Encryption,
        verdict: Verdict::Warning,
        text: (*risk).to_owned(),
        remedy: Some(Remedy::Advice(remedy)),
    })
}

/// What `stocklock config --check` says.
fn look_at_configuration(config: &Config, findings: &mut Findings) {
    let errors = refused_at_start(config.clone());
    if errors.is_empty() {
        findings.fine(Check::Configuration, "the configuration is valid");
    }
    for error in errors {
        let check = Remedy::Command("stocklock config --check".into());
        findings.wrong(Check::Configuration, error, check);
    }
}

fn look_at_open_files(config: &Config, needs: &Needs<'_>, findings: &mut Findings) {
    let pools = config.order_store.pool_max + config.stock_store.pool_max;
    let files = OpenFiles::of_process();
    let remedy = || {
        let wanted = OpenFiles::wanted(pools);
        // A process cannot raise its hard limit: whatever starts it has to.
        Remedy::Advice(format!(
            "LimitNOFILE={wanted} in the unit, or --ulimit nofile={wanted} of the container"
        ))
    };
    if files.hard < OpenFiles::least(pools) {
        let text = format!("at most {} open files: too few for the pools", files.hard);
        findings.add(Check::OpenFiles, Verdict::Wrong, text, Some(remedy()));
    } else if needs.http() && files.hard < OpenFiles::wanted(pools) {
        let text = format!(
            "at most {} open files: they bound the connections of the HTTP API to {}",
            files.hard,
            files.connections(pools)
        );
        findings.add(Check::OpenFiles, Verdict::Warning, text, Some(remedy()));
    } else {
        findings.fine(Check::OpenFiles, format!("{} open files", files.hard));
    }
}
