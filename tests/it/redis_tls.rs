//! Redis masters that speak TLS alone: `rediss://`.

use std::{path::Path, process::Command};

use stocklock::{
    config::{Config, Layers, SecretUrl},
    domain::ProductId,
    lock::{Lease, Locks, overlong_keys},
};
use tempfile::TempDir;

use crate::harness::{Masters, World, acquire};

fn openssl(dir: &Path, arguments: &str) {
    let ran = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .expect("openssl runs");
    assert!(ran.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// An authority, and a certificate of it for 127.0.0.1, which serves the masters and the client.
fn certificates() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("names"), "subjectAltName=IP:127.0.0.1").expect("written");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        dir.path(),
        &format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt"),
    );
    openssl(dir.path(), &format!("req {key} -subj /CN=stocklock -keyout tls.key -out tls.csr"));
    let sign = "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
                -extfile names -out tls.crt";
    openssl(dir.path(), sign);
    dir
}

/// A master with a port for TLS, which takes no connection without the client's certificate where
/// that is asked for.
async fn master(dir: &Path, asks_for_certificate: &str) -> Masters {
    let file = |name: &str| dir.join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
    let settings = [
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        asks_for_certificate,
    ];
    Masters::start_with_tls(&settings).await
}

fn config(masters: &Masters, dir: &Path, files: &[(&str, &str)]) -> Config {
    let mut flags = vec!["lock.strategy=redlock".to_owned(), "lock.node_timeout=2s".to_owned()];
    flags.extend(
        files.iter().map(|(key, name)| format!("redis.{key}={}", dir.join(name).display())),
    );
    let mut config = Config::resolve(&Layers::read(None, std::iter::empty(), &flags))
        .expect("the configuration");
    config.redis.urls = masters.tls_urls();
    config
}

async fn is_locked(config: &Config) -> bool {
    let locks = Locks::new(&config.lock, &config.redis, &World::metrics()).expect("the locks");
    match acquire(&locks, &[ProductId::parse("a").expect("an id")]).await {
        Ok(held) => {
            held.release().await;
            true
        }
        Err(_) => false,
    }
}

const CA: (&str, &str) = ("ssl_ca_location", "ca.crt");
const CLIENT: [(&str, &str); 2] =
    [("ssl_certificate_location", "tls.crt"), ("ssl_key_location", "tls.key")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_leases_and_surveys_go_over_tls() {
    let dir = certificates();
    let masters = master(dir.path(), "no").await;

    let trusting = config(&masters, dir.path(), &[CA]);

    assert!(is_locked(&trusting).await);
    let lease = Lease::new(&trusting.lock, &trusting.redis, "test").expect("a lease");
    assert_eq!(lease.hold(async { "done" }).await, Some("done"));
    assert_eq!(overlong_keys(&trusting.lock, &trusting.redis).await.expect("a survey"), []);
    // The same without TLS, and by an authority that the system does not know.
    let mut plain = trusting.clone();
    plain.redis.urls =
        vec![SecretUrl::new(masters.tls_urls()[0].expose().replace("rediss", "redis"))];
    assert!(!is_locked(&plain).await, "the master takes connections without TLS");
    assert!(
        !is_locked(&config(&masters, dir.path(), &[])).await,
        "an unknown authority is trusted"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_asks_for_a_certificate_gets_it() {
    let dir = certificates();
    let masters = master(dir.path(), "yes").await;

    let with = config(&masters, dir.path(), &[CA, CLIENT[0], CLIENT[1]]);

    assert!(is_locked(&with).await);
    assert!(!is_locked(&config(&masters, dir.path(), &[CA])).await, "the master asks for none");
}

#[test]
fn a_file_that_is_no_certificate_is_named() {
    let dir = certificates();

    for (file, complaint) in [("nowhere.crt", "No such file"), ("names", "is no PEM file")] {
        let path = dir.path().join(file).display().to_string();
        let set = format!("redis.ssl_ca_location={path}");
        let checked = crate::harness::Cli::run(
            &std::collections::BTreeMap::new(),
            &["config", "--check", "--set", &set],
        );
        let error = checked.exits(1).stderr();
        assert!(
            ["redis.ssl_ca_location", &path, complaint].iter().all(|text| error.contains(text)),
            "{error}"
        );
    }
}
