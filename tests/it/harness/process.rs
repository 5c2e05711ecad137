use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use stocklock_servers::{Lifetime, Patience, Running, stocklock_command};

use super::{http_get, world::PATIENCE};

/// The program that is tested.
const BINARY: &str = env!("CARGO_BIN_EXE_stocklock");

/// A command that has ended.
pub(crate) struct Cli {
    args: String,
    output: Output,
}

/// A role that runs until it is killed or dropped.
pub(crate) struct Role {
    running: Running<stocklock_servers::Role>,
    pub http: String,
    pub admin: String,
    /// Dropped last: the role writes to it.
    _log: tempfile::TempPath,
}

impl Cli {
    pub(crate) fn run(env: &BTreeMap<String, String>, args: &[&str]) -> Self {
        Self::run_binary(Path::new(BINARY), env, args)
    }

    /// Runs the laboratory, which `cargo build --package stocklock-lab` puts beside stocklock.
    pub(crate) fn run_lab(env: &BTreeMap<String, String>, args: &[&str]) -> Self {
        let path = Path::new(BINARY).with_file_name("stocklock-lab");
        let mut command = stocklock_command(&path, env);
        let output = command.args(args).output().expect("the laboratory is built");
        Self { args: args.join(" "), output }
    }

    /// Runs another binary of stocklock.
    pub(crate) fn run_binary(binary: &Path, env: &BTreeMap<String, String>, args: &[&str]) -> Self {
        let output = stocklock_command(binary, env).args(args).output().expect("the binary runs");
        Self { args: args.join(" "), output }
    }

    /// Fails the test unless the command ended with status 0.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub(crate) fn exits(self, status: i32) -> Self {
        let shown = format!("stocklock {}\n{}{}", self.args, self.stdout(), self.stderr());
        assert_eq!(self.output.status.code(), Some(status), "{shown}");
        self
    }

    /// Whether it ended with status 0.
    pub(crate) fn is_done(&self) -> bool {
        self.output.status.success()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", self.stdout()))
    }
}

impl Role {
    pub(crate) fn spawn(
        env: &BTreeMap<String, String>,
        role: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::spawn_binary(Path::new(BINARY), env, role, settings)
    }

    /// The same of another binary.
    pub(crate) fn spawn_binary(
        binary: &Path,
        env: &BTreeMap<String, String>,
        role: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::start(binary, role, |role| {
            role.with_env(env.clone()).with_env(settings.iter().copied())
        })
    }

    /// The same with a hard limit of open files.
    pub(crate) fn spawn_with_files(env: &BTreeMap<String, String>, role: &str, files: u32) -> Self {
        Self::start(Path::new(BINARY), role, |role| {
            role.with_env(env.clone()).with_max_open_files(files)
        })
    }

    fn start(
        binary: &Path,
        name: &str,
        described: impl FnOnce(stocklock_servers::Role) -> stocklock_servers::Role,
    ) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let role = stocklock_servers::Role::new(name, binary, &*log).expect("free ports");
        let role = described(role);
        let (http, admin) = (format!("http://{}", role.http), format!("http://{}", role.admin));
        let role = Running::spawn(role, Lifetime::OfParent, &Patience::new(PATIENCE));
        Self { running: role.expect("the binary runs"), http, admin, _log: log }
    }

    /// Kills it, starts it again at the same addresses, and waits until it is ready.
    pub(crate) fn restart(&mut self) {
        self.running.restart(&Patience::new(PATIENCE)).expect("it starts again");
    }

    /// Waits for `/readyz`.
    pub(crate) async fn ready(&self) {
        let begun = Instant::now();
        loop {
            let answer = http_get(format!("{}/readyz", self.admin)).await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it is not ready for this reason, and answers all that it says.
    pub(crate) async fn complains(&self, of: &str) -> String {
        let begun = Instant::now();
        loop {
            // Right after its start, the role does not listen yet.
            let (status, why) = match http_get(format!("{}/readyz", self.admin)).await {
                Ok(answer) => (answer.status().as_u16(), answer.text().await.expect("a text")),
                Err(error) => (0, format!("{error:?}")),
            };
            if status == 503 && why.contains(of) {
                return why;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "it does not complain of {of}: {status} {why}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a metric, over all its labels that contain `labels`, is as it should be.
    pub(crate) async fn shows(&self, name: &str, labels: &str, is_right: impl Fn(f64) -> bool) {
        let begun = Instant::now();
        loop {
            let found = self.metric(name, labels).await;
            if is_right(found) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{name}{{{labels}}} is {found}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All metrics, as text.
    pub(crate) async fn metrics(&self) -> String {
        http_get(format!("{}/metrics", self.admin))
            .await
            .expect("metrics")
            .text()
            .await
            .expect("text")
    }

    /// Waits for `/livez`: it runs, ready or not.
    pub(crate) async fn listening(&self) {
        let begun = Instant::now();
        while http_get(format!("{}/livez", self.admin)).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "not listening:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The value of a metric, over all its labels that contain `labels`; 0 where there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = http_get(format!("{}/metrics", self.admin))
            .await
            .expect("metrics")
            .text()
            .await
            .expect("text");
        let of_name = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(labels));
        of_name.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// The same of a counter.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are small and count up"
    )]
    pub(crate) async fn count(&self, name: &str, labels: &str) -> u64 {
        self.metric(name, labels).await as u64
    }

    /// The most memory that it had resident, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.running.process.pid()))
                .expect("its status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        peak.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// How many files and sockets it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.running.process.pid()))
            .expect("its files")
            .count()
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.running.process.kill().expect("killed");
    }

    /// Freezes it, as `kill -STOP` does.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        self.running.process.signal(signal).expect("signalled");
    }

    /// Waits until it has ended by itself, and fails the test unless it ended with this status.
    /// Answers its log.
    pub(crate) async fn ended(mut self, status: i32) -> String {
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.running.process.ended().expect("its status") {
                assert_eq!(ended.code(), Some(status), "{}", self.log());
                return self.log();
            }
            assert!(begun.elapsed() < PATIENCE, "it goes on:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to stop, as an orchestrator does.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it as an orchestrator does, and fails the test unless it ends well.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.running.process.ended().expect("its status") {
                assert!(status.success(), "{status}:\n{}", self.log());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not stop:\n{}", self.log());
    }

    /// Waits until it has died at the crash point, and fails the test where it ended otherwise.
    pub(crate) async fn crashed_at(mut self, point: &str) {
        let begun = Instant::now();
        let status = loop {
            match self.running.process.ended().expect("its status") {
                Some(status) => break status,
                None => assert!(
                    begun.elapsed() < PATIENCE,
                    "{point} was never reached:\n{}",
                    self.log()
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status.signal(), Some(9), "{}", self.log());
        assert!(self.log().contains(&format!("crash point {point} reached")), "{}", self.log());
    }

    /// Waits until it has stopped at the point.
    pub(crate) async fn stopped_at(&self, point: &str) {
        let begun = Instant::now();
        while !self.log().contains(&format!("stopped at {point}")) {
            assert!(begun.elapsed() < PATIENCE, "{point} was never reached:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        self.running.process.log()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of process {}:\n{}", self.running.process.pid(), self.log());
        }
    }
}

/// An address that nobody listens on, and that nobody else is given.
pub(crate) fn free_address() -> String {
    stocklock_servers::free_address().expect("a free port")
}

/// Runs a call that blocks, apart from the test's tasks.
pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.expect("it does not panic")
}
