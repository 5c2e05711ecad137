//! TLS between clients and ingest.

use std::time::{Duration, Instant};

use reqwest::{Certificate, Identity, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    Authority, Collector, Database, Program, Raw, Role, Strategy, Subject, TokensFile, World,
    http_client_builder, http_get, lines, token_line, wait_until,
};

const VALID: Subject = Subject { name: "127.0.0.1", is_expired: false };

/// Ingest that speaks TLS, and the files of its certificate.
struct Served {
    world: World,
    role: Role,
    authority: Authority,
    folder: TempDir,
}

impl Served {
    async fn with(subject: Subject, more: &[(&str, &str)]) -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        authority.write_signed(folder.path(), subject);
        authority.write(&folder.path().join("ca.crt"));
        let world = World::new(Database::MySql, Strategy::Row).await;
        world.import(&[("a", 100)]);
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (certificate, key) = (path("tls.crt"), path("tls.key"));
        let mut settings = vec![
            ("STOCKLOCK__HTTP__TLS_CERTIFICATE_LOCATION", certificate.as_str()),
            ("STOCKLOCK__HTTP__TLS_KEY_LOCATION", &key),
        ];
        settings.extend(more);
        let role = world.start_with("ingest", &settings).await;
        Self { world, role, authority, folder }
    }

    fn url(&self, path: &str) -> String {
        self.role.http.replace("http://", "https://") + path
    }

    /// The status of an answer to a client that trusts `authority`, and its body.
    async fn get(&self, authority: &Authority) -> Result<StatusCode, String> {
        let client = trusting(authority).build().expect("a client");
        let sent = client.get(self.url("/v1/products/a")).send().await;
        sent.map(|answer| answer.status()).map_err(|error| format!("{error:?}"))
    }
}

/// A client that keeps no connection.
fn trusting(authority: &Authority) -> reqwest::ClientBuilder {
    let authority = Certificate::from_pem(authority.pem().as_bytes()).expect("a certificate");
    http_client_builder().tls_certs_only([authority]).pool_max_idle_per_host(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_span_of_a_request_over_tls_has_the_scheme_https() {
    let collector = Collector::start();
    let traced =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let served = Served::with(VALID, &traced).await;

    served.get(&served.authority).await.expect("an answer");

    wait_until("the span is exported", async || !collector.spans().is_empty()).await;
    for span in collector.spans() {
        assert_eq!(span.attribute("url.scheme"), "https", "{span:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_trust_the_authority_are_served() {
    let served = Served::with(VALID, &[]).await;
    let client = trusting(&served.authority).pool_max_idle_per_host(9).build().expect("a client");

    for _ in 0..3 {
        let order = client.post(served.url("/v1/orders")).json(&lines(&[("a", 1)]));
        assert_eq!(order.send().await.expect("an answer").status(), 202);
    }
    let long = client.get(served.url("/v1/products/a")).header("x", "x".repeat(17 << 10));
    let long = long.send().await.expect("an answer");
    assert_eq!(long.status(), 431);
    let problem: Value = long.json().await.expect("a problem under TLS, too");
    assert_eq!(problem["status"], 431);
    // The answer of a document is larger than a record of TLS.
    let document = client.get(served.url("/openapi.json")).send().await.expect("an answer");
    let document: Value = document.json().await.expect("the whole document");

    assert!(document["paths"].is_object());
    assert_eq!(served.world.count_orders("PENDING").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_tls_or_of_another_authority_are_not_served() {
    let served = Served::with(VALID, &[]).await;

    let stranger = served.get(&Authority::new()).await.expect_err("an error");
    let plain = http_get(format!("{}/v1/products/a", served.role.http)).await;
    let mut probe = Raw::connect(&served.role.http).await;
    probe.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    probe.is_closed().await;

    assert!(stranger.contains("UnknownIssuer"), "{stranger}");
    assert!(plain.is_err(), "{plain:?}");
    assert!(served.role.refused("tls_handshake").await >= 2);
    let log = served.role.log();
    assert!(log.contains("TLS handshake failed"), "{log}");
    assert_eq!(served.get(&served.authority).await, Ok(StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_replaced_without_a_restart() {
    let expired = Subject { is_expired: true, ..VALID };
    let served = Served::with(expired, &[]).await;

    let refused = served.get(&served.authority).await.expect_err("an error");
    served.authority.write_signed(served.folder.path(), VALID);
    wait_until("the new certificate is used", async || {
        served.get(&served.authority).await == Ok(StatusCode::OK)
    })
    .await;

    assert!(refused.contains("InvalidCertificate(Expired"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_certificate_file_leaves_the_last_good_one() {
    let served = Served::with(VALID, &[]).await;

    // The key of another certificate.
    let (_, other_key) = served.authority.sign(VALID);
    std::fs::write(served.folder.path().join("tls.key"), other_key).expect("written");
    wait_until("the broken files are reported", async || {
        served.role.metric("stocklock_http_outdated", "certificate").await == 1.0
    })
    .await;
    assert_eq!(served.get(&served.authority).await, Ok(StatusCode::OK));
    assert!(served.role.log().contains("files not reloaded"), "{}", served.role.log());

    let other = Authority::new();
    other.write_signed(served.folder.path(), VALID);
    wait_until("the certificate of another authority is used", async || {
        served.get(&other).await == Ok(StatusCode::OK)
    })
    .await;
    assert!(served.get(&served.authority).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_finishes_its_handshake_is_cut_off() {
    let served = Served::with(VALID, &[]).await;
    let begun = Instant::now();
    let mut silent = Raw::connect(&served.role.http).await;
    let mut partial = Raw::connect(&served.role.http).await;
    // The beginning of a record of the handshake.
    partial.send(&[0x16, 0x03, 0x01, 0x02, 0x00]).await;

    silent.is_closed().await;
    partial.is_closed().await;

    let took = begun.elapsed();
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(30), "{took:?}");
    assert_eq!(served.get(&served.authority).await, Ok(StatusCode::OK));
}

/// The server keeps a message of a handshake until its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_handshake_is_too_large_is_cut_off_at_once() {
    let served = Served::with(VALID, &[]).await;
    let begun = Instant::now();
    let mut client = Raw::connect(&served.role.http).await;
    // The first record begins a message of 64 KiB, which the others go on with.
    let mut record = vec![0; 5 + (16 << 10)];
    record[..5].copy_from_slice(&[0x16, 0x03, 0x01, 0x40, 0x00]);
    record[5..9].copy_from_slice(&[0x01, 0x00, 0xff, 0xff]);
    client.send_for(&record, Duration::from_secs(1)).await;
    record[5..9].fill(0);
    client.send_for(&record[..8 << 10], Duration::from_secs(1)).await;

    client.is_closed().await;

    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(served.role.log().contains("the handshake is too large"), "{}", served.role.log());
    assert_eq!(served.get(&served.authority).await, Ok(StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_needs_a_certificate_where_the_settings_say_so() {
    let clients = Authority::new();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = clients.write(file.path()).display().to_string();
    let served = Served::with(VALID, &[("STOCKLOCK__HTTP__TLS_CLIENT_CA_LOCATION", &path)]).await;
    let with = async |authority: &Authority| {
        let (certificate, key) = authority.sign(VALID);
        let identity = Identity::from_pem((key + &certificate).as_bytes());
        let client = trusting(&served.authority).identity(identity.expect("an identity"));
        let client = client.build().expect("a client");
        client.get(served.url("/v1/products/a")).send().await.map(|answer| answer.status()).ok()
    };

    assert_eq!(with(&clients).await, Some(StatusCode::OK));
    assert_eq!(with(&Authority::new()).await, None, "a stranger's certificate");
    assert!(served.get(&served.authority).await.is_err(), "no certificate at all");
}

/// The commands, and Python's standard library with a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_speak_tls_and_present_tokens() {
    let tokens = TokensFile::with(&[token_line("shop", "sl_shop", "orders:write,orders:read")]);
    let (key, path) = tokens.setting();
    let mut served = Served::with(VALID, &[(key, &path)]).await;
    let ca = served.folder.path().join("ca.crt").display().to_string();
    let url = served.url("");
    for (key, value) in [
        ("STOCKLOCK__CLIENT__URL", &*url),
        ("STOCKLOCK__CLIENT__TOKEN", "sl_shop"),
        ("STOCKLOCK__CLIENT__CA_LOCATION", &ca),
    ] {
        served.world.env.insert(key.to_owned(), value.to_owned());
    }

    served.world.cli(&["order", "place", "a=1"]).succeeds();
    let arguments = [&*url, &ca, "sl_shop"];
    let python = Program::python("tests/clients/secured_api.py").run(&arguments, "");
    served.world.env.remove("STOCKLOCK__CLIENT__CA_LOCATION");
    let untrusted = served.world.cli(&["order", "place", "a=1"]).exits(2).stderr();

    assert_eq!(python.trim(), "401 202", "without a token, and with it");
    assert!(untrusted.contains("certificate"), "{untrusted}");
    assert_eq!(served.world.count_orders("PENDING").await, 2);
}
