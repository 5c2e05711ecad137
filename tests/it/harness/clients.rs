//! Programs in other languages, which speak to the topics with their own libraries.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use stocklock_servers::Lifetime;

/// A program, with all that it needs from the folder of clients.
pub(crate) struct Program(Command);

impl Program {
    /// A Python file of the project, by its path.
    pub(crate) fn python(file: &str) -> Self {
        let mut command = Lifetime::OfParent.command(folder().join("python/bin/python"));
        command.arg(file);
        Self(command)
    }

    /// A Java file of the project, which is compiled as it starts.
    pub(crate) fn java(file: &str) -> Self {
        let mut command = Command::new("java");
        // Short-lived: less to compile, one thread to collect.
        command
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"])
            .arg(folder().join("java/*"))
            .arg(file);
        Self(command)
    }

    /// The Go program in a folder of the project, which is compiled as it starts.
    pub(crate) fn go(directory: &str) -> Self {
        let home = folder().join("go");
        let mut command = Command::new(home.join("go"));
        command.args(["run", "-C", directory, "."]);
        command.env("GOCACHE", home.join("cache")).env("GOPATH", home);
        // What is not installed is not fetched.
        command.envs([("GOPROXY", "off"), ("GOFLAGS", "-modcacherw"), ("CGO_ENABLED", "0")]);
        Self(command)
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Starts it in the project's folder, with its output in a pipe.
    pub(crate) fn start(mut self, args: &[&str]) -> Child {
        let command = self.0.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program runs")
    }

    /// Runs it in the project's folder, and answers what it printed. Fails the test unless it ended
    /// with status 0.
    pub(crate) fn run(mut self, args: &[&str], input: &str) -> String {
        let command = self.0.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().expect("the program runs");
        running.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = running.wait_with_output().expect("its output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{:?}: {}", self.0, text(&output.stderr));
        text(&output.stdout)
    }
}

fn folder() -> PathBuf {
    std::env::var("STOCKLOCK_TEST_CLIENTS").expect("STOCKLOCK_TEST_CLIENTS: run dev/test").into()
}
