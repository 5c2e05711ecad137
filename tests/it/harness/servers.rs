//! Database servers of a test's own, with defaults of its choice, which it may demote.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Database, PATIENCE, free_address};

/// A server that is killed when it is dropped.
pub(crate) struct Server {
    database: Database,
    address: String,
    dir: TempDir,
    process: Child,
}

/// The account that the project uses, and the one by which a test demotes a server.
const ACCOUNTS: &str = "
CREATE USER IF NOT EXISTS 'stocklock'@'%' IDENTIFIED BY 'stocklock';
GRANT ALL PRIVILEGES ON `it\\_%`.* TO 'stocklock'@'%';
GRANT PROCESS ON *.* TO 'stocklock'@'%';
CREATE USER IF NOT EXISTS 'admin'@'%' IDENTIFIED BY 'admin';
GRANT ALL PRIVILEGES ON *.* TO 'admin'@'%' WITH GRANT OPTION;
";

impl Server {
    /// Starts a server with more options than those that every test's server has.
    pub(crate) async fn start(database: Database, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        copy(prepared(database).await, &dir.path().join("data"));
        fs::write(dir.path().join("accounts.sql"), ACCOUNTS).expect("written");
        let address = free_address();
        let (_, port) = address.rsplit_once(':').expect("host:port");
        let mut command = command(database, dir.path());
        command.args([
            "--bind-address=127.0.0.1",
            "--max-connections=200",
            "--skip-name-resolve",
            "--sync-binlog=0",
        ]);
        command.args([&format!("--port={port}"), &format!("--server-id={port}")]);
        command.arg(format!("--init-file={}", dir.path().join("accounts.sql").display()));
        command.args([
            "--log-bin=binlog",
            "--innodb-flush-log-at-trx-commit=2",
            "--lower-case-table-names=1",
        ]);
        if database == Database::MySql {
            command.args([
                "--mysqlx=OFF",
                "--secure-file-priv=NULL",
                "--innodb-redo-log-capacity=16M",
            ]);
        } else {
            command.arg("--innodb-log-file-size=16M");
        }
        let process = command.args(options).spawn().expect("the server runs");
        let mut server = Self { database, address, dir, process };
        server.answers().await;
        server
    }

    /// As `STOCKLOCK_TEST_DATABASES` names the shared ones.
    pub(crate) fn url(&self) -> String {
        self.url_of("stocklock")
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn admin(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url_of("admin")).await.expect("a connection")
    }

    /// Has this server follow another, which began as it did, from its first change on.
    pub(crate) async fn follow(&self, primary: &Server) {
        let (_, port) = primary.address.rsplit_once(':').expect("host:port");
        let account = "'127.0.0.1'";
        let sql = match self.database {
            Database::MySql => format!(
                "RESET BINARY LOGS AND GTIDS; CHANGE REPLICATION SOURCE TO SOURCE_HOST = {account}, SOURCE_PORT = {port}, \
                 SOURCE_USER = 'admin', SOURCE_PASSWORD = 'admin', SOURCE_SSL = 1, SOURCE_LOG_FILE = 'binlog.000001', \
                 SOURCE_LOG_POS = 4, SOURCE_CONNECT_RETRY = 1; START REPLICA"
            ),
            Database::MariaDb => format!(
                "CHANGE MASTER TO MASTER_HOST = {account}, MASTER_PORT = {port}, MASTER_USER = 'admin', \
                 MASTER_PASSWORD = 'admin', MASTER_LOG_FILE = 'binlog.000001', MASTER_LOG_POS = 4, \
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
        if self.database == Database::MySql {
            old.execute("SET GLOBAL super_read_only = ON").await.expect("read-only");
        }
        let (status, wait, promote) = match self.database {
            Database::MySql => (
                "SHOW BINARY LOG STATUS",
                "SELECT SOURCE_POS_WAIT(?, ?, 60)",
                "STOP REPLICA; RESET REPLICA ALL",
            ),
            Database::MariaDb => (
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

    fn url_of(&self, user: &str) -> String {
        let mode = if self.database == Database::MySql { "REQUIRED" } else { "DISABLED" };
        format!("mysql://{user}:{user}@{}/?ssl-mode={mode}", self.address)
    }

    async fn answers(&mut self) {
        let begun = Instant::now();
        while MySqlConnection::connect(&self.url()).await.is_err() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let ended = self.process.try_wait().expect("its status");
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "the server does not answer:\n{}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// A data folder that no server has used yet, kept for later runs of the tests.
async fn prepared(database: Database) -> &'static Path {
    static PREPARED: [OnceCell<PathBuf>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
    let folder = PREPARED[usize::from(database == Database::MariaDb)].get_or_init(|| async move {
        tokio::task::spawn_blocking(move || prepare_once(database)).await.expect("prepared")
    });
    folder.await
}

fn prepare_once(database: Database) -> PathBuf {
    let version =
        Command::new(program(database)).arg("--version").output().expect("the server runs").stdout;
    let version: String =
        String::from_utf8_lossy(&version).chars().filter(char::is_ascii_alphanumeric).collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{database:?}-{version:.80}"));
    if !kept.exists() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        prepare(database, dir.path());
        // Another run may have been first.
        let _kept = fs::rename(dir.path().join("data"), &kept);
    }
    kept
}

fn prepare(database: Database, dir: &Path) {
    let mut command = match database {
        Database::MySql => {
            let mut command = command(database, dir);
            command.args([
                "--initialize-insecure",
                "--lower-case-table-names=1",
                "--innodb-redo-log-capacity=16M",
            ]);
            command.args([
                "--skip-log-bin",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=OFF",
            ]);
            command
        }
        Database::MariaDb => {
            let mut command = Command::new("mariadb-install-db");
            command.args([
                "--no-defaults",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ]);
            command
                .arg(format!("--datadir={}", dir.join("data").display()))
                .arg("--innodb-log-file-size=16M");
            command.stdout(log(dir)).stderr(log(dir));
            command
        }
    };
    let status = command.status().expect("it runs");
    assert!(status.success(), "{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
}

fn program(database: Database) -> String {
    let variable = match database {
        Database::MySql => "STOCKLOCK_TEST_MYSQLD",
        Database::MariaDb => "STOCKLOCK_TEST_MARIADBD",
    };
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable}: run dev/test"))
}

/// The server's program on a folder of its own.
fn command(database: Database, dir: &Path) -> Command {
    let mut command = Command::new(program(database));
    command.arg("--no-defaults").arg(format!("--datadir={}", dir.join("data").display()));
    command.arg(format!("--socket={}", dir.join("sql.sock").display()));
    command.arg(format!("--pid-file={}", dir.join("sql.pid").display()));
    command.arg(format!("--tmpdir={}", dir.display()));
    // Servers refuse to run as root unless told that this is meant.
    if fs::metadata(dir).expect("the folder").uid() == 0 {
        command.arg("--user=root");
    }
    command.stdin(Stdio::null()).stdout(log(dir)).stderr(log(dir));
    command
}

fn log(dir: &Path) -> Stdio {
    fs::File::options().create(true).append(true).open(dir.join("log")).expect("the log").into()
}

fn copy(from: &Path, to: &PathBuf) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "auto.cnf" {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
