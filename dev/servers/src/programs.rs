//! Where the programs of the servers are.

use std::{env, path::PathBuf};

use anyhow::Context as _;

/// The programs, as the environment names them. `dev/stack` sets it, also for the commands that it
/// runs and in what `dev/stack env` prints.
#[derive(Debug, Clone, Copy)]
pub struct Programs;

impl Programs {
    pub const KAFKA_HOME: &str = "STOCKLOCK_TEST_KAFKA_HOME";
    pub const REGISTRY_HOME: &str = "STOCKLOCK_TEST_REGISTRY_HOME";
    pub const PROMETHEUS: &str = "STOCKLOCK_TEST_PROMETHEUS";
    pub const REDIS_SERVER: &str = "STOCKLOCK_TEST_REDIS_SERVER";
    pub const MYSQLD: &str = "STOCKLOCK_TEST_MYSQLD";
    pub const MARIADBD: &str = "STOCKLOCK_TEST_MARIADBD";

    /// The folder of Kafka's jars.
    pub fn kafka_home() -> anyhow::Result<PathBuf> {
        from_env(Self::KAFKA_HOME)
    }

    /// The folder of the schema registry.
    pub fn registry_home() -> anyhow::Result<PathBuf> {
        from_env(Self::REGISTRY_HOME)
    }

    pub fn prometheus() -> anyhow::Result<PathBuf> {
        from_env(Self::PROMETHEUS)
    }

    pub fn redis_server() -> anyhow::Result<PathBuf> {
        from_env(Self::REDIS_SERVER)
    }

    pub fn mysqld() -> anyhow::Result<PathBuf> {
        from_env(Self::MYSQLD)
    }

    pub fn mariadbd() -> anyhow::Result<PathBuf> {
        from_env(Self::MARIADBD)
    }

    /// The client program that serves both SQL servers.
    pub fn sql_client() -> PathBuf {
        on_path("mariadb").unwrap_or_else(|| "mysql".into())
    }
}

fn from_env(variable: &str) -> anyhow::Result<PathBuf> {
    let value = env::var_os(variable);
    value.map(PathBuf::from).with_context(|| format!("{variable} is not set; dev/stack sets it"))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
