use super::{Metrics, dead_letter_classes::DEAD_LETTER_CLASSES};

const OUTCOMES: [&str; 3] = ["COMPLETED", "FAILED", "RELEASED"];
/// The stages of a worker's batch.
const STAGES: [&str; 4] = ["lock", "transaction", "unlock", "publish"];

/// Creates the series of a role at 0, so that `rate()` and `increase()` see the first increment.
impl Metrics {
    /// The dead letters of a topic that the process consumes, by class.
    pub(crate) fn begin_dead_letters(&self, topic: &str) {
        for class in &DEAD_LETTER_CLASSES {
            self.dead_letters.with_label_values(&[topic, class.name]);
        }
    }

    /// The attempts that a role repeats after one of these dependencies failed.
    pub(crate) fn begin_retries(&self, dependencies: &[&str]) {
        for dependency in dependencies {
            self.retries.with_label_values(&[*dependency]);
        }
    }

    /// The passes of retention over a store, by result.
    pub(crate) fn begin_retention(&self, store: &str) {
        for result in ["complete", "partial", "failed"] {
            self.retention_passes.with_label_values(&[store, result]);
        }
    }

    /// The spans of a process whose traces are on.
    pub(crate) fn begin_traces(&self) {
        for result in ["exported", "failed", "dropped"] {
            self.trace_spans.with_label_values(&[result]);
        }
    }

    /// The batches and decisions of a worker under each of these lock strategies.
    pub(crate) fn begin_decisions(&self, strategies: &[&str]) {
        for stage in STAGES {
            self.batch_seconds.with_label_values(&[stage]);
        }
        for strategy in strategies {
            self.lock_wait.with_label_values(&[*strategy]);
            self.lock_hold.with_label_values(&[*strategy]);
            for outcome in OUTCOMES {
                self.orders_decided.with_label_values(&[outcome, *strategy]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        path::{Path, PathBuf},
    };

    use super::*;

    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }

    /// The text from each occurrence of `before` to the next quotation mark.
    fn quoted_after<'a>(source: &'a str, before: &str) -> Vec<&'a str> {
        source.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_class_of_dead_letters_in_the_source_begins_at_zero() {
        let (mut texts, mut used) = (Vec::new(), BTreeSet::new());
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
        for text in &texts {
            used.extend(quoted_after(text, "DeadLetterReason { class: \""));
            used.extend(quoted_after(text, "Fate::Reject(\""));
            for function in text.split("fn class(&self) -> &'static str {").skip(1) {
                let body = function.split("\n    }\n").next().unwrap();
                used.extend(quoted_after(body, "=> \""));
            }
        }
        assert!(used.len() >= 7, "{used:?}");
        for class in used {
            let is_listed = DEAD_LETTER_CLASSES.iter().any(|listed| listed.name == class);
            assert!(is_listed, "{class} does not begin at 0");
        }
    }
}
