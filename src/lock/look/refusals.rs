//! Commands that a master refuses although the user has the right to them.

use std::collections::BTreeMap;

use super::{MORE_MEMORY, Master, rights::Tried};
use crate::{
    finding::{Check, Findings, Remedy, Verdict},
    lock::client::lacks_a_right,
};

/// Errors that have a finding of their own.
const REPORTED_ELSEWHERE: [&str; 3] = ["NOSCRIPT", "CLUSTERDOWN", "MOVED"];
/// The answer of a replica. Its finding needs `INFO`.
const READ_ONLY: &str = "READONLY";

impl Master {
    /// Reports each error once, with the first command that it refuses. `has_information` says
    /// whether `INFO` was answered.
    pub(super) fn look_at_refusals(
        &self,
        tried: &[Tried],
        has_information: bool,
        findings: &mut Findings,
    ) {
        let mut refused: BTreeMap<&str, (Verdict, String)> = BTreeMap::new();
        for Tried { rule, verdict, answered } in tried {
            let Err(error) = answered else { continue };
            let Some(code) = error.code().filter(|_| !lacks_a_right(error)) else { continue };
            let is_known = REPORTED_ELSEWHERE.contains(&code);
            if is_known || (code == READ_ONLY && has_information) {
                continue;
            }
            // The client's text has a name of its own for some codes.
            let text = format!("it refuses {} ({code}): {error}", rule.to_uppercase());
            let worst = refused.entry(code).or_insert((*verdict, text));
            worst.0 = worst.0.max(*verdict);
        }
        if refused.is_empty() {
            findings.fine(Check::Writable, "takes the commands of locks");
        }
        for (code, (verdict, text)) in refused {
            findings.add(Check::Writable, verdict, text, Some(self.remedy_of(code)));
        }
    }

    fn remedy_of(&self, code: &str) -> Remedy {
        let advice = match code {
            "OOM" => MORE_MEMORY,
            "NOREPLICAS" => return self.command("CONFIG SET min-replicas-to-write 0"),
            "MISCONF" => "free space on the disk of the master: its log says why it cannot save",
            "LOADING" => "wait until the master has loaded its data",
            READ_ONLY | "MASTERDOWN" => {
                return Remedy::Setting("redis.urls = \"…\", with masters alone".into());
            }
            _ => "look into the log of the master",
        };
        Remedy::Advice(advice.into())
    }
}
