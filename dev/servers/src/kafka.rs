//! Apache Kafka in `KRaft` mode: one node that is broker and controller.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{Lifetime, Patience, Process, Programs, Service, free_address, probe};

/// A broker whose clients are not authenticated, unless its properties say so.
#[derive(Debug, Clone)]
pub struct Kafka {
    home: PathBuf,
    dir: PathBuf,
    address: String,
    controller: String,
    heap_mib: u32,
    properties: BTreeMap<String, String>,
    /// Users with a password for SCRAM, as `kafka-storage.sh format --add-scram` takes them.
    scram_users: Vec<String>,
    /// Options of the broker's Java, such as `-Dname=value`.
    options: Vec<String>,
}

impl Kafka {
    /// A broker at an address `HOST:PORT` that keeps everything in `dir`, with a heap of 512 MiB.
    ///
    /// Fails if the environment does not name Kafka's jars.
    pub fn new(dir: impl Into<PathBuf>, address: &str) -> anyhow::Result<Self> {
        let (dir, controller) = (dir.into(), free_address()?);
        let properties = properties(&dir, address, &controller);
        Ok(Self {
            home: Programs::kafka_home()?,
            dir,
            address: address.to_owned(),
            controller,
            heap_mib: 512,
            properties,
            scram_users: Vec::new(),
            options: Vec::new(),
        })
    }

    /// The same with another address of the controller.
    #[must_use]
    pub fn with_controller(mut self, controller: &str) -> Self {
        self.properties.extend(addresses(&self.address, controller));
        controller.clone_into(&mut self.controller);
        self
    }

    /// The same with another size of the heap.
    #[must_use]
    pub fn with_heap_mib(mut self, heap_mib: u32) -> Self {
        self.heap_mib = heap_mib;
        self
    }

    /// The same with more properties, or with other values of them.
    #[must_use]
    pub fn with_properties(mut self, properties: &[(&str, &str)]) -> Self {
        let owned = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.properties.extend(owned);
        self
    }

    /// The same with a user who may log in by a mechanism such as `SCRAM-SHA-512`.
    #[must_use]
    pub fn with_scram_user(mut self, mechanism: &str, name: &str, password: &str) -> Self {
        self.scram_users.push(format!("{mechanism}=[name={name},password={password}]"));
        self
    }

    /// The same with an option for Java, such as `-Dname=value`.
    #[must_use]
    pub fn with_option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The folder with the logs of the partitions.
    pub fn data(&self) -> PathBuf {
        data(&self.dir)
    }

    fn properties_file(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    fn java(&self, lifetime: Lifetime, options: &[&str]) -> Command {
        let mut java = lifetime.command("java");
        java.args(["-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"]);
        java.arg(format!("-Djava.io.tmpdir={}", self.dir.join("tmp").display()));
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        java.arg("-Dorg.slf4j.simpleLogger.showDateTime=true");
        java.arg("-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS");
        java.args(options).arg("-cp").arg(self.home.join("*"));
        java
    }
}

impl Service for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Writes the properties, and formats the folder of the data.
    fn prepare(&self, patience: &Patience) -> anyhow::Result<()> {
        fs::create_dir_all(self.dir.join("tmp"))?;
        let mut text = String::new();
        for (key, value) in &self.properties {
            writeln!(text, "{key}={value}")?;
        }
        fs::write(self.properties_file(), text)?;
        if self.data().join("meta.properties").exists() {
            return Ok(());
        }
        // So short a run is not worth compiling well.
        let mut format = self.java(Lifetime::OfParent, &["-XX:TieredStopAtLevel=1"]);
        format.args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id()?]);
        format.arg("--config").arg(self.properties_file());
        for user in &self.scram_users {
            format.args(["--add-scram", user]);
        }
        let mut formatting =
            Process::spawn("the format of Kafka's data", Lifetime::OfParent, format, &self.log())?;
        let status = formatting.await_end(patience)?;
        anyhow::ensure!(status.success(), "{status}; its log:\n{}", formatting.log_tail());
        Ok(())
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let heap = [format!("-Xms{}m", self.heap_mib), format!("-Xmx{}m", self.heap_mib)];
        let mut java = self.java(lifetime, &[&heap[0], &heap[1]]);
        java.args(&self.options);
        java.arg("kafka.Kafka").arg(self.properties_file());
        java
    }

    fn answers(&self) -> bool {
        probe::kafka(&self.address)
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn properties(dir: &Path, address: &str, controller: &str) -> BTreeMap<String, String> {
    let fixed = [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("auto.create.topics.enable", "false"),
        // There is only one node, so there is only one replica of everything.
        ("default.replication.factor", "1"),
        ("min.insync.replicas", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "4"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "4"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("share.coordinator.state.topic.num.partitions", "4"),
        // A group starts with its first member, instead of waiting three seconds for more.
        ("group.initial.rebalance.delay.ms", "0"),
        // A test that kills a worker waits until the broker notices.
        ("group.min.session.timeout.ms", "1000"),
        ("group.consumer.min.session.timeout.ms", "1000"),
        ("group.consumer.min.heartbeat.interval.ms", "500"),
    ];
    let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let log_dirs = ("log.dirs".to_owned(), data(dir).display().to_string());
    fixed.into_iter().chain([log_dirs]).chain(addresses(address, controller)).collect()
}

fn addresses(address: &str, controller: &str) -> [(String, String); 3] {
    [
        ("controller.quorum.voters", format!("1@{controller}")),
        ("listeners", format!("PLAINTEXT://{address},CONTROLLER://{controller}")),
        ("advertised.listeners", format!("PLAINTEXT://{address}")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

/// 22 characters that Kafka reads as a URL-safe base64 number of 16 bytes. Hexadecimal digits never
/// begin with a dash, which Kafka would take for an option.
fn cluster_id() -> anyhow::Result<String> {
    let mut random = [0; 11];
    fs::File::open("/dev/urandom")?.read_exact(&mut random).context("random bytes")?;
    Ok(random.map(|byte| format!("{byte:02x}")).concat())
}
