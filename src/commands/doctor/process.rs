//! The configuration, and the limits of the process itself.

use super::{Check, Finding, Findings, Needs, Remedy, Verdict};
use crate::{commands::config::refused_at_start, config::Config, http::OpenFiles};

pub(super) fn look(config: &Config, needs: &Needs<'_>) -> Vec<Finding> {
    let mut findings = Findings::of("process", "");
    look_at_configuration(config, &mut findings);
    look_at_open_files(config, needs, &mut findings);
    findings.into_vec()
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
