//! Whatever ends `dev/stack exec`, the servers, the command and all that the command started end
//! with it. These tests need the real servers, which `dev/stack` installs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stocklock_servers::{Identity, descendants};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// A child of the command, a grandchild in a session of its own whose parent has ended, and the
/// word that all is there.
const COMMAND: &str = "sleep 1000 & sh -c 'setsid sleep 1001 &'; echo started; wait";
/// Kafka, MariaDB and three Redis masters.
const SERVERS: usize = 5;

struct Exec {
    process: Child,
    parent: TempDir,
    family: Vec<Identity>,
}

impl Exec {
    /// Starts it, and waits until its command runs.
    fn start() -> Self {
        let parent = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let mut process = stack("exec", &parent.path().join("stack"))
            .args(["--database", "mariadb", "sh", "-c", COMMAND])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("text");
        assert_eq!(line, "started\n");
        let family = descendants(process.id().cast_signed());
        // The servers, the process that does the work, the shell, and the two that sleep.
        assert_eq!(family.len(), SERVERS + 4, "{family:?}");
        Self { process, parent, family }
    }

    fn folder(&self) -> PathBuf {
        self.parent.path().join("stack")
    }

    /// The process between the one that the caller sees and the servers.
    fn worker(&self) -> i32 {
        let stat = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("text");
        let me = format!(" S {} ", self.process.id());
        let pids = self.family.iter().map(|process| process.pid());
        let mut children = pids.filter(|pid| stat(*pid).contains(&me));
        let is_worker = |pid: &i32| stat(*pid).contains("stocklock-serve");
        children.find(is_worker).expect("a child of the guard")
    }

    /// Waits until it has ended, and fails the test unless everything has ended with it. Answers
    /// its exit status.
    fn assert_all_end(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while self.family.iter().any(|process| process.is_running()) {
            let running: Vec<_> = self.family.iter().filter(|p| p.is_running()).collect();
            assert!(begun.elapsed() < PATIENCE, "still running: {running:?}");
            thread::sleep(Duration::from_millis(20));
        }
        self.process.wait().expect("it ends").code()
    }
}

fn stack(command: &str, dir: &Path) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../stack");
    let mut stack = Command::new(script);
    stack.arg(command).arg("--dir").arg(dir).stdin(Stdio::null());
    stack
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("sent");
}

#[test]
#[ignore = "needs real servers; dev/test runs it"]
fn an_interrupted_exec_leaves_nothing() {
    let mut exec = Exec::start();

    send(exec.process.id().cast_signed(), Signal::SIGINT);

    assert_eq!(exec.assert_all_end(), Some(130));
    assert!(!exec.folder().exists(), "the data is removed");
}

#[test]
#[ignore = "needs real servers; dev/test runs it"]
fn a_killed_exec_leaves_no_process() {
    let mut exec = Exec::start();

    send(exec.process.id().cast_signed(), Signal::SIGKILL);

    assert_eq!(exec.assert_all_end(), None);
}

#[test]
#[ignore = "needs real servers; dev/test runs it"]
fn an_exec_whose_worker_is_killed_leaves_no_process() {
    let mut exec = Exec::start();

    send(exec.worker(), Signal::SIGKILL);

    assert_eq!(exec.assert_all_end(), Some(137));
}

#[test]
#[ignore = "needs real servers; dev/test runs it"]
fn an_exec_whose_command_ends_leaves_nothing() {
    let parent = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let dir = parent.path().join("stack");
    let command = "setsid sleep 1002 & echo $!; exit 7";
    let mut exec = stack("exec", &dir);
    exec.args(["--database", "mariadb", "--", "sh", "-c", command]).stdout(Stdio::piped());

    let output = exec.spawn().expect("it starts").wait_with_output().expect("it ends");

    assert_eq!(output.status.code(), Some(7), "the status of the command");
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a pid");
    assert_eq!(Identity::of(pid), None, "what the command started has ended");
    assert!(!dir.exists(), "the data is removed");
}

#[test]
#[ignore = "needs real servers; dev/test runs it"]
fn a_killed_up_leaves_no_process() {
    let parent = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let dir = parent.path().join("stack");
    let mut up = stack("up", &dir).args(["--database", "mariadb"]).spawn().expect("it starts");
    let begun = Instant::now();
    while !dir.join("pids/redis1").exists() {
        assert!(begun.elapsed() < PATIENCE, "no server was started");
        thread::sleep(Duration::from_millis(5));
    }
    let family = descendants(up.id().cast_signed());

    send(up.id().cast_signed(), Signal::SIGKILL);

    let begun = Instant::now();
    while family.iter().any(|process| process.is_running()) {
        assert!(begun.elapsed() < PATIENCE, "still running: {family:?}");
        thread::sleep(Duration::from_millis(20));
    }
    up.wait().expect("it ends");
}
