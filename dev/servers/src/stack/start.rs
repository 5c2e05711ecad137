//! How a stack comes up. Its servers start at the same time.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use stocklock_servers::{Flavour, Interrupt, Lifetime, Patience, Running};

use super::{
    Exit,
    conf::{Conf, ServerName},
    exec::title,
    folder,
    servers::Server,
};
use crate::say;

const READY_WITHIN: Duration = Duration::from_secs(90);
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// How often other ports are tried where another process took one in the meantime.
const TRIES: u32 = 3;

/// A stack that runs.
pub(super) struct Stack {
    pub(super) dir: PathBuf,
    /// Holds the processes, which end with their handles if that is their lifetime.
    _servers: Vec<Running<Server>>,
}

impl Stack {
    /// Starts all servers in a new folder, and waits until they answer.
    ///
    /// Fails if one ends, if one does not answer in time, or if the interrupt is set. Then no
    /// server is left, and no folder.
    pub(super) fn start(
        dir: &Path,
        databases: &[Flavour],
        lifetime: Lifetime,
        interrupt: &Interrupt,
        begun: Instant,
    ) -> anyhow::Result<Self> {
        let dir = folder::claim(dir)?;
        for attempt in 1..=TRIES {
            let error = match start_once(&dir, databases, lifetime, interrupt) {
                Ok(servers) => {
                    let (seconds, names) = (begun.elapsed().as_secs(), title(databases));
                    say(format!("up after {seconds} s, with {names}"));
                    return Ok(Self { dir, _servers: servers });
                }
                Err(error) => error,
            };
            if let Some(signal) = interrupt.signal() {
                folder::stop_and_remove(&dir)?;
                return Err(Exit::by(signal).into());
            }
            if attempt == TRIES || !is_address_in_use(&dir) {
                folder::stop_and_remove(&dir)?;
                return Err(error);
            }
            say("another process has taken a port, trying others ...");
            interrupt.resume();
            folder::stop(&dir)?;
            folder::clear(&dir)?;
        }
        anyhow::bail!("no free ports after {TRIES} tries")
    }

    /// Stops the servers, and removes the folder.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        folder::stop_and_remove(&self.dir)
    }
}

fn start_once(
    dir: &Path,
    databases: &[Flavour],
    lifetime: Lifetime,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Running<Server>>> {
    fs::create_dir_all(dir.join("logs"))?;
    fs::create_dir_all(dir.join("pids"))?;
    let conf = Conf::new(databases)?;
    conf.save(dir)?;
    say(format!("starting {} in {} ...", conf.names(), dir.display()));
    let patience = Patience::unless(ready_within()?, interrupt.clone());
    let (results, received) = mpsc::channel();
    thread::scope(|scope| {
        for name in &conf.servers {
            let (results, patience, conf) = (results.clone(), &patience, &conf);
            scope.spawn(move || {
                let started = start_server(dir, conf, *name, lifetime, patience);
                if started.is_err() {
                    // The others need not go on.
                    interrupt.cancel();
                }
                // The receiver lives until all have ended.
                let _received = results.send((*name, started));
            });
        }
        drop(results);
        collect(&conf, &received)
    })
}

fn start_server(
    dir: &Path,
    conf: &Conf,
    name: ServerName,
    lifetime: Lifetime,
    patience: &Patience,
) -> anyhow::Result<Running<Server>> {
    let server = Server::new(dir, conf, name)?;
    let mut running = Running::spawn(server, lifetime, patience)?;
    if let Some(process) = running.process.identity() {
        folder::record(dir, name, process)?;
    }
    running.await_ready(patience)?;
    Ok(running)
}

/// Waits for all servers, and now and then names those that are not ready. Fails with the first
/// error.
fn collect(
    conf: &Conf,
    received: &mpsc::Receiver<(ServerName, anyhow::Result<Running<Server>>)>,
) -> anyhow::Result<Vec<Running<Server>>> {
    let mut missing: BTreeSet<_> = conf.servers.iter().map(ToString::to_string).collect();
    let (mut servers, mut first_error) = (Vec::new(), None);
    loop {
        match received.recv_timeout(NOTE_EVERY) {
            Ok((name, Ok(server))) => {
                missing.remove(&name.to_string());
                servers.push(server);
            }
            Ok((_, Err(error))) => first_error = first_error.or(Some(error)),
            Err(RecvTimeoutError::Timeout) => {
                let names: Vec<_> = missing.iter().map(String::as_str).collect();
                say(format!("waiting for {} ...", names.join(" ")));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    first_error.map_or(Ok(servers), Err)
}

/// Whether a server says that another process has its port.
fn is_address_in_use(dir: &Path) -> bool {
    let logs = fs::read_dir(dir.join("logs")).into_iter().flatten().flatten();
    logs.filter_map(|log| fs::read(log.path()).ok()).any(|log| {
        let log = String::from_utf8_lossy(&log).to_lowercase();
        let texts = ["address already in use", "bind on tcp/ip port", "failed to bind"];
        texts.iter().any(|text| log.contains(text))
    })
}

fn ready_within() -> anyhow::Result<Duration> {
    let variable = "STOCKLOCK_STACK_READY_SECONDS";
    let Some(value) = env::var_os(variable) else { return Ok(READY_WITHIN) };
    let seconds = value.to_str().and_then(|value| value.parse().ok());
    let seconds = seconds
        .with_context(|| format!("{variable}: no number of seconds: {}", value.display()))?;
    Ok(Duration::from_secs(seconds))
}
