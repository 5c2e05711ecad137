use std::{
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
};

use stocklock_servers::{Kafka, Lifetime, Patience, Running, Service as _};
use tempfile::TempDir;

use super::{free_address, world::PATIENCE};

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const TOPIC: u8 = 2;
const GROUP: u8 = 3;
const LITERAL: u8 = 3;
const ANY_OPERATION: u8 = 1;
const ALL: u8 = 2;
const READ: u8 = 3;
const DENY: u8 = 2;
const ALLOW: u8 = 3;

/// What the broker has beside the properties of the stack's.
const PROPERTIES: [(&str, &str); 6] = [
    ("offsets.topic.num.partitions", "1"),
    // A test that crashes the broker waits until it is back.
    ("broker.session.timeout.ms", "2000"),
    ("broker.heartbeat.interval.ms", "500"),
    // A test may deny rights.
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
    ("share.coordinator.state.topic.num.partitions", "1"),
];

/// A broker of its own for a test that takes its data or its clients' rights away.
pub(crate) struct PrivateKafka {
    /// As for `kafka.brokers`.
    pub address: String,
    broker: Running<Kafka>,
    dir: TempDir,
}

impl PrivateKafka {
    /// Starts a broker without data, and waits until it answers.
    pub(crate) fn start() -> Self {
        let (address, patience) = (free_address(), Patience::new(PATIENCE));
        let dir = tempfile::tempdir().expect("a folder");
        let kafka = Kafka::new(dir.path(), &address).expect("Kafka's jars");
        let kafka = kafka.with_heap_mib(256).with_properties(&PROPERTIES);
        kafka.prepare(&patience).expect("a folder of data");
        copy(&kafka.data(), &formatted(dir.path()));
        let broker = Running::start(kafka, Lifetime::OfParent, &patience).expect("it answers");
        Self { address, broker, dir }
    }

    /// Ends the broker as a crash of its machine does.
    pub(crate) fn crash(&mut self) {
        self.broker.process.kill().expect("killed");
    }

    /// Starts the broker again with the data that it has, and waits until it answers.
    pub(crate) fn go_on(&mut self) {
        self.broker.restart(&Patience::new(PATIENCE)).expect("it answers");
    }

    /// Forgets all topics and groups. The broker must have crashed.
    pub(crate) fn lose_disk(&self) {
        std::fs::remove_dir_all(self.log()).expect("removed");
        copy(&formatted(self.dir.path()), &self.log());
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
        self.deny(TOPIC, topic);
    }

    /// Takes every client's right to be a member of a group. All other rights stay.
    pub(crate) fn deny_membership(&self, group: &str) {
        self.deny(GROUP, group);
    }

    fn deny(&self, kind: u8, name: &str) {
        for (operation, permission) in [(ALL, ALLOW), (READ, DENY)] {
            let mut entry = vec![kind];
            entry.extend(text(name));
            entry.push(LITERAL);
            entry.extend([text("User:ANONYMOUS"), text("*")].concat());
            entry.extend([operation, permission]);
            self.change_acls(CREATE_ACLS, &entry);
        }
    }

    /// Does what a line of `kafka-acls.sh` says: `--add --allow-principal USER --operation NAME`,
    /// and `--topic NAME` or `--group NAME`. Once one user has a right to it,
    /// others have none.
    pub(crate) fn run_acls(&self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            words.get(at + 1).copied()
        };
        let operations = [("Read", 3), ("Write", 4), ("Describe", 8), ("DescribeConfigs", 10)];
        let operation = after("--operation").expect("an operation");
        let (_, number) =
            operations.iter().find(|(name, _)| *name == operation).expect("a known operation");
        let (kind, name) = match (after("--topic"), after("--group")) {
            (Some(topic), _) => (TOPIC, topic),
            (None, group) => (GROUP, group.expect("a topic or a group")),
        };
        let principal = after("--allow-principal").expect("a principal");
        let mut entry = vec![kind];
        entry.extend(text(name));
        entry.push(LITERAL);
        entry.extend([text(principal), text("*")].concat());
        entry.extend([*number, ALLOW]);
        self.change_acls(CREATE_ACLS, &entry);
    }

    /// Gives the right back.
    pub(crate) fn allow_reading(&self, topic: &str) {
        self.allow(TOPIC, topic);
    }

    /// Gives the right back.
    pub(crate) fn allow_membership(&self, group: &str) {
        self.allow(GROUP, group);
    }

    fn allow(&self, kind: u8, name: &str) {
        let mut filter = vec![kind];
        filter.extend(text(name));
        filter.push(LITERAL);
        // Any principal, from any host.
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
        self.broker.service.data()
    }
}

/// The data of a broker that was never started.
fn formatted(dir: &Path) -> PathBuf {
    dir.join("formatted")
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
