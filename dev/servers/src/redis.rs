//! A Redis master that knows of no other, and keeps nothing on disk.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Lifetime, Patience, Programs, Service, ports::port, probe};

/// A master at an address of its own.
#[derive(Debug, Clone)]
pub struct Redis {
    name: String,
    program: PathBuf,
    dir: PathBuf,
    address: String,
    settings: Vec<String>,
    env: Vec<(OsString, OsString)>,
}

impl Redis {
    /// A master at an address `HOST:PORT` that works in `dir`.
    ///
    /// Fails if the environment does not name the server's program.
    pub fn new(name: &str, dir: impl Into<PathBuf>, address: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            program: Programs::redis_server()?,
            dir: dir.into(),
            address: address.to_owned(),
            settings: Vec::new(),
            env: Vec::new(),
        })
    }

    /// The same with more settings, as its command line has them: `["--tls-port", "6380"]`.
    #[must_use]
    pub fn with_settings(mut self, settings: &[&str]) -> Self {
        self.settings.extend(settings.iter().map(|word| (*word).to_owned()));
        self
    }

    /// The same with one more variable in its environment.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Service for Redis {
    fn name(&self) -> &str {
        &self.name
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output")
    }

    fn prepare(&self, _patience: &Patience) -> anyhow::Result<()> {
        Ok(fs::create_dir_all(&self.dir)?)
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let mut command = lifetime.command(&self.program);
        command.args(["--bind", "127.0.0.1", "--port", port(&self.address)]);
        command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning"]);
        command.arg("--dir").arg(&self.dir).args(&self.settings);
        command.current_dir(&self.dir).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn answers(&self) -> bool {
        probe::redis(&self.address)
    }
}
