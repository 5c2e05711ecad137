//! Apicurio, a schema registry. It also has the API of Confluent's registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{Lifetime, Patience, Programs, Service, ports::port, probe};

const JAR_ENDING: &str = "-runner.jar";
/// The path of Confluent's API.
const CONFLUENT_PATH: &str = "/apis/ccompat/v7";
/// The path of Apicurio's own API.
const OWN_PATH: &str = "/apis/registry/v2";

/// A registry that keeps everything in memory, with a heap of 512 MiB.
#[derive(Debug, Clone)]
pub struct SchemaRegistry {
    jar: PathBuf,
    dir: PathBuf,
    address: String,
}

impl SchemaRegistry {
    /// A registry at an address `HOST:PORT` that works in `dir`.
    ///
    /// Fails if the environment does not name the folder of its program.
    pub fn new(dir: impl Into<PathBuf>, address: &str) -> anyhow::Result<Self> {
        let jar = jar(&Programs::registry_home()?)?;
        Ok(Self { jar, dir: dir.into(), address: address.to_owned() })
    }

    /// As for `schema_registry.url`.
    pub fn url(&self) -> String {
        format!("http://{}{CONFLUENT_PATH}", self.address)
    }

    /// The URL for Apicurio's own clients.
    pub fn own_url(&self) -> String {
        format!("http://{}{OWN_PATH}", self.address)
    }
}

fn jar(home: &Path) -> anyhow::Result<PathBuf> {
    let files = fs::read_dir(home).with_context(|| format!("{}", home.display()))?;
    let mut paths = files.filter_map(|file| Some(file.ok()?.path()));
    let found = paths.find(|path| path.to_string_lossy().ends_with(JAR_ENDING));
    found.with_context(|| format!("no {JAR_ENDING} in {}", home.display()))
}

impl Service for SchemaRegistry {
    fn name(&self) -> &'static str {
        "schema registry"
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output")
    }

    fn prepare(&self, _patience: &Patience) -> anyhow::Result<()> {
        Ok(fs::create_dir_all(&self.dir)?)
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let mut java = lifetime.command("java");
        java.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        java.arg("-Djava.awt.headless=true").arg("-Dquarkus.http.host=127.0.0.1");
        java.arg(format!("-Dquarkus.http.port={}", port(&self.address)));
        java.arg("-jar").arg(&self.jar).current_dir(&self.dir);
        java
    }

    fn answers(&self) -> bool {
        let answer = probe::http_get(&self.address, &format!("{CONFLUENT_PATH}/subjects"));
        answer.is_ok_and(|(status, _)| status == 200)
    }
}
