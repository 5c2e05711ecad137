//! Faults of TLS and of the login between a worker and a Redis master: each is named with what
//! mends it, and renewed certificates need no restart.

use tempfile::TempDir;

use crate::harness::{
    Authority, Database, Masters, Role, SteadyLoad, Strategy, Subject, World, decides_more,
    wait_until,
};

const VALID: Subject = Subject { name: "127.0.0.1", is_expired: false };
const EXPIRED: Subject = Subject { name: "127.0.0.1", is_expired: true };
const CLIENT: Subject = Subject { name: "client", is_expired: false };
const UNITS: i64 = 1_000_000;

/// A master with certificates of its own, whose files are in a folder.
struct Secured {
    world: World,
    masters: Masters,
    authority: Authority,
    /// `ca.crt`, the master's `tls.crt` and `tls.key`, and `client/` with the same of a client.
    folder: TempDir,
}

impl Secured {
    async fn start() -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
        let dir = folder.path();
        for file in ["ca.crt", "master-ca.crt"] {
            authority.write(&dir.join(file));
        }
        authority.write_signed(dir, VALID);
        Authority::new().write(&dir.join("other.crt"));
        std::fs::create_dir(dir.join("client")).expect("a folder");
        authority.write_signed(&dir.join("client"), CLIENT);
        let path = |name: &str| dir.join(name).display().to_string();
        let (ca, certificate, key) = (path("master-ca.crt"), path("tls.crt"), path("tls.key"));
        let masters = Masters::start_with_tls(&[
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-auth-clients",
            "no",
        ])
        .await;
        let mut world = World::new(Database::MySql, Strategy::Redlock).await;
        world.import(&[("a", UNITS)]);
        world.config.redis.urls = masters.urls();
        for (key, value) in [("LOCK__NODE_TIMEOUT", "2s"), ("REDIS__SSL_CA_LOCATION", &ca)] {
            world.env.insert(format!("STOCKLOCK__{key}"), value.to_owned());
        }
        let mut secured = Self { world, masters, authority, folder };
        secured.use_url(&secured.tls_url());
        secured.trust("ca.crt");
        secured
    }

    fn tls_url(&self) -> String {
        self.masters.tls_urls()[0].expose().to_owned()
    }

    fn plain_url(&self) -> String {
        self.masters.urls()[0].expose().to_owned()
    }

    fn use_url(&mut self, url: &str) {
        self.world.env.insert("STOCKLOCK__REDIS__URLS".to_owned(), url.to_owned());
    }

    fn trust(&mut self, file: &str) {
        let path = self.folder.path().join(file).display().to_string();
        self.world.env.insert("STOCKLOCK__REDIS__SSL_CA_LOCATION".to_owned(), path);
    }

    fn show_certificate(&mut self) {
        for (key, file) in [("CERTIFICATE", "tls.crt"), ("KEY", "tls.key")] {
            let path = self.folder.path().join("client").join(file).display().to_string();
            self.world.env.insert(format!("STOCKLOCK__REDIS__SSL_{key}_LOCATION"), path);
        }
    }

    async fn run(&self, command: &str) {
        self.masters.command_of(0, command).await;
    }

    /// Has the master read its files again, as an operator does.
    async fn reload(&self) {
        let certificate = self.folder.path().join("tls.crt").display().to_string();
        self.run(&format!("CONFIG SET tls-cert-file {certificate}")).await;
    }

    /// Ends all connections to the master, so that each role dials again.
    async fn end_connections(&self) {
        self.run("CLIENT KILL SKIPME yes").await;
    }

    /// Fails the test unless a role and the doctor name the remedy, and none of them a password.
    async fn is_named(&self, advice: &str) {
        let worker = Role::spawn(&self.world.env, "worker", &[]);
        let why = worker.complains(advice).await;
        wait_until("the log has the advice", async || {
            let log = worker.log();
            log.lines().any(|line| line.contains("dependency down") && line.contains(advice))
        })
        .await;

        let doctor = self.world.cli(&["doctor", "--role", "worker"]).exits(1).stdout();
        assert!(doctor.contains(advice), "{advice}: {doctor}");
        for shown in [why, worker.log(), doctor] {
            assert!(!shown.contains("hush"), "{shown}");
        }
        worker.stop();
    }

    async fn is_usable(&self) {
        self.world.start("worker").await.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_masters_certificate_is_named_with_its_remedy() {
    let mut secured = Secured::start().await;
    secured.is_usable().await;

    secured.trust("other.crt");
    secured.is_named("signed the server's certificate in redis.ssl_ca_location").await;

    secured.trust("ca.crt");
    secured.use_url(&secured.tls_url().replace("127.0.0.1", "localhost"));
    secured.is_named("by a name that is in the server's certificate").await;

    secured.use_url(&secured.tls_url());
    secured.run("CONFIG SET tls-auth-clients yes").await;
    secured.is_named("set redis.ssl_certificate_location and redis.ssl_key_location").await;
    secured.show_certificate();
    secured.is_usable().await;

    secured.authority.write_signed(secured.folder.path(), EXPIRED);
    secured.reload().await;
    secured.is_named("renew the server's certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_does_not_fit_the_master_is_named_with_its_remedy() {
    let mut secured = Secured::start().await;

    secured.use_url(&secured.plain_url().replace("redis://", "rediss://"));
    secured.is_named("the port speaks Redis without TLS").await;

    secured.use_url(&secured.tls_url().replace("rediss://", "redis://"));
    secured.is_named("the port speaks TLS").await;

    secured.use_url(&secured.tls_url().replace("rediss://", "rediss://nobody:hush-1@"));
    secured.is_named("correct the user and the password in redis.urls").await;

    secured.use_url(&secured.tls_url());
    secured.run("ACL SETUSER other on >hush-2 ~* &* +@all").await;
    secured.run("ACL SETUSER default resetpass >hush-3").await;
    secured.is_named("the master wants a password").await;
    secured.use_url(&secured.tls_url().replace("rediss://", "rediss://other:hush-2@"));
    secured.is_usable().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_of_a_master_need_no_restart() {
    let mut secured = Secured::start().await;
    let dir = secured.folder.path().to_owned();
    let trust = |authorities: &[&Authority]| {
        Authority::write_all(authorities, &dir.join("ca.crt"));
    };
    secured.show_certificate();
    secured.run("CONFIG SET tls-auth-clients yes").await;
    let all = secured.world.start("all").await;
    let placing = SteadyLoad::on(&all);
    decides_more(&all).await;

    // The master gets a certificate of another authority. Open connections go on.
    let next = Authority::new();
    next.write_signed(&dir, VALID);
    secured.reload().await;
    decides_more(&all).await;
    // New ones do not trust it, until the file of authorities is renewed.
    secured.end_connections().await;
    all.complains("in redis.ssl_ca_location").await;
    trust(&[&secured.authority, &next]);
    all.ready().await;
    decides_more(&all).await;

    // The master trusts the other authority alone, so the client needs another certificate too.
    let authorities = dir.join("next-ca.crt");
    next.write(&authorities);
    secured.run(&format!("CONFIG SET tls-ca-cert-file {}", authorities.display())).await;
    secured.end_connections().await;
    all.complains("set redis.ssl_certificate_location").await;
    next.write_signed(&dir.join("client"), CLIENT);
    all.ready().await;
    decides_more(&all).await;

    let placed = placing.stop().await;
    secured.world.settled().await;
    assert!(UNITS - secured.world.available("a") >= placed, "{placed} orders were acknowledged");
    secured.world.verify();
    all.stop();
}
