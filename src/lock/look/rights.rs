//! The rights of a Redis user. Each command that the scripts run is tried on a key that no product
//! has. Within a script the same rights count.

use redis::{Cmd, RedisError, RedisResult, aio::MultiplexedConnection, cmd, pipe};
use tokio::time::timeout;

use super::{ANSWER_TIMEOUT, Master};
use crate::{
    config::LockConfig,
    finding::{Check, Findings, Verdict, for_shell},
    lock::{client::lacks_a_right, scripts::NOTICE_CHANNEL, survey::escaped},
};

/// The rules of docs/locking.md for commands. A line that has all of them mends at once, whatever
/// else a user with one more right would still lack.
const ALL_COMMANDS: &str = "+evalsha '+script|load' +get +set +del +exists +pexpire +time +zadd \
                            +zrange +zscore +zrem +sadd +srem +smismember +publish +subscribe \
                            +scan +pttl";

/// The name of the script `return 1`.
const SHA1_OF_RETURN_1: &str = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";

/// A right that a script or `stocklock verify` needs.
struct Right {
    /// The command as a rule of the ACL has it.
    rule: &'static str,
    attempt: Cmd,
    verdict: Verdict,
}

/// A command that was tried.
pub(super) struct Tried {
    pub(super) rule: &'static str,
    pub(super) verdict: Verdict,
    pub(super) answered: RedisResult<()>,
}

impl Master {
    /// Returns what was tried. Fails only if the connection does.
    pub(super) async fn look_at_rights(
        &self,
        lock: &LockConfig,
        key: &str,
        connection: &mut MultiplexedConnection,
        findings: &mut Findings,
    ) -> RedisResult<Vec<Tried>> {
        let channel = format!("{}{NOTICE_CHANNEL}", lock.prefix);
        let mut tried = Vec::new();
        for right in rights(&channel, key) {
            let answered: RedisResult<redis::Value> = right.attempt.query_async(connection).await;
            let Right { rule, verdict, .. } = right;
            tried.push(Tried { rule, verdict, answered: answered.map(drop) });
        }
        let answered = self.subscribe(&channel).await;
        tried.push(Tried { rule: "subscribe", verdict: Verdict::Warning, answered });
        // One question for all: a master that loads is slow at each.
        let mut cleanup = pipe();
        for name in [key, &queue_of(key), &set_of(key)] {
            // A user that lacks one of the two rights often has the other one.
            cleanup.cmd("PEXPIRE").arg(name).arg(1_000).cmd("DEL").arg(name);
        }
        let _gone: RedisResult<redis::Value> = cleanup.query_async(connection).await;
        let is_cut = |tried: &Tried| {
            tried.answered.as_ref().is_err_and(|error| error.is_io_error() || error.is_timeout())
        };
        if let Some(cut) = tried.iter().position(is_cut) {
            tried.swap_remove(cut).answered?;
        }
        self.note_rights(lock, &tried, findings);
        Ok(tried)
    }

    fn note_rights(&self, lock: &LockConfig, tried: &[Tried], findings: &mut Findings) {
        let (mut rules, mut verdict) = (Vec::new(), Verdict::Fine);
        for Tried { rule, verdict: of_right, answered } in tried {
            let Some(error) = answered.as_ref().err().filter(|error| lacks_a_right(error)) else {
                continue;
            };
            let rule = missing_rule(error, rule, &lock.prefix);
            if !rules.contains(&rule) {
                rules.push(rule);
            }
            verdict = verdict.max(*of_right);
        }
        if rules.is_empty() {
            findings.fine(Check::Rights, "the user has all rights of docs/locking.md");
        } else {
            let text = format!("the user {} lacks rights: {}", self.user, rules.join(" "));
            let Self { user, .. } = self;
            // Redis refuses a pattern of keys for a user that has all keys, and so for channels.
            let patterns = rules.iter().filter(|rule| !rule.starts_with('+'));
            let patterns: Vec<_> = patterns.map(|rule| format!("{} ", for_shell(rule))).collect();
            let user = for_shell(user);
            let patterns = patterns.concat();
            let remedy = self.command(&format!("ACL SETUSER {user} {patterns}{ALL_COMMANDS}"));
            findings.add(Check::Rights, verdict, text, Some(remedy));
        }
    }

    /// Tries to listen to a channel, on a connection of its own.
    async fn subscribe(&self, channel: &str) -> RedisResult<()> {
        let listening = async { self.client.get_async_pubsub().await?.subscribe(channel).await };
        let silent = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        timeout(ANSWER_TIMEOUT, listening).await.unwrap_or_else(|_| Err(silent()))
    }
}

/// The rule that gives a user what an error says that it lacks: a key, a channel or a command.
fn missing_rule(error: &RedisError, command: &str, prefix: &str) -> String {
    let text = error.to_string().to_lowercase();
    if text.contains("channel") {
        format!("&{}*", escaped(prefix))
    } else if text.contains("command") {
        format!("+{command}")
    } else {
        format!("~{}*", escaped(prefix))
    }
}

fn queue_of(key: &str) -> String {
    format!("{key} queue")
}

fn set_of(key: &str) -> String {
    format!("{key} queues")
}

/// Each command that the scripts run, on a key that no product has.
fn rights(channel: &str, key: &str) -> Vec<Right> {
    // Each type has a key of its own: a user may lack the right to delete one.
    let (queue, set) = (queue_of(key), set_of(key));
    let one = |words: &[&str]| {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        command
    };
    let right = |rule, words: &[&str], verdict| Right { rule, attempt: one(words), verdict };
    let (must, should) = (Verdict::Wrong, Verdict::Warning);
    vec![
        right("set", &["SET", key, "doctor", "NX", "PX", "1000"], must),
        right("get", &["GET", key], must),
        right("pexpire", &["PEXPIRE", key, "1000"], must),
        right("del", &["DEL", key], must),
        right("script|load", &["SCRIPT", "LOAD", "return 1"], must),
        right("evalsha", &["EVALSHA", SHA1_OF_RETURN_1, "1", key], must),
        right("exists", &["EXISTS", key], must),
        right("time", &["TIME"], must),
        right("zadd", &["ZADD", &queue, "1", "doctor"], must),
        right("zrange", &["ZRANGE", &queue, "0", "0"], must),
        right("zscore", &["ZSCORE", &queue, "doctor"], must),
        right("zrem", &["ZREM", &queue, "doctor"], must),
        right("sadd", &["SADD", &set, "doctor"], must),
        right("smismember", &["SMISMEMBER", &set, "doctor"], must),
        right("srem", &["SREM", &set, "doctor"], must),
        right("publish", &["PUBLISH", channel, ""], should),
        right("scan", &["SCAN", "0", "MATCH", key, "COUNT", "1"], should),
        right("pttl", &["PTTL", key], should),
    ]
}
