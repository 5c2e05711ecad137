//! Database servers of a test's own, with defaults of its choice, which it may demote.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};
use stocklock_servers::{Flavour, Lifetime, Patience, Running, Service as _, Sql};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Database, PATIENCE, blocking, free_address};

/// A server that is killed when it is dropped.
pub(crate) struct Server {
    server: Running<Sql>,
    /// Dropped last: the server works in it.
    _dir: TempDir,
}

/// The account that the project uses, and the one by which a test demotes a server.
const ACCOUNTS: &str = "
CREATE USER IF NOT EXISTS 'stocklock'@'%' IDENTIFIED BY 'stocklock';
GRANT ALL PRIVILEGES ON `it\\_%`.* TO 'stocklock'@'%';
GRANT PROCESS ON *.* TO 'stocklock'@'%';
CREATE USER IF NOT EXISTS 'admin'@'%' IDENTIFIED BY 'admin';
GRANT ALL PRIVILEGES ON *.* TO 'admin'@'%' WITH GRANT OPTION;
";

/// More options of every such server: a commit need not survive a crash of the machine.
const OPTIONS: [&str; 5] = [
    "--max-connections=200",
    "--sync-binlog=0",
    "--log-bin=binlog",
    "--innodb-flush-log-at-trx-commit=2",
    "--lower-case-table-names=1",
];

impl Server {
    /// Starts a server with more options than those that every test's server has.
    pub(crate) async fn start(database: Database, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let address = free_address();
        let (_, port) = address.rsplit_once(':').expect("host:port");
        let sql = Sql::new(flavour(database), dir.path(), &address, ACCOUNTS);
        let sql = sql
            .expect("the server's program")
            .with_template(prepared(database).await)
            .with_options(&OPTIONS)
            .with_options(&[&format!("--server-id={port}"), small_log(database)])
            .with_options(options);
        let patience = Patience::new(PATIENCE);
        let server = blocking(move || Running::start(sql, Lifetime::OfParent, &patience)).await;
        Self { server: server.expect("the server answers"), _dir: dir }
    }

    /// As `STOCKLOCK_TEST_DATABASES` names the shared ones.
    pub(crate) fn url(&self) -> String {
        self.server.service.url("stocklock", "")
    }

    pub(crate) fn address(&self) -> &str {
        self.server.service.address()
    }

    pub(crate) async fn admin(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.server.service.url("admin", "")).await.expect("a connection")
    }

    /// Has this server follow another, which began as it did, from its first change on.
    pub(crate) async fn follow(&self, primary: &Server) {
        let (_, port) = primary.address().rsplit_once(':').expect("host:port");
        let account = "'127.0.0.1'";
        let sql = match self.server.service.flavour() {
            Flavour::MySql => format!(
                "RESET BINARY LOGS AND GTIDS; CHANGE REPLICATION SOURCE TO \
                 SOURCE_HOST = {account}, SOURCE_PORT = {port}, SOURCE_USER = 'admin', \
                 SOURCE_PASSWORD = 'admin', SOURCE_SSL = 1, SOURCE_LOG_FILE = 'binlog.000001', \
                 SOURCE_LOG_POS = 4, SOURCE_CONNECT_RETRY = 1; START REPLICA"
            ),
            Flavour::MariaDb => format!(
                "CHANGE MASTER TO MASTER_HOST = {account}, MASTER_PORT = {port}, \
                 MASTER_USER = 'admin', MASTER_PASSWORD = 'admin', \
                 MASTER_LOG_FILE = 'binlog.000001', MASTER_LOG_POS = 4, \
                 MASTER_CONNECT_RETRY = 1; START SLAVE"
            ),
        };
        self.admin().await.execute(sql.as_str()).await.expect("it follows");
    }

    /// Makes this server read-only and promotes another, which follows it, once that has all of its
    /// changes. Sessions stay open.
    pub(crate) async fn hand_over_to(&self, replica: &Server) {
        let mut old = self.admin().await;
        old.execute("SET GLOBAL read_only = ON").await.expect("read-only");
        if self.server.service.flavour() == Flavour::MySql {
            old.execute("SET GLOBAL super_read_only = ON").await.expect("read-only");
        }
        let (status, wait, promote) = match self.server.service.flavour() {
            Flavour::MySql => (
                "SHOW BINARY LOG STATUS",
                "SELECT SOURCE_POS_WAIT(?, ?, 60)",
                "STOP REPLICA; RESET REPLICA ALL",
            ),
            Flavour::MariaDb => (
                "SHOW MASTER STATUS",
                "SELECT MASTER_POS_WAIT(?, ?, 60)",
                "STOP SLAVE; RESET SLAVE ALL",
            ),
        };
        let row = old.fetch_one(status).await.expect("its position");
        let file: String = row.try_get_unchecked("File").expect("a file");
        let position: u64 = row.try_get_unchecked("Position").expect("a position");
        let mut new = replica.admin().await;
        let waited = sqlx::query_scalar::<_, Option<i64>>(wait)
            .bind(file)
            .bind(position)
            .fetch_one(&mut new)
            .await;
        assert!(
            waited.expect("an answer").is_some_and(|events| events >= 0),
            "the replica does not follow"
        );
        new.execute(promote).await.expect("promoted");
    }
}

/// A data folder that no server has used yet, kept for later runs of the tests.
async fn prepared(database: Database) -> &'static Path {
    static PREPARED: [OnceCell<PathBuf>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
    PREPARED[usize::from(database == Database::MariaDb)]
        .get_or_init(|| blocking(move || prepare_once(database)))
        .await
}

fn prepare_once(database: Database) -> PathBuf {
    let program = flavour(database).program().expect("the server's program");
    let version = Command::new(program).arg("--version").output().expect("it runs").stdout;
    let version: String =
        String::from_utf8_lossy(&version).chars().filter(char::is_ascii_alphanumeric).collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{database:?}-{version:.80}"));
    if !kept.exists() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let sql = Sql::new(flavour(database), dir.path(), &free_address(), ACCOUNTS)
            .expect("the server's program")
            .with_initial_options(&[small_log(database)]);
        let sql = match database {
            Database::MySql => sql.with_initial_options(&["--lower-case-table-names=1"]),
            Database::MariaDb => sql,
        };
        sql.prepare(&Patience::new(PATIENCE)).expect("a folder of data");
        // Another run may have been first.
        let _kept = fs::rename(sql.data(), &kept);
    }
    kept
}

fn flavour(database: Database) -> Flavour {
    match database {
        Database::MySql => Flavour::MySql,
        Database::MariaDb => Flavour::MariaDb,
    }
}

/// A redo log that takes little time to make.
fn small_log(database: Database) -> &'static str {
    match database {
        Database::MySql => "--innodb-redo-log-capacity=16M",
        Database::MariaDb => "--innodb-log-file-size=16M",
    }
}
