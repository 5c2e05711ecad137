//! MySQL and MariaDB.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use nix::unistd::{User, geteuid};

use crate::{Lifetime, Patience, Process, Programs, Service, ports::port, probe};

/// Which of the two SQL servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    MySql,
    MariaDb,
}

impl Flavour {
    /// The name of the server, as `dev/stack` and `STOCKLOCK_TEST_DATABASES` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MySql => "mysql",
            Self::MariaDb => "mariadb",
        }
    }

    /// How a client has to connect: MySQL checks passwords over TLS, and makes its own certificate;
    /// Debian's MariaDB has none.
    pub fn ssl_mode(self) -> &'static str {
        match self {
            Self::MySql => "REQUIRED",
            Self::MariaDb => "DISABLED",
        }
    }

    /// The server's program. Fails if the environment does not name it.
    pub fn program(self) -> anyhow::Result<PathBuf> {
        match self {
            Self::MySql => Programs::mysqld(),
            Self::MariaDb => Programs::mariadbd(),
        }
    }
}

/// An SQL server at an address of its own.
#[derive(Debug, Clone)]
pub struct Sql {
    flavour: Flavour,
    program: PathBuf,
    dir: PathBuf,
    address: String,
    accounts: String,
    template: Option<PathBuf>,
    initial_options: Vec<String>,
    options: Vec<String>,
}

impl Sql {
    /// A server at an address `HOST:PORT` that keeps everything in `dir`. It runs the statements of
    /// `accounts` at each start, before it lets anybody in. They make the account `stocklock` with
    /// the password `stocklock`.
    ///
    /// Fails if the environment does not name the server's program.
    pub fn new(
        flavour: Flavour,
        dir: impl Into<PathBuf>,
        address: &str,
        accounts: &str,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            flavour,
            program: flavour.program()?,
            dir: dir.into(),
            address: address.to_owned(),
            accounts: accounts.to_owned(),
            template: None,
            initial_options: Vec::new(),
            options: Vec::new(),
        })
    }

    /// The same, beginning with a copy of a folder of data in which no server has run yet.
    #[must_use]
    pub fn with_template(mut self, data: impl Into<PathBuf>) -> Self {
        self.template = Some(data.into());
        self
    }

    /// The same with more options for the program that makes the folder of data.
    #[must_use]
    pub fn with_initial_options(mut self, options: &[&str]) -> Self {
        self.initial_options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// The same with more options of the server.
    #[must_use]
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The folder of data.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The URL of a database for a user whose password is its name.
    pub fn url(&self, user: &str, database: &str) -> String {
        sql_url(self.flavour, &self.address, user, database)
    }

    /// Both servers' options for the folder of data.
    fn common(&self, mut command: Command) -> Command {
        let path = |name: &str| self.dir.join(name).display().to_string();
        command.arg("--no-defaults").arg(format!("--datadir={}", path("data")));
        command.arg(format!("--socket={}", path("sql.sock")));
        command.arg(format!("--pid-file={}", path("sql.pid")));
        command.arg(format!("--tmpdir={}", self.dir.display()));
        command.arg("--skip-name-resolve");
        if self.flavour == Flavour::MySql {
            command.arg("--secure-file-priv=NULL");
        }
        // Servers refuse to run as root unless an option says that this is meant.
        if geteuid().is_root() {
            command.arg("--user=root");
        }
        command
    }

    /// The command that makes the folder of data. It needs no durability: where it is cut short,
    /// the next one begins anew.
    fn initialize(&self) -> anyhow::Result<Command> {
        let mut command = match self.flavour {
            Flavour::MySql => {
                let mut command = self.common(Lifetime::OfParent.command(&self.program));
                command.args(["--initialize-insecure", "--skip-log-bin"]);
                command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF"]);
                command
            }
            Flavour::MariaDb => {
                let user = User::from_uid(geteuid())?.context("the name of the user")?.name;
                let mut command = self.common(Lifetime::OfParent.command("mariadb-install-db"));
                command.args(["--skip-test-db", "--auth-root-authentication-method=socket"]);
                command.arg(format!("--auth-root-socket-user={user}"));
                command
            }
        };
        command.args(&self.initial_options);
        Ok(command)
    }
}

impl Service for Sql {
    fn name(&self) -> &'static str {
        self.flavour.name()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Makes the folder of data, or copies the template.
    fn prepare(&self, patience: &Patience) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir)?;
        fs::write(self.dir.join("accounts.sql"), &self.accounts)?;
        let ready = self.dir.join("ready");
        if ready.exists() {
            return Ok(());
        }
        if self.data().exists() {
            fs::remove_dir_all(self.data())?;
        }
        if let Some(template) = &self.template {
            copy_data(template, &self.data())?;
        } else {
            let name = format!("the preparation of {}", self.flavour.name());
            let command = self.initialize()?;
            let mut process = Process::spawn(&name, Lifetime::OfParent, command, &self.log())?;
            let status = process.await_end(patience)?;
            anyhow::ensure!(status.success(), "{status}; its log:\n{}", process.log_tail());
        }
        Ok(fs::write(ready, "")?)
    }

    fn command(&self, lifetime: Lifetime) -> Command {
        let mut command = self.common(lifetime.command(&self.program));
        command.args(["--bind-address=127.0.0.1", &format!("--port={}", port(&self.address))]);
        command.arg(format!("--init-file={}", self.dir.join("accounts.sql").display()));
        if self.flavour == Flavour::MySql {
            command.arg("--mysqlx=OFF");
        }
        command.args(&self.options);
        command
    }

    /// Logs in and runs a statement, with the client program that serves both servers.
    fn answers(&self) -> bool {
        // Cheap, and asked before a program is started to find out more.
        if !probe::is_open(&self.address) {
            return false;
        }
        let mut client = Command::new(Programs::sql_client());
        client.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"]);
        client.arg(format!("--port={}", port(&self.address)));
        if self.flavour == Flavour::MySql {
            client.arg("--ssl");
        }
        client.args(["--connect-timeout=5", "--user=stocklock", "--password=stocklock"]);
        client.args(["--batch", "--skip-column-names", "--execute=SELECT 1"]);
        let output = client.stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.stdout.trim_ascii() == b"1")
    }
}

/// The URL of a database for a user whose password is its name.
pub fn sql_url(flavour: Flavour, address: &str, user: &str, database: &str) -> String {
    format!("mysql://{user}:{user}@{address}/{database}?ssl-mode={}", flavour.ssl_mode())
}

/// Copies a folder of data, without the file that says which server it is.
fn copy_data(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_data(&entry.path(), &target)?;
        } else if entry.file_name() != "auto.cnf" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
