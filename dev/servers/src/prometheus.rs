//! Prometheus, with a configuration of the caller's.

use std::{fs, path::PathBuf, process::Command};

use crate::{Lifetime, Patience, Programs, Service, probe};

/// A Prometheus server that keeps its data in its folder.
#[derive(Debug, Clone)]
pub struct Prometheus {
    program: PathBuf,
    dir: PathBuf,
    address: String,
    config: String,
}

impl Prometheus {
    /// A server at an address `HOST:PORT` that works in `dir`, with this text of a configuration.
    /// Paths in the text count from `dir`.
    ///
    /// Fails if the environment does not name its program.
    pub fn new(dir: impl Into<PathBuf>, address: &str, config: &str) -> anyhow::Result<Self> {
        let (dir, address, config) = (dir.into(), address.to_owned(), config.to_owned());
        Ok(Self { program: Programs::prometheus()?, dir, address, config })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("prometheus.yml")
    }
}

impl Service for Prometheus {
    fn name(&self) -> &'static str {
        "Prometheus"
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output")
    }

    fn prepare(&self, _patience: &Patience) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir)?;
        Ok(fs::write(self.config_file(), &self.config)?)
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let mut prometheus = lifetime.command(&self.program);
        prometheus.arg(format!("--config.file={}", self.config_file().display()));
        prometheus.arg(format!("--storage.tsdb.path={}", self.dir.join("data").display()));
        prometheus.arg(format!("--web.listen-address={}", self.address));
        prometheus
    }

    fn answers(&self) -> bool {
        probe::http_get(&self.address, "/-/ready").is_ok_and(|(status, _)| status == 200)
    }
}
