//! What a look at a dependency finds. `stocklock doctor` prints it, and `setup` warns of it. Pure:
//! the rooms that use the dependencies look, and write down what they find in [`Findings`].

use chrono::TimeDelta;
use serde_json::{Value, json};

/// By how much a clock may differ before it is a finding.
const MAX_CLOCK_DIFFERENCE: TimeDelta = TimeDelta::seconds(5);

macro_rules! checks {
    ($($variant:ident => $name:literal,)+) => {
        /// What was looked at. `docs/doctor.md` has a row for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Check { $($variant,)+ }

        impl Check {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

checks! {
    // Every dependency.
    Reachable => "reachable",
    Login => "login",
    Clock => "clock",
    Version => "version",
    Encryption => "encryption",
    // The stores.
    Database => "database",
    Writable => "writable",
    Session => "session",
    BinlogFormat => "binlog_format",
    Durability => "durability",
    LogWriterThreads => "log_writer_threads",
    Migrations => "migrations",
    Columns => "columns",
    Engine => "engine",
    Privileges => "privileges",
    ProcessPrivilege => "process_privilege",
    MigrateUser => "migrate_user",
    PacketSize => "packet_size",
    Connections => "connections",
    // Kafka.
    Brokers => "brokers",
    TopicExists => "topic",
    Partitions => "partitions",
    Replication => "replication",
    TopicSettings => "topic_settings",
    Retention => "retention",
    TopicRights => "topic_rights",
    Group => "group",
    // Redis.
    Mode => "mode",
    ReplicaRole => "replica",
    Rights => "rights",
    Eviction => "eviction",
    Persistence => "persistence",
    Distinct => "distinct",
    Majority => "majority",
    Latency => "latency",
    // The schema registry.
    Subjects => "subjects",
    Compatibility => "compatibility",
    // The process.
    OpenFiles => "open_files",
    Configuration => "configuration",
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Fine,
    /// It works, and a failure or a load will show the fault.
    Warning,
    /// A role cannot do its work, or may lose data.
    Wrong,
    /// No answer, so nothing else is known of the dependency.
    Unreachable,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The line that mends a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A statement for the database server, as a user that may run it.
    Sql(String),
    /// A command for a shell.
    Command(String),
    /// A setting of stocklock, `key = "value"`.
    Setting(String),
    /// What a person does, where no line does it.
    Advice(String),
}

impl Remedy {
    pub(crate) fn line(&self) -> &str {
        match self {
            Self::Sql(line) | Self::Command(line) | Self::Setting(line) | Self::Advice(line) => {
                line
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Sql(_) => "sql",
            Self::Command(_) => "command",
            Self::Setting(_) => "setting",
            Self::Advice(_) => "advice",
        }
    }
}

/// A word as a shell takes it: quoted unless it is plain.
pub(crate) fn for_shell(word: &str) -> String {
    let is_plain = |one: char| one.is_ascii_alphanumeric() || "-_./:=,@%+".contains(one);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The dependency's name in the settings, such as `order_store`.
    pub(crate) dependency: &'static str,
    /// Which one: an address, a topic, a group. May be empty.
    pub(crate) subject: String,
    pub(crate) check: Check,
    pub(crate) verdict: Verdict,
    pub(crate) text: String,
    /// `None` if nothing is to be mended.
    pub(crate) remedy: Option<Remedy>,
}

impl Finding {
    pub(crate) fn to_json(&self) -> Value {
        let remedy = self
            .remedy
            .as_ref()
            .map(|remedy| json!({"kind": remedy.kind(), "line": remedy.line()}));
        json!({
            "dependency": self.dependency, "subject": self.subject, "check": self.check.as_str(),
            "verdict": self.verdict.as_str(), "text": self.text, "remedy": remedy,
        })
    }

    /// One sentence for a log or a warning.
    pub(crate) fn sentence(&self) -> String {
        let Self { dependency, subject, text, .. } = self;
        let remedy = self.remedy.as_ref().map_or(String::new(), |r| format!(": {}", r.line()));
        let subject = if subject.is_empty() { String::new() } else { format!(" {subject}") };
        format!("{dependency}{subject}: {text}{remedy}")
    }
}

/// What was found out about one subject of a dependency.
#[derive(Debug)]
pub(crate) struct Findings {
    dependency: &'static str,
    subject: String,
    found: Vec<Finding>,
}

impl Findings {
    pub(crate) fn of(dependency: &'static str, subject: impl Into<String>) -> Self {
        Self { dependency, subject: subject.into(), found: Vec::new() }
    }

    pub(crate) fn fine(&mut self, check: Check, text: impl Into<String>) {
        self.add(check, Verdict::Fine, text.into(), None);
    }

    pub(crate) fn warning(&mut self, check: Check, text: impl Into<String>, remedy: Remedy) {
        self.add(check, Verdict::Warning, text.into(), Some(remedy));
    }

    pub(crate) fn wrong(&mut self, check: Check, text: impl Into<String>, remedy: Remedy) {
        self.add(check, Verdict::Wrong, text.into(), Some(remedy));
    }

    pub(crate) fn unreachable(&mut self, text: impl Into<String>, remedy: Remedy) {
        self.add(Check::Reachable, Verdict::Unreachable, text.into(), Some(remedy));
    }

    /// By how much the dependency's clock is ahead of this one.
    pub(crate) fn clock(&mut self, ahead: TimeDelta) {
        let text = format!("its clock is {} ms ahead of this one", ahead.num_milliseconds());
        if ahead.abs() > MAX_CLOCK_DIFFERENCE {
            self.warning(Check::Clock, text, Remedy::Advice("run NTP on both machines".into()));
        } else {
            self.fine(Check::Clock, text);
        }
    }

    pub(crate) fn add(
        &mut self,
        check: Check,
        verdict: Verdict,
        text: String,
        remedy: Option<Remedy>,
    ) {
        let (dependency, subject) = (self.dependency, self.subject.clone());
        self.found.push(Finding { dependency, subject, check, verdict, text, remedy });
    }

    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_row_for_each_check() {
        let page = include_str!("../docs/doctor.md");

        for check in Check::ALL {
            let row = format!("| `{}` |", check.as_str());
            assert!(page.contains(&row), "docs/doctor.md lacks {row}");
        }
    }

    #[test]
    fn a_name_that_a_shell_would_change_is_quoted() {
        for (word, quoted) in [
            ("User:shop", "User:shop"),
            ("User:$(reboot)", "'User:$(reboot)'"),
            ("User:CN=a b", "'User:CN=a b'"),
            ("it's", r"'it'\''s'"),
            ("*", "'*'"),
        ] {
            assert_eq!(for_shell(word), quoted);
        }
    }

    #[test]
    fn a_finding_says_what_is_wrong_and_what_mends_it() {
        let mut findings = Findings::of("redis", "127.0.0.1:6379");
        findings.wrong(Check::Eviction, "it evicts keys", Remedy::Command("CONFIG SET".into()));
        let [finding] = &findings.into_vec()[..] else { panic!("one finding") };

        assert_eq!(finding.sentence(), "redis 127.0.0.1:6379: it evicts keys: CONFIG SET");
        assert_eq!(
            finding.to_json(),
            json!({
                "dependency": "redis", "subject": "127.0.0.1:6379", "check": "eviction",
                "verdict": "wrong", "text": "it evicts keys",
                "remedy": {"kind": "command", "line": "CONFIG SET"},
            })
        );
    }
}
