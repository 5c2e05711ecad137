//! `stocklock doctor`: each test plants faults on real servers, sees that the doctor names them,
//! runs the lines that mend them, and sees that they are gone.

mod kafka;
mod masters;
mod provider;
mod report;
mod stores;

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::harness::World;

/// What the doctor says of a world.
pub(crate) struct Diagnosis {
    report: Value,
}

/// A fault as the doctor names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) check: &'static str,
    pub(crate) verdict: &'static str,
    /// Part of the text.
    pub(crate) text: &'static str,
}

pub(crate) const fn fault(check: &'static str, verdict: &'static str, text: &'static str) -> Fault {
    Fault { check, verdict, text }
}

impl Diagnosis {
    pub(crate) fn of(world: &World, args: &[&str]) -> Self {
        let args = [&["--output", "json", "doctor"], args].concat();
        Self { report: world.cli(&args).json() }
    }

    /// The same, and fails the test unless the command ended with this status.
    #[track_caller]
    pub(crate) fn with_status(world: &World, args: &[&str], status: i32) -> Self {
        let args = [&["--output", "json", "doctor"], args].concat();
        Self { report: world.cli(&args).exits(status).json() }
    }

    pub(crate) fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("findings")
    }

    pub(crate) fn count(&self, what: &str) -> u64 {
        self.report[what].as_u64().expect("a count")
    }

    /// The findings of a check that are not ok.
    pub(crate) fn faults(&self, check: &str) -> Vec<&Value> {
        let of_check = self.findings().iter().filter(|finding| finding["check"] == check);
        of_check.filter(|finding| finding["verdict"] != "ok").collect()
    }

    /// The lines that mend a fault, each once. Fails the test unless the doctor names the fault.
    #[track_caller]
    pub(crate) fn lines(&self, fault: &Fault) -> BTreeSet<String> {
        let lines = self.lines_if_any(fault);
        assert!(!lines.is_empty(), "{fault:?} is not in {:#}", self.report);
        lines
    }

    pub(crate) fn lines_if_any(&self, fault: &Fault) -> BTreeSet<String> {
        let named = self.faults(fault.check).into_iter().filter(|finding| {
            let text = finding["text"].as_str().expect("a text");
            finding["verdict"] == fault.verdict && text.contains(fault.text)
        });
        named.map(|one| one["remedy"]["line"].as_str().expect("a line").to_owned()).collect()
    }

    /// Fails the test if a check of these faults still finds one.
    #[track_caller]
    pub(crate) fn is_free_of(&self, faults: &[Fault]) {
        for fault in faults {
            let left = self.lines_if_any(fault);
            assert!(left.is_empty(), "{fault:?} is not mended: {:#}", self.report);
        }
    }
}

/// Runs a line in a shell.
#[track_caller]
pub(crate) fn shell(line: &str) {
    let ran = Command::new("sh").args(["-c", line]).output().expect("sh runs");
    let shown = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&shown));
}
