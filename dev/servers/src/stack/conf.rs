//! The file `stack.conf`: which servers a stack has, and their ports.

use std::{collections::BTreeMap, fmt, fs, path::Path, str::FromStr};

use anyhow::{Context as _, bail};
use stocklock_servers::{Flavour, Identity, free_address};

use super::folder;

const FILE: &str = "stack.conf";
const REDIS_MASTERS: u8 = 3;
const CONTROLLER: &str = "controller";

/// A server of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerName {
    Kafka,
    MySql,
    MariaDb,
    Redis(u8),
}

impl ServerName {
    /// Which SQL server it is.
    pub(super) fn flavour(self) -> Option<Flavour> {
        match self {
            Self::MySql => Some(Flavour::MySql),
            Self::MariaDb => Some(Flavour::MariaDb),
            Self::Kafka | Self::Redis(_) => None,
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kafka => f.write_str("kafka"),
            Self::MySql => f.write_str("mysql"),
            Self::MariaDb => f.write_str("mariadb"),
            Self::Redis(number) => write!(f, "redis{number}"),
        }
    }
}

impl FromStr for ServerName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "kafka" => Self::Kafka,
            "mysql" => Self::MySql,
            "mariadb" => Self::MariaDb,
            _ => {
                let number = name.strip_prefix("redis").and_then(|number| number.parse().ok());
                Self::Redis(number.with_context(|| format!("no server is called {name:?}"))?)
            }
        })
    }
}

/// The servers of a stack. The presence of its file marks a folder as a stack.
#[derive(Debug)]
pub(super) struct Conf {
    pub(super) servers: Vec<ServerName>,
    ports: BTreeMap<String, u16>,
}

impl Conf {
    /// A stack with these SQL servers, on free ports.
    pub(super) fn new(databases: &[Flavour]) -> anyhow::Result<Self> {
        let sql = databases.iter().map(|flavour| match flavour {
            Flavour::MySql => ServerName::MySql,
            Flavour::MariaDb => ServerName::MariaDb,
        });
        let redis = (1..=REDIS_MASTERS).map(ServerName::Redis);
        let servers: Vec<_> = [ServerName::Kafka].into_iter().chain(sql).chain(redis).collect();
        let mut ports = BTreeMap::new();
        let names = servers.iter().map(ToString::to_string);
        for name in names.chain([CONTROLLER.to_owned()]) {
            let address = free_address()?;
            let (_, port) = address.rsplit_once(':').context("an address has a port")?;
            ports.insert(name, port.parse()?);
        }
        Ok(Self { servers, ports })
    }

    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    pub(super) fn load(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(FILE);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut conf = Self { servers: Vec::new(), ports: BTreeMap::new() };
        for line in text.lines() {
            match line.split_once('=') {
                Some(("servers", names)) => {
                    let names = names.trim_matches('\'').split(' ');
                    conf.servers = names.map(str::parse).collect::<anyhow::Result<_>>()?;
                }
                Some((key, port)) if key.starts_with("port_") => {
                    let port = port.parse().with_context(|| format!("no port: {line}"))?;
                    conf.ports.insert(key["port_".len()..].to_owned(), port);
                }
                _ => bail!("expected servers=… or port_NAME=…, found {line:?}"),
            }
        }
        Ok(conf)
    }

    pub(super) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let ports = self.ports.iter().map(|(name, port)| format!("port_{name}={port}\n"));
        let text = format!("servers='{}'\n{}", self.names(), ports.collect::<String>());
        Ok(fs::write(dir.join(FILE), text)?)
    }

    /// The names of all servers, in one line.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
        names.join(" ")
    }

    pub(super) fn port(&self, server: ServerName) -> u16 {
        self.port_of(&server.to_string())
    }

    pub(super) fn address(&self, server: ServerName) -> String {
        format!("127.0.0.1:{}", self.port(server))
    }

    pub(super) fn controller(&self) -> String {
        format!("127.0.0.1:{}", self.port_of(CONTROLLER))
    }

    /// The servers that run, by their recorded processes.
    pub(super) fn running(&self, dir: &Path) -> impl Iterator<Item = (ServerName, Identity)> {
        let recorded = |server: &ServerName| Some((*server, folder::recorded(dir, *server)?));
        self.servers.iter().filter_map(recorded).filter(|(_, identity)| identity.is_running())
    }

    fn port_of(&self, name: &str) -> u16 {
        self.ports.get(name).copied().unwrap_or_default()
    }
}
