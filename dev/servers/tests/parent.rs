//! Whatever ends a parent, its children end with it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stocklock_servers::{Identity, Lifetime, Process};

const PATIENCE: Duration = Duration::from_secs(20);
const CHILDREN: usize = 3;
/// Set where this program is started as the parent.
const ENDING: &str = "PARENT_ENDS_BY";

/// Not a test of its own: the others run it as a process that has children.
#[test]
fn parent_with_children() {
    let Ok(ending) = env::var(ENDING) else { return };
    let log = tempfile::NamedTempFile::new().expect("a file");
    // The threads that spawn are gone before the parent is.
    let spawn = || {
        let mut sleep = Lifetime::OfParent.command("sleep");
        sleep.arg("1000");
        Process::spawn("sleep", Lifetime::OfParent, sleep, log.path()).expect("it starts")
    };
    let children: Vec<_> = (0..CHILDREN)
        .map(|_| thread::scope(|scope| scope.spawn(spawn).join().expect("a child")))
        .collect();
    for child in &children {
        println!("child {}", child.identity().expect("it runs"));
    }
    match ending.as_str() {
        "panic" => panic!("as the test asked"),
        "return" => {}
        _ => thread::sleep(Duration::from_secs(1000)),
    }
}

struct Parent {
    process: Child,
    /// Open until the parent has ended, so that what it prints does not fail.
    _output: BufReader<ChildStdout>,
    children: Vec<Identity>,
}

impl Parent {
    fn start(ending: &str) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", "parent_with_children", "--nocapture"]).env(ENDING, ending);
        let mut process =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        let lines = output.by_ref().lines().map(|line| line.expect("text"));
        let identities = lines.filter_map(|line| {
            let (_, identity) = line.split_once("child ")?;
            Some(identity.parse().expect("an identity"))
        });
        let children: Vec<_> = identities.take(CHILDREN).collect();
        assert_eq!(children.len(), CHILDREN);
        Self { process, _output: output, children }
    }

    fn assert_children_end(&self) {
        let begun = Instant::now();
        while self.children.iter().any(|child| child.is_running()) {
            assert!(begun.elapsed() < PATIENCE, "still running: {:?}", self.children);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn end_by(&mut self, signal: Signal) {
        assert!(self.children.iter().all(|child| child.is_running()), "they run before");
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).expect("sent");
        let status = self.process.wait().expect("it ends");
        assert_eq!(status.signal(), Some(signal as i32));
    }
}

#[test]
fn children_of_a_killed_parent_end() {
    let mut parent = Parent::start("signal");

    parent.end_by(Signal::SIGKILL);

    parent.assert_children_end();
}

#[test]
fn children_of_an_interrupted_parent_end() {
    let mut parent = Parent::start("signal");

    parent.end_by(Signal::SIGINT);

    parent.assert_children_end();
}

#[test]
fn children_of_a_panicking_parent_end() {
    let mut parent = Parent::start("panic");

    let status = parent.process.wait().expect("it ends");

    assert_eq!(status.code(), Some(101), "it panicked");
    parent.assert_children_end();
}

#[test]
fn children_of_a_returning_parent_end() {
    let mut parent = Parent::start("return");

    let status = parent.process.wait().expect("it ends");

    assert!(status.success());
    parent.assert_children_end();
}
