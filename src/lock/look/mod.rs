//! Looks at the Redis masters for `stocklock doctor`. It locks no product: its keys have a space in
//! their names, and end at once.

mod refusals;
mod rights;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use chrono::{TimeDelta, Utc};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, RedisError, RedisResult,
    aio::MultiplexedConnection, cmd,
};
use tokio::time::timeout;

use super::{
    advice::{Explained, explain, explain_silence},
    client::{MasterClient, MasterError, clients, lacks_a_right},
};
use crate::{
    config::{LockConfig, RedisConfig},
    error_text::with_causes,
    finding::{Check, Finding, Findings, Remedy, Verdict, for_shell},
};

/// How long a master may take to connect, and as long again to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long all looks at a master may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The first version with `SMISMEMBER`, which the queues use.
const MIN_VERSION: (u32, u32) = (6, 2);
/// The commands of which the fastest one counts as the latency.
const LATENCY_SAMPLES: usize = 3;
/// The part of `maxmemory` beyond which the next locks may be refused, per cent.
const FULL_PERCENT: u64 = 90;

/// A master without a limit would take all memory of its machine or container.
const MORE_MEMORY: &str = "raise maxmemory within the memory of the master's machine or container, \
                           or move other data away";

/// A master as far as it is known.
struct Seen {
    address: String,
    /// The server's own name for its run. `None` if the user may not ask.
    run_id: Option<String>,
    findings: Vec<Finding>,
}

/// Looks at all masters at the same time. Never fails: what cannot be looked at is a finding too.
/// Takes 12 s at most: 10 s for the looks, and 2 s to explain a silence.
pub(crate) async fn look_at_masters(lock: &LockConfig, redis: &RedisConfig) -> Vec<Finding> {
    let masters = match clients(redis) {
        Ok(masters) => masters,
        Err(error) => return vec![unusable(&error)],
    };
    let count = masters.len();
    let looking = masters.into_iter().map(|client| look_at_master(lock, client));
    let seen = futures::future::join_all(looking).await;
    let mut all = Findings::of("redis", "");
    if count == 1 {
        all.warning(
            Check::Majority,
            "one master: while it is away, no product can be locked",
            Remedy::Setting("redis.urls = \"redis://A,redis://B,redis://C\"".into()),
        );
    } else {
        all.fine(Check::Majority, format!("{count} masters, {} may be away", (count - 1) / 2));
    }
    look_for_twins(&seen, &mut all);
    seen.into_iter().flat_map(|master| master.findings).chain(all.into_vec()).collect()
}

fn unusable(error: &MasterError) -> Finding {
    Finding {
        dependency: "redis",
        subject: String::new(),
        check: Check::Configuration,
        verdict: Verdict::Wrong,
        text: with_causes(error),
        remedy: Some(Remedy::Setting("redis.urls, redis.ssl_ca_location".into())),
    }
}

/// Two URLs of one server have one vote.
fn look_for_twins(seen: &[Seen], all: &mut Findings) {
    let mut by_run: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for master in seen {
        if let Some(run_id) = &master.run_id {
            by_run.entry(run_id).or_default().push(&master.address);
        }
    }
    let twins: Vec<_> = by_run.into_values().filter(|addresses| addresses.len() > 1).collect();
    if twins.is_empty() {
        all.fine(Check::Distinct, "no two URLs name one server, as far as they tell");
    }
    for addresses in twins {
        all.wrong(
            Check::Distinct,
            format!("{} are one server, which has one vote", addresses.join(" and ")),
            Remedy::Setting("redis.urls = \"…\", with another server for each URL".into()),
        );
    }
}

async fn look_at_master(lock: &LockConfig, client: MasterClient) -> Seen {
    let current = client.current();
    let master = Master::new(&current);
    let mut findings = Findings::of("redis", master.address.as_str());
    let mut run_id = None;
    let looked = timeout(LOOK_TIMEOUT, async {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let mut connection =
            current.get_multiplexed_async_connection_with_config(&settings).await?;
        run_id = master.look(lock, &mut connection, &mut findings).await?;
        Ok::<_, RedisError>(())
    });
    let fails = |findings: &mut Findings, Explained { text, advice, .. }| {
        // A master that answers is not unreachable.
        if let Some(advice) = advice {
            findings.wrong(Check::Encryption, text, Remedy::Advice(advice));
        } else {
            let advice = "start the master, or correct its address in redis.urls";
            findings.unreachable(text, Remedy::Advice(advice.into()));
        }
    };
    match looked.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.code().is_some() || is_refused(&error) => {
            let url = "redis.urls = \"redis://USER:PASSWORD@HOST:PORT\"";
            let text = explain(&client, &error).await.to_string();
            findings.wrong(Check::Login, text, Remedy::Setting(url.into()));
        }
        Ok(Err(error)) => fails(&mut findings, explain(&client, &error).await),
        Err(_) => {
            let text = format!("no answer within {} s", LOOK_TIMEOUT.as_secs());
            fails(&mut findings, explain_silence(&client, text).await);
        }
    }
    Seen { address: master.address, run_id, findings: findings.into_vec() }
}

/// Whether the master answers, and does not let the user in.
fn is_refused(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed
        || error.code().is_some_and(|code| matches!(code, "NOAUTH" | "WRONGPASS"))
}

/// How a person reaches a master.
struct Master {
    client: Client,
    address: String,
    /// The options of `redis-cli`.
    options: String,
    user: String,
}

impl Master {
    fn new(client: &Client) -> Self {
        let info = client.get_connection_info();
        let options = match info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("-h {} -p {port}", for_shell(host)),
            ConnectionAddr::TcpTls { host, port, .. } => {
                format!("--tls -h {} -p {port}", for_shell(host))
            }
            ConnectionAddr::Unix(path) => format!("-s {}", for_shell(&path.display().to_string())),
            other => other.to_string(),
        };
        let user = info.redis_settings().username().unwrap_or("default").to_owned();
        Self { client: client.clone(), address: info.addr().to_string(), options, user }
    }

    fn command(&self, rest: &str) -> Remedy {
        Remedy::Command(format!("redis-cli {} {rest}", self.options))
    }

    /// Returns the id of the master's run. Fails if the connection does.
    async fn look(
        &self,
        lock: &LockConfig,
        connection: &mut MultiplexedConnection,
        findings: &mut Findings,
    ) -> RedisResult<Option<String>> {
        let key = format!("{} doctor {}", lock.prefix, uuid::Uuid::now_v7().simple());
        // The first answer: a master that wants a password lets clients without one connect.
        let asked = Instant::now();
        let answered: RedisResult<Option<String>> =
            cmd("GET").arg(&key).query_async(connection).await;
        let latency = asked.elapsed();
        match answered {
            Err(error) if error.code().is_none() || is_refused(&error) => return Err(error),
            // Any other answer, such as that of a cluster without slots, shows a server at work.
            _ => findings.fine(Check::Reachable, "answers, and lets the user in"),
        }
        let mut fastest = latency;
        for _ in 1..LATENCY_SAMPLES {
            // A master that loads is slow at each command, and the look has a limit.
            if fastest <= lock.node_timeout {
                break;
            }
            let asked = Instant::now();
            let _answered: RedisResult<Option<String>> =
                cmd("GET").arg(&key).query_async(connection).await;
            fastest = fastest.min(asked.elapsed());
        }
        look_at_latency(lock, fastest, findings);
        let information: RedisResult<String> = cmd("INFO").query_async(connection).await;
        let run_id = match information {
            Ok(text) => Some(self.look_at_information(&Information::parse(&text), findings)),
            Err(error) if lacks_a_right(&error) => {
                findings.warning(
                    Check::Mode,
                    "the user has no right to INFO: neither version, mode, eviction nor \
                     persistence can be looked at",
                    self.command(&format!("ACL SETUSER {} +info", for_shell(&self.user))),
                );
                None
            }
            Err(error) => return Err(error),
        };
        self.look_at_clock(connection, findings).await?;
        let tried = self.look_at_rights(lock, &key, connection, findings).await?;
        self.look_at_refusals(&tried, run_id.is_some(), findings);
        Ok(run_id.flatten())
    }

    fn look_at_information(
        &self,
        information: &Information,
        findings: &mut Findings,
    ) -> Option<String> {
        let version = information.get("redis_version").unwrap_or("unknown");
        match parse_version(version) {
            Some(found) if found < MIN_VERSION => findings.wrong(
                Check::Version,
                format!("Redis {version}, older than 6.2"),
                Remedy::Advice("use Redis 6.2 or later, or Valkey".into()),
            ),
            _ => findings.fine(Check::Version, format!("Redis {version}")),
        }
        match information.get("redis_mode") {
            Some(mode) if mode != "standalone" => findings.wrong(
                Check::Mode,
                format!("it runs as {mode}: the masters have to be independent of each other"),
                Remedy::Setting("redis.urls = \"…\", with standalone servers".into()),
            ),
            _ => findings.fine(Check::Mode, "a server of its own"),
        }
        match information.get("role") {
            Some("master") | None => findings.fine(Check::ReplicaRole, "a master"),
            Some(role) => findings.wrong(
                Check::ReplicaRole,
                format!(
                    "it is a {role}, which takes no locks. Name its master; or promote it, if its \
                     master is gone for ever"
                ),
                Remedy::Setting("redis.urls = \"…\", with masters alone".into()),
            ),
        }
        self.look_at_memory(information, findings);
        if information.get("aof_enabled") == Some("0") {
            findings.warning(
                Check::Persistence,
                "no append-only file: after a restart it has forgotten its locks, so it should \
                 stay away for lock.ttl. The line lasts until a restart: set appendonly in the \
                 server's file too, as CONFIG REWRITE does",
                self.command("CONFIG SET appendonly yes"),
            );
        } else {
            findings.fine(Check::Persistence, "keeps an append-only file");
        }
        information.get("run_id").map(str::to_owned)
    }

    fn look_at_memory(&self, information: &Information, findings: &mut Findings) {
        let limit = information.number("maxmemory").unwrap_or(0);
        let used = information.number("used_memory").unwrap_or(0);
        let policy = information.get("maxmemory_policy").unwrap_or("noeviction");
        let remedy = || self.command("CONFIG SET maxmemory-policy noeviction");
        if policy != "noeviction" {
            let text = format!("maxmemory-policy is {policy}: a full master drops locks");
            let verdict = if limit > 0 { Verdict::Wrong } else { Verdict::Warning };
            findings.add(Check::Eviction, verdict, text, Some(remedy()));
        } else if limit > 0 && used > limit / 100 * FULL_PERCENT {
            findings.warning(
                Check::Eviction,
                format!("{used} of {limit} bytes are used: a full master refuses locks"),
                Remedy::Advice(MORE_MEMORY.into()),
            );
        } else {
            findings.fine(Check::Eviction, "evicts no key");
        }
    }

    async fn look_at_clock(
        &self,
        connection: &mut MultiplexedConnection,
        findings: &mut Findings,
    ) -> RedisResult<()> {
        let (asked_at, asked) = (Utc::now(), Instant::now());
        let answered: RedisResult<(i64, i64)> = cmd("TIME").query_async(connection).await;
        let (seconds, micros) = match answered {
            // Whatever a server answers to it, its other answers say what is wrong.
            Err(error) if error.code().is_some() => return Ok(()),
            answered => answered?,
        };
        let middle = asked_at + asked.elapsed() / 2;
        let theirs = seconds * 1_000 + micros / 1_000;
        findings.clock(TimeDelta::milliseconds(theirs - middle.timestamp_millis()));
        Ok(())
    }
}

/// `latency` is the shortest of some commands.
fn look_at_latency(lock: &LockConfig, latency: Duration, findings: &mut Findings) {
    let text = format!("a command took {} ms", latency.as_millis());
    if latency > lock.node_timeout {
        let text = format!("{text}, more than lock.node_timeout");
        findings.warning(Check::Latency, text, Remedy::Setting(timeouts_for(latency, lock.ttl)));
    } else {
        findings.fine(Check::Latency, text);
    }
}

/// Settings that give a master twice its latency. `lock.node_timeout` is at most half of the TTL.
fn timeouts_for(latency: Duration, ttl: Duration) -> String {
    let node_timeout = (latency * 2).as_millis() + 1;
    let setting = format!("lock.node_timeout = \"{node_timeout}ms\"");
    if node_timeout * 2 > ttl.as_millis() {
        return format!("lock.ttl = \"{}ms\", {setting}", node_timeout * 4);
    }
    setting
}

/// What `INFO` answers.
struct Information(HashMap<String, String>);

impl Information {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_for_a_slow_master_are_valid() {
        let (latency, ttl) = (Duration::from_millis(300), Duration::from_secs(5));

        assert_eq!(timeouts_for(latency, ttl), "lock.node_timeout = \"601ms\"");
        assert_eq!(
            timeouts_for(latency, Duration::from_secs(1)),
            "lock.ttl = \"2404ms\", lock.node_timeout = \"601ms\""
        );
    }

    #[test]
    fn the_answer_to_info_is_read_line_by_line() {
        let information = Information::parse("# Server\r\nredis_version:7.2.4\r\nmaxmemory:10\r\n");

        assert_eq!(information.get("redis_version"), Some("7.2.4"));
        assert_eq!((information.number("maxmemory"), information.number("x")), (Some(10), None));
        assert!(parse_version("6.0.16").unwrap() < MIN_VERSION);
        assert!(parse_version("7.2.4").unwrap() > MIN_VERSION);
    }
}
