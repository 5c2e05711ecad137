//! TLS between stocklock and the database servers: each fault is named with what mends it, and
//! renewed certificates need no restart.

use std::time::Duration;

use sqlx::{Executor as _, MySqlConnection};
use tempfile::TempDir;

use crate::harness::{
    Authority, Cli, Database, Role, Server, SteadyLoad, Strategy, Subject, World, decides_more,
    wait_until,
};

const VALID: Subject = Subject { name: "127.0.0.1", is_expired: false };
const VERIFIED: &str = "ssl-mode=VERIFY_IDENTITY&ssl-ca={dir}/ca.crt";
const UNITS: i64 = 1_000_000;
const PASSWORD: &str = "hush-7";
const STORES: [&str; 2] = ["STOCKLOCK__ORDER_STORE__URL", "STOCKLOCK__STOCK_STORE__URL"];

/// Accounts whose names say what they want.
const ACCOUNTS: [(&str, &str); 4] =
    [("any", ""), ("fresh", ""), ("encrypted", "REQUIRE SSL"), ("certified", "REQUIRE X509")];
/// The server has no RSA key, so `caching_sha2_password` needs TLS at the first login.
const WITHOUT_RSA: [&str; 2] = [
    "--caching-sha2-password-auto-generate-rsa-keys=OFF",
    "--caching-sha2-password-private-key-path=nowhere.pem",
];

/// A server with certificates of its own, whose files are in a folder.
struct Secured {
    world: World,
    server: Server,
    database: Database,
    authority: Authority,
    /// `ca.crt`, the server's `tls.crt` and `tls.key`, and the files of a client.
    folder: TempDir,
}

impl Secured {
    /// Starts a server with more options than those of its certificates.
    async fn start(database: Database, more: &[&str]) -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
        let dir = folder.path();
        authority.write(&dir.join("ca.crt"));
        authority.write_signed(dir, VALID);
        Authority::new().write(&dir.join("other.crt"));
        let client = dir.join("client");
        std::fs::create_dir(&client).expect("a folder");
        authority.write_signed(&client, Subject { name: "client", is_expired: false });
        let files = [("ssl-ca", "ca.crt"), ("ssl-cert", "tls.crt"), ("ssl-key", "tls.key")];
        let options = files.map(|(key, file)| format!("--{key}={}", dir.join(file).display()));
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let server = Server::start(database, &[&options, more].concat()).await;
        let world = World::on(&server.url(), Strategy::Row).await;
        world.cli(&["setup"]).succeeds();
        world.import(&[("a", UNITS)]);
        let secured = Self { world, server, database, authority, folder };
        for (name, wants) in ACCOUNTS {
            let create = format!("CREATE USER '{name}'@'%' IDENTIFIED BY '{PASSWORD}' {wants}");
            secured.run(&create).await;
            secured.run(&format!("GRANT ALL PRIVILEGES ON `it\\_%`.* TO '{name}'@'%'")).await;
            secured.run(&format!("GRANT PROCESS ON *.* TO '{name}'@'%'")).await;
        }
        secured
    }

    async fn admin(&self) -> MySqlConnection {
        self.server.admin().await
    }

    async fn run(&self, statement: &str) {
        let ran = self.admin().await.execute(statement).await;
        ran.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// Has both stores use an account, a host and a query. `{dir}` in it is the folder.
    fn use_url(&mut self, user: &str, host: &str, query: &str) {
        let query = query.replace("{dir}", &self.folder.path().display().to_string());
        for key in STORES {
            let url = &self.world.env[key];
            let (before, _) = url.split_once('?').expect("a query");
            let (_, path) = before.rsplit_once('/').expect("a path");
            let (_, port) = self.server.address().rsplit_once(':').expect("a port");
            let url = format!("mysql://{user}:{PASSWORD}@{host}:{port}/{path}?{query}");
            self.world.env.insert(key.to_owned(), url);
        }
    }

    /// Has the server read its files again, as an operator does.
    async fn reload(&self) {
        self.run(match self.database {
            Database::MySql => "ALTER INSTANCE RELOAD TLS",
            Database::MariaDb => "FLUSH SSL",
        })
        .await;
    }

    /// Ends all sessions of an account, so that each role dials again.
    async fn end_sessions_of(&self, user: &str) {
        let mut admin = self.admin().await;
        let ids: Vec<u64> = sqlx::query_scalar(
            "SELECT CAST(id AS UNSIGNED) FROM information_schema.processlist WHERE user = ?",
        )
        .bind(user)
        .fetch_all(&mut admin)
        .await
        .expect("the list");
        assert!(!ids.is_empty(), "{user} has no session to end");
        for id in ids {
            // It may have ended by itself.
            let _ended = admin.execute(&*format!("KILL CONNECTION {id}")).await;
        }
    }

    fn show(&self) -> Cli {
        self.world.cli(&["stock", "show", "a"])
    }

    /// Fails the test unless a command, a role and the doctor name the error and its remedy, and
    /// none of them the password.
    async fn is_named(&self, error: &str, advice: &str) {
        let refused = self.show().exits(2).stderr();
        assert!([error, advice].iter().all(|text| refused.contains(text)), "{advice}: {refused}");

        let worker = Role::spawn(&self.world.env, "worker", &[]);
        let why = worker.complains(advice).await;
        assert!(why.contains(error), "{error}: {why}");
        wait_until("the log has the advice", async || {
            let log = worker.log();
            log.lines().any(|line| line.contains("dependency down") && line.contains(advice))
        })
        .await;

        let doctor = ["doctor", "--role", "worker"];
        let found = self.world.cli(&doctor).exits(1).stdout();
        let finding = found.split_once("stock_store").expect("a finding").1;
        assert!([error, advice].iter().all(|text| finding.contains(text)), "{advice}: {found}");
        for shown in [refused, why, worker.log(), found] {
            assert!(!shown.contains(PASSWORD), "{shown}");
        }
        worker.stop();
    }

    /// Fails the test unless a command and a role can use the server.
    async fn is_usable(&self) {
        self.show().succeeds();
        self.world.start("worker").await.stop();
    }
}

async fn each_fault_is_named_with_its_remedy(database: Database) {
    let mut secured = Secured::start(database, &[]).await;
    secured.use_url("any", "127.0.0.1", VERIFIED);
    secured.is_usable().await;

    secured.use_url("any", "127.0.0.1", "ssl-mode=VERIFY_CA&ssl-ca={dir}/other.crt");
    secured.is_named("invalid peer certificate", "in ssl-ca of the URL").await;

    secured.use_url("any", "localhost", VERIFIED);
    secured.is_named("invalid peer certificate", "by a name that is in").await;
    // As docs/connections.md says: sqlx 0.8 checks the name under this mode too.
    secured.use_url("any", "localhost", "ssl-mode=VERIFY_CA&ssl-ca={dir}/ca.crt");
    secured.show().exits(2);

    secured.use_url("certified", "127.0.0.1", VERIFIED);
    secured.is_named("Access denied", "REQUIRE X509 also ssl-cert and ssl-key").await;
    let own = "&ssl-cert={dir}/client/tls.crt&ssl-key={dir}/client/tls.key";
    secured.use_url("certified", "127.0.0.1", &format!("{VERIFIED}{own}"));
    secured.is_usable().await;

    secured.use_url("encrypted", "127.0.0.1", "ssl-mode=DISABLED");
    secured.is_named("Access denied", "REQUIRE SSL need ssl-mode=VERIFY_IDENTITY").await;

    // A session that is open stays as it is.
    let mut admin = secured.admin().await;
    admin.execute("SET GLOBAL require_secure_transport = ON").await.expect("on");
    secured.use_url("any", "127.0.0.1", "ssl-mode=DISABLED");
    let (error, advice) = match database {
        Database::MySql => ("insecure transport", "takes no connection without TLS"),
        Database::MariaDb => ("Access denied", "REQUIRE SSL need ssl-mode=VERIFY_IDENTITY"),
    };
    secured.is_named(error, advice).await;
    admin.execute("SET GLOBAL require_secure_transport = OFF").await.expect("off");

    secured.use_url("any", "127.0.0.1", VERIFIED);
    if database == Database::MySql {
        admin.execute("SET GLOBAL tls_version = ''").await.expect("set");
        let reload = "ALTER INSTANCE RELOAD TLS NO ROLLBACK ON ERROR";
        admin.execute(reload).await.expect("reloaded");
        secured.is_named("does not support TLS", "give the server a certificate").await;
        admin.execute("SET GLOBAL tls_version = 'TLSv1.2,TLSv1.3'").await.expect("set");
        admin.execute("ALTER INSTANCE RELOAD TLS").await.expect("reloaded");
    }

    // MySQL takes no certificate that has expired already.
    secured.authority.write_expiring(secured.folder.path(), VALID.name, Duration::from_secs(10));
    secured.reload().await;
    wait_until("the certificate expires", async || !secured.show().is_done()).await;
    secured.is_named("certificate expired", "renew the server's certificate").await;
}

/// Debian's MariaDB has no certificate unless it gets one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_without_tls_is_named_with_its_remedy() {
    let world = World::without_setup(Database::MariaDb, Strategy::Row).await;
    let url = world.env[STORES[1]].replace("DISABLED", "REQUIRED");
    let set = format!("stock_store.url={url}");

    let refused = world.cli(&["--set", &set, "stock", "show", "a"]).exits(2).stderr();

    let expected = ["does not support TLS", "give the server a certificate"];
    assert!(expected.iter().all(|text| refused.contains(text)), "{refused}");
}

async fn renewed_certificates_need_no_restart(database: Database) {
    let without_rsa = if database == Database::MySql { &WITHOUT_RSA[..] } else { &[] };
    let mut secured = Secured::start(database, without_rsa).await;
    if database == Database::MySql {
        secured.use_url("fresh", "127.0.0.1", "ssl-mode=DISABLED");
        secured.is_named("Access denied", "caching_sha2_password and REQUIRE SSL need").await;
    }
    let dir = secured.folder.path().to_owned();
    let trust = |authorities: &[&Authority]| Authority::write_all(authorities, &dir.join("ca.crt"));
    let own = "&ssl-cert={dir}/client/tls.crt&ssl-key={dir}/client/tls.key";
    secured.use_url("certified", "127.0.0.1", &format!("{VERIFIED}{own}"));
    let all = secured.world.start("all").await;
    let placing = SteadyLoad::on(&all);
    decides_more(&all).await;

    // The server gets a certificate of another authority. Old sessions go on, new ones verify it.
    let next = Authority::new();
    trust(&[&secured.authority, &next]);
    next.write_signed(&dir, VALID);
    secured.reload().await;
    decides_more(&all).await;
    secured.show().succeeds();
    trust(&[&secured.authority]);
    secured.show().exits(2);
    trust(&[&next]);
    secured.end_sessions_of("certified").await;
    decides_more(&all).await;

    // The role trusts another authority again, and says so as soon as it dials.
    trust(&[&secured.authority]);
    secured.end_sessions_of("certified").await;
    all.complains("in ssl-ca of the URL").await;
    trust(&[&next]);
    all.ready().await;
    decides_more(&all).await;

    let placed = placing.stop().await;
    secured.world.settled().await;
    assert!(UNITS - secured.world.available("a") >= placed, "{placed} orders were acknowledged");
    secured.world.verify();
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_mysqls_tls_is_named_with_its_remedy() {
    each_fault_is_named_with_its_remedy(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_mariadbs_tls_is_named_with_its_remedy() {
    each_fault_is_named_with_its_remedy(Database::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_of_mysql_need_no_restart() {
    renewed_certificates_need_no_restart(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_of_mariadb_need_no_restart() {
    renewed_certificates_need_no_restart(Database::MariaDb).await;
}
