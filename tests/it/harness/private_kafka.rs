use std::{
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tempfile::TempDir;

use super::{free_address, world::PATIENCE};

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const TOPIC: u8 = 2;
const LITERAL: u8 = 3;
const ANY_OPERATION: u8 = 1;
const ALL: u8 = 2;
const READ: u8 = 3;
const DENY: u8 = 2;
const ALLOW: u8 = 3;

/// A broker of its own for a test that takes its data or its clients' rights away.
pub(crate) struct PrivateKafka {
    /// As for `kafka.brokers`.
    pub address: String,
    dir: TempDir,
    child: Option<Child>,
}

impl PrivateKafka {
    /// Starts a broker without data, and waits until it answers.
    pub(crate) fn start() -> Self {
        let (address, controller) = (free_address(), free_address());
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@{controller}\n\
             listeners=PLAINTEXT://{address},CONTROLLER://{controller}\nadvertised.listeners=PLAINTEXT://{address}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             log.dirs={}\nauto.create.topics.enable=false\ndefault.replication.factor=1\nmin.insync.replicas=1\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\ngroup.min.session.timeout.ms=1000\n\
             broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=500\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=true\n",
            log.display()
        );
        std::fs::write(dir.path().join("server.properties"), properties).expect("written");
        let mut kafka = Self { address, dir, child: None };
        kafka.format();
        copy(&kafka.log(), &kafka.formatted());
        kafka.go_on();
        kafka
    }

    /// Ends the broker as a crash of its machine does.
    pub(crate) fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// Starts the broker again with the data that it has, and waits until it answers.
    pub(crate) fn go_on(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("output"))
            .expect("a log");
        let mut java = Self::java(&["-Xms256m", "-Xmx256m"]);
        java.arg("kafka.Kafka").arg(self.dir.path().join("server.properties"));
        self.child =
            Some(java.stdout(log.try_clone().expect("the log")).stderr(log).spawn().expect("java"));
        let client: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .create()
            .expect("a client");
        let begun = Instant::now();
        while client.fetch_metadata(None, Duration::from_secs(1)).is_err() {
            let output =
                || std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "it does not answer:\n{}", output());
        }
    }

    /// Forgets all topics and groups. The broker must have crashed.
    pub(crate) fn lose_disk(&self) {
        std::fs::remove_dir_all(self.log()).expect("removed");
        copy(&self.formatted(), &self.log());
    }

    /// Forgets all messages of a topic, which stays the same topic. The broker must have crashed.
    pub(crate) fn lose_messages(&self, topic: &str) {
        let partitions = std::fs::read_dir(self.log())
            .expect("the log")
            .map(|entry| entry.expect("an entry").path());
        let of_topic = |path: &PathBuf| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.rsplit_once('-'));
            name.is_some_and(|(name, _)| name == topic)
        };
        for partition in partitions.filter(of_topic) {
            for file in std::fs::read_dir(partition).expect("a partition") {
                let path = file.expect("a file").path();
                if path.file_name().is_some_and(|name| name != "partition.metadata") {
                    std::fs::remove_file(path).expect("removed");
                }
            }
        }
    }

    /// Takes every client's right to read a topic. All other rights stay.
    pub(crate) fn deny_reading(&self, topic: &str) {
        for (operation, permission) in [(ALL, ALLOW), (READ, DENY)] {
            let mut entry = vec![TOPIC];
            entry.extend(text(topic));
            entry.push(LITERAL);
            entry.extend([text("User:ANONYMOUS"), text("*")].concat());
            entry.extend([operation, permission]);
            self.change_acls(CREATE_ACLS, &entry);
        }
    }

    /// Gives the right back.
    pub(crate) fn allow_reading(&self, topic: &str) {
        let mut filter = vec![TOPIC];
        filter.extend(text(topic));
        filter.push(LITERAL);
        // Whoever and from wherever.
        filter.extend([-1_i16, -1].iter().flat_map(|null| null.to_be_bytes()));
        filter.extend([ANY_OPERATION, DENY]);
        self.change_acls(DELETE_ACLS, &filter);
    }

    /// Sends one entry by version 1 of a request, which no library here has.
    fn change_acls(&self, kind: i16, entry: &[u8]) {
        use std::io::Read as _;
        let mut request = [kind.to_be_bytes(), 1_i16.to_be_bytes()].concat();
        request.extend(7_i32.to_be_bytes());
        request.extend(text("test"));
        request.extend(1_i32.to_be_bytes());
        request.extend(entry);
        let mut connection = TcpStream::connect(&self.address).expect("the broker");
        let length = i32::try_from(request.len()).expect("short").to_be_bytes();
        connection.write_all(&[&length[..], &request].concat()).expect("sent");
        let mut length = [0; 4];
        connection.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        connection.read_exact(&mut answer).expect("an answer");
        // A number, the time of a throttle, one result, and its error.
        assert_eq!(answer[12..14], [0, 0], "{answer:?}");
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The log of a broker that was never started.
    fn formatted(&self) -> PathBuf {
        self.dir.path().join("formatted")
    }

    fn format(&self) {
        let id = &uuid::Uuid::now_v7().simple().to_string()[..22];
        let mut java = Self::java(&["-XX:TieredStopAtLevel=1"]);
        java.args(["kafka.tools.StorageTool", "format", "--cluster-id", id, "--config"]);
        let formatted = java.arg(self.dir.path().join("server.properties")).output().expect("java");
        assert!(formatted.status.success(), "{formatted:?}");
    }

    fn java(options: &[&str]) -> Command {
        let home = std::env::var("STOCKLOCK_TEST_KAFKA_HOME")
            .expect("STOCKLOCK_TEST_KAFKA_HOME: run dev/test");
        let mut java = Command::new("java");
        java.args(["-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"]);
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        java.args(options).arg("-cp").arg(Path::new(&home).join("*")).stdin(Stdio::null());
        java
    }
}

impl Drop for PrivateKafka {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Copies a folder of files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for file in std::fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

/// A text as the protocol has it: its length, and its bytes.
fn text(text: &str) -> Vec<u8> {
    let length = i16::try_from(text.len()).expect("short");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}
