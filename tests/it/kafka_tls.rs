//! Connections to brokers by TLS: the usual mistakes, client certificates, and renewed ones.

use std::{collections::BTreeMap, process::Command};

use crate::harness::{Api, Authority, Cli, Role, SecureKafka, World, blocking, lines, wait_until};

/// A mistake, and what a role and `stocklock doctor` say about it.
struct Mistake {
    listener: &'static str,
    protocol: &'static str,
    trusts_broker: bool,
    /// The cause, in `/readyz`.
    cause: &'static str,
    /// A part of the remedy, in the log, in `/readyz` and in the doctor's text.
    remedy: &'static str,
}

const MISTAKES: [Mistake; 6] = [
    Mistake {
        listener: "TLS",
        protocol: "ssl",
        trusts_broker: false,
        cause: "certificate verify failed",
        remedy: "kafka.ssl_ca_location",
    },
    Mistake {
        listener: "OTHERNAME",
        protocol: "ssl",
        trusts_broker: true,
        cause: "its names are nowhere.example",
        remedy: "advertised.listeners",
    },
    Mistake {
        listener: "EXPIRED",
        protocol: "ssl",
        trusts_broker: true,
        cause: "certificate has expired",
        remedy: "renew the broker's certificate",
    },
    Mistake {
        listener: "PLAIN",
        protocol: "ssl",
        trusts_broker: true,
        cause: "SSL handshake failed",
        remedy: "the port has no TLS",
    },
    Mistake {
        listener: "TLS",
        protocol: "plaintext",
        trusts_broker: true,
        cause: "in state APIVERSION_QUERY",
        remedy: "the port may expect TLS",
    },
    Mistake {
        listener: "MUTUAL",
        protocol: "ssl",
        trusts_broker: true,
        cause: "SSL",
        remedy: "kafka.ssl_certificate_location",
    },
];

/// Settings that connect to a broker: `("KAFKA__BROKERS", …)`.
fn tls<'s>(listener: &'s str, ca: &'s str) -> Vec<(&'static str, &'s str)> {
    vec![
        ("KAFKA__BROKERS", listener),
        ("KAFKA__SECURITY_PROTOCOL", "ssl"),
        ("KAFKA__SSL_CA_LOCATION", ca),
    ]
}

/// The environment of a world with other settings of its connection to the broker.
fn connecting(world: &World, settings: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = world.env.clone();
    env.retain(|key, _| !key.starts_with("STOCKLOCK__KAFKA__S"));
    env.extend(settings.iter().map(|(key, value)| (format!("STOCKLOCK__{key}"), (*value).into())));
    env
}

/// Places an order and fails the test unless it is completed.
async fn order_flows(all: &Role) {
    let answer = Api::of(all).place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
    assert_eq!(answer.body["status"], "COMPLETED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_usual_mistake_of_tls_is_named_with_its_remedy() {
    let kafka = SecureKafka::shared();
    let other = tempfile::NamedTempFile::new().expect("a file");
    Authority::new().write(other.path());
    let (ca, other) = (kafka.ca(), other.path().display().to_string());
    let world = World::on_own_broker(&tls(kafka.address("TLS"), &ca)).await;
    let mut made = Vec::new();
    for mistake in &MISTAKES {
        let mut settings = tls(kafka.address(mistake.listener), &ca);
        settings[1].1 = mistake.protocol;
        settings[2].1 = if mistake.trusts_broker { &ca } else { &other };
        settings.truncate(if mistake.protocol == "ssl" { 3 } else { 2 });
        let env = connecting(&world, &settings);
        let role = Role::spawn(&env, "worker", &[]);
        role.listening().await;
        made.push((mistake, env, role));
    }

    for (Mistake { cause, remedy, .. }, env, role) in made {
        let said = role.complains(cause).await;
        let said = if said.contains(remedy) { said } else { role.complains(remedy).await };
        assert!(said.contains("kafka: "), "{said}");
        wait_until(&format!("the log has the cause {cause}"), async || role.log().contains(cause))
            .await;
        assert!(role.log().contains(remedy), "{remedy}: {}", role.log());
        let doctor = blocking(move || Cli::run(&env, &["doctor", "--role", "worker"])).await;
        let shown = doctor.stdout();
        assert!(shown.contains(cause) && shown.contains(remedy), "{cause}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_says_why_no_broker_takes_it_and_ends_with_2() {
    let kafka = SecureKafka::shared();
    let ca = kafka.ca();
    let world = World::on_own_broker(&tls(kafka.address("TLS"), &ca)).await;
    let env = connecting(&world, &tls(kafka.address("OTHERNAME"), &ca));

    let refused = blocking(move || Cli::run(&env, &["setup"])).await.exits(2).stderr();

    for words in ["its names are nowhere.example", "advertised.listeners"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_flow_with_a_client_certificate_by_file_and_by_text() {
    let kafka = SecureKafka::shared();
    let (ca, [certificate, key]) = (kafka.ca(), kafka.client_files());
    let mut by_file = tls(kafka.address("MUTUAL"), &ca);
    by_file.extend([
        ("KAFKA__SSL_CERTIFICATE_LOCATION", certificate.as_str()),
        ("KAFKA__SSL_KEY_LOCATION", &key),
    ]);
    let mut world = World::on_own_broker(&by_file).await;
    world.import(&[("a", 10)]);
    flows(&world).await;

    let (certificate, key) = kafka.client_texts();
    let authority = kafka.authority.pem();
    world.env = connecting(&world, &tls(kafka.address("MUTUAL"), &ca)[..2]);
    world.configure(&[
        ("KAFKA__SSL_CA_PEM", &authority),
        ("KAFKA__SSL_CERTIFICATE_PEM", &certificate),
        ("KAFKA__SSL_KEY_PEM", &key),
    ]);
    flows(&world).await;

    assert_eq!(world.available("a"), 8);
    let shown = world.cli(&["config"]).succeeds().stdout();
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

/// Runs all roles over an order, and the commands that read topics.
async fn flows(world: &World) {
    let all = world.start("all").await;
    order_flows(&all).await;
    all.stop();
    world.verify();
    world.cli(&["dlq", "list"]).succeeds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_go_on_when_a_broker_has_renewed_its_certificate() {
    let mut kafka = SecureKafka::start();
    let (address, ca) = (kafka.address("TLS").to_owned(), kafka.ca());
    let world = World::on_own_broker(&tls(&address, &ca)).await;
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    order_flows(&all).await;
    let former = serial(&address);

    let kafka = blocking(move || {
        kafka.renew_certificates();
        kafka
    })
    .await;

    assert_ne!(serial(&address), former, "the certificate is the same");
    order_flows(&all).await;
    all.ready().await;
    all.stop();
    world.verify();
    assert_eq!(world.available("a"), 8);
    drop((world, kafka));
}

/// The serial number of the certificate that a listener shows.
fn serial(address: &str) -> String {
    let line =
        format!("openssl s_client -connect {address} </dev/null | openssl x509 -serial -noout");
    let output = Command::new("sh").args(["-c", &line]).output().expect("openssl runs");
    let serial = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(serial.starts_with("serial="), "{}", String::from_utf8_lossy(&output.stderr));
    serial
}

#[test]
fn config_check_refuses_certificates_and_keys_that_cannot_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let subject = |is_expired| crate::harness::Subject { name: "client.example", is_expired };
    let (certificate, key) = authority.sign(subject(false));
    let (_, other_key) = authority.sign(subject(false));
    let (expired, expired_key) = authority.sign(subject(true));
    let no_pem = file("text", "hush");
    let certificate_file = file("tls.crt", &certificate);
    let encrypted = encrypted(&file("tls.key", &key));
    let own = ("ssl_certificate_pem", certificate.as_str());

    for (settings, blamed, words) in [
        (vec![("ssl_ca_pem", "hush")], "kafka.ssl_ca_pem", "no PEM of a certificate"),
        (vec![("ssl_ca_pem", key.as_str())], "kafka.ssl_ca_pem", "no PEM of a certificate"),
        (vec![("ssl_ca_location", &no_pem)], "kafka.ssl_ca_location", "no PEM of a certificate"),
        (vec![own, ("ssl_key_pem", &certificate)], "kafka.ssl_key_pem", "no PEM of a private key"),
        (vec![own, ("ssl_key_pem", &other_key)], "kafka.ssl_key_pem", "does not belong to"),
        (vec![own, ("ssl_key_pem", &encrypted)], "kafka.ssl_key_pem", "set kafka.ssl_key_password"),
        (
            vec![own, ("ssl_key_pem", &encrypted), ("ssl_key_password", "hush")],
            "kafka.ssl_key_pem",
            "another password",
        ),
        (
            vec![("ssl_certificate_pem", &expired), ("ssl_key_pem", &expired_key)],
            "kafka.ssl_certificate_pem",
            "has expired",
        ),
    ] {
        let refused = check(&settings).exits(1).stderr();

        let is_one_line = refused.lines().count() == 1;
        let has_words = refused.starts_with(blamed) && refused.contains(words);
        assert!(is_one_line && has_words && !refused.contains("hush"), "{words}: {refused}");
    }
    let good = [
        ("ssl_ca_pem", authority.pem()),
        ("ssl_certificate_location", certificate_file),
        ("ssl_key_pem", encrypted.clone()),
        ("ssl_key_password", "opensesame".to_owned()),
    ];
    check(&good.each_ref().map(|(key, value)| (*key, value.as_str()))).succeeds();
}

/// Runs `config --check` with these settings of a client that speaks TLS.
fn check(settings: &[(&str, &str)]) -> Cli {
    let env = settings.iter().map(|(key, value)| {
        (format!("STOCKLOCK__KAFKA__{}", key.to_uppercase()), (*value).to_owned())
    });
    let protocol = ("STOCKLOCK__KAFKA__SECURITY_PROTOCOL".to_owned(), "ssl".to_owned());
    Cli::run(&env.chain([protocol]).collect(), &["config", "--check"])
}

/// The key of a file, encrypted with the password `opensesame`.
fn encrypted(key: &str) -> String {
    let arguments = ["pkcs8", "-topk8", "-passout", "pass:opensesame", "-in", key];
    let output = Command::new("openssl").args(arguments).output().expect("openssl runs");
    String::from_utf8(output.stdout).expect("a PEM text")
}
