//! What the servers of a stack are like.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use stocklock_servers::{Kafka, Lifetime, Patience, Redis, Service, Sql};

use super::conf::{Conf, ServerName};

/// The server runs these statements at each start.
const ACCOUNTS: &str = "
CREATE USER IF NOT EXISTS 'stocklock'@'%' IDENTIFIED BY 'stocklock';
GRANT ALL PRIVILEGES ON *.* TO 'stocklock'@'%' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS stocklock;
";

/// Everything that makes a commit durable is on, as in production.
const SQL_OPTIONS: [&str; 8] = [
    "--character-set-server=utf8mb4",
    "--server-id=1",
    "--max-connections=500",
    "--innodb-buffer-pool-size=512M",
    "--innodb-flush-log-at-trx-commit=1",
    "--sync-binlog=1",
    "--binlog-expire-logs-seconds=600",
    // The server looks at the age of a binary log when it begins a new one: with small ones the
    // disk does not fill up.
    "--max-binlog-size=64M",
];

/// Its binary log is in row format anyway. Without log writer threads, which a small machine does
/// not have by default, a commit now and then sleeps for 100 ms: see docs/performance.md.
const MYSQL_OPTIONS: [&str; 2] =
    ["--innodb-redo-log-capacity=512M", "--innodb-log-writer-threads=ON"];

const MARIADB_OPTIONS: [&str; 2] = ["--binlog-format=ROW", "--innodb-log-file-size=512M"];

/// A server of a stack. Its output goes to the folder of the stack's logs.
pub(super) struct Server {
    service: Box<dyn Service + Send>,
    log: PathBuf,
}

impl Server {
    pub(super) fn new(dir: &Path, conf: &Conf, name: ServerName) -> anyhow::Result<Self> {
        let (data, address) = (dir.join(name.to_string()), conf.address(name));
        let service: Box<dyn Service + Send> = match name {
            ServerName::Kafka => {
                Box::new(Kafka::new(data, &address)?.with_controller(&conf.controller()))
            }
            ServerName::Redis(_) => Box::new(Redis::new(&name.to_string(), data, &address)?),
            ServerName::MySql => Box::new(
                sql(name, data, &address)?
                    .with_initial_options(&["--innodb-redo-log-capacity=64M"])
                    .with_options(&MYSQL_OPTIONS),
            ),
            ServerName::MariaDb => {
                Box::new(sql(name, data, &address)?.with_options(&MARIADB_OPTIONS))
            }
        };
        Ok(Self { service, log: dir.join("logs").join(name.to_string()) })
    }
}

fn sql(name: ServerName, data: PathBuf, address: &str) -> anyhow::Result<Sql> {
    let flavour = name.flavour().context("an SQL server")?;
    let binlog = format!("--log-bin={}", data.join("data/binlog").display());
    let sql = Sql::new(flavour, data, address, ACCOUNTS)?;
    Ok(sql.with_options(&SQL_OPTIONS).with_options(&[&binlog]))
}

impl Service for Server {
    fn name(&self) -> &str {
        self.service.name()
    }

    fn log(&self) -> PathBuf {
        self.log.clone()
    }

    fn prepare(&self, patience: &Patience) -> anyhow::Result<()> {
        self.service.prepare(patience)
    }

    fn command(&self, lifetime: Lifetime) -> std::process::Command {
        self.service.command(lifetime)
    }

    fn answers(&self) -> bool {
        self.service.answers()
    }
}
