//! A role of stocklock as a process.

use std::{
    collections::BTreeMap,
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Lifetime, Service, free_address, probe};

/// What every setting of stocklock begins with.
const SETTING: &str = "STOCKLOCK__";

/// A role with addresses of its own.
#[derive(Debug, Clone)]
pub struct Role {
    name: String,
    binary: PathBuf,
    settings: BTreeMap<String, String>,
    log: PathBuf,
    /// `HOST:PORT` of `http.listen`.
    pub http: String,
    /// `HOST:PORT` of `admin.listen`.
    pub admin: String,
    max_open_files: Option<u32>,
}

impl Role {
    /// A role by its name, for instance `worker`, that listens on free ports. Its output goes to
    /// the file `log`.
    ///
    /// Fails if no port is free.
    pub fn new(
        name: &str,
        binary: impl Into<PathBuf>,
        log: impl Into<PathBuf>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            binary: binary.into(),
            settings: BTreeMap::new(),
            log: log.into(),
            http: free_address()?,
            admin: free_address()?,
            max_open_files: None,
        })
    }

    /// The same with more variables in its environment. Settings of stocklock that this process has
    /// in its own environment are not passed on.
    #[must_use]
    pub fn with_env<K: Into<String>, V: Into<String>>(
        mut self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.settings.extend(env.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// The same with a hard limit of open files.
    #[must_use]
    pub fn with_max_open_files(mut self, files: u32) -> Self {
        self.max_open_files = Some(files);
        self
    }

    /// All that `/metrics` shows.
    pub fn metrics(&self) -> io::Result<String> {
        Ok(probe::http_get(&self.admin, "/metrics")?.1)
    }
}

impl Service for Role {
    fn name(&self) -> &str {
        &self.name
    }

    fn log(&self) -> PathBuf {
        self.log.clone()
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let mut command = match self.max_open_files {
            None => lifetime.command(&self.binary),
            Some(files) => {
                let mut command = lifetime.command("prlimit");
                command.arg(format!("--nofile={files}:{files}")).arg(&self.binary);
                command
            }
        };
        command.arg(&self.name);
        without_settings(&mut command);
        command.env("STOCKLOCK__HTTP__LISTEN", &self.http);
        command.env("STOCKLOCK__ADMIN__LISTEN", &self.admin);
        command.envs(&self.settings);
        command
    }

    /// Whether `/readyz` says so.
    fn answers(&self) -> bool {
        probe::http_get(&self.admin, "/readyz").is_ok_and(|(status, _)| status == 200)
    }
}

/// A command of stocklock that runs to its end, with exactly these settings.
pub fn stocklock_command<'a>(
    binary: &Path,
    env: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Command {
    let mut command = Lifetime::OfParent.command(binary);
    without_settings(&mut command);
    command.envs(env);
    command
}

/// Has the command inherit no setting of stocklock.
fn without_settings(command: &mut Command) {
    let inherited = env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with(SETTING)) {
        command.env_remove(name);
    }
}
