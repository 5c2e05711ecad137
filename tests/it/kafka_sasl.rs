//! Clients that prove to brokers who they are: PLAIN, SCRAM, and tokens (OAUTHBEARER).

use std::time::{Duration, Instant};

use crate::harness::{
    Api, Authority, IssuerKey, Issuing, PASSWORD, Role, SECRET, SecureKafka, TokenEndpoint, USER,
    World, blocking, lines, stays, wait_until,
};

/// Tokens that end soon. A session with the broker ends before them, after 5 s.
const SHORT: Issuing = Issuing::Tokens(10);

/// Settings of a user with a password, over TLS.
fn user<'s>(
    kafka: &'s SecureKafka,
    ca: &'s str,
    mechanism: &'s str,
    password: &'s str,
) -> Vec<(&'static str, &'s str)> {
    vec![
        ("KAFKA__BROKERS", kafka.address("SASL")),
        ("KAFKA__SECURITY_PROTOCOL", "sasl_ssl"),
        ("KAFKA__SSL_CA_LOCATION", ca),
        ("KAFKA__SASL_MECHANISM", mechanism),
        ("KAFKA__SASL_USERNAME", USER),
        ("KAFKA__SASL_PASSWORD", password),
    ]
}

/// Places an order and fails the test unless it is completed.
async fn order_flows(all: &Role) {
    let answer = Api::of(all).place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
    assert_eq!(answer.body["status"], "COMPLETED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_flow_with_a_password_under_plain_and_under_scram() {
    let kafka = SecureKafka::shared();
    let ca = kafka.ca();
    let mut world = World::on_own_broker(&user(&kafka, &ca, "PLAIN", PASSWORD)).await;
    world.import(&[("a", 10)]);

    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        world.configure(&user(&kafka, &ca, mechanism, PASSWORD));
        let all = world.start("all").await;
        order_flows(&all).await;
        all.stop();
        world.verify();
    }

    assert_eq!(world.available("a"), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_or_mechanism_is_named_with_its_remedy() {
    let kafka = SecureKafka::shared();
    let ca = kafka.ca();
    let world = World::on_own_broker(&user(&kafka, &ca, "PLAIN", PASSWORD)).await;
    let mut made = Vec::new();
    for (mechanism, password, cause, remedy) in [
        ("PLAIN", "hush-wrong", "Authentication failed", "kafka.sasl_password"),
        ("SCRAM-SHA-512", "hush-wrong", "Authentication failed", "kafka.sasl_password"),
        ("SCRAM-SHA-256", PASSWORD, "supported mechanisms: ", "kafka.sasl_mechanism"),
    ] {
        let mut wrong = Vec::new();
        for (key, value) in user(&kafka, &ca, mechanism, password) {
            wrong.push((format!("STOCKLOCK__{key}"), value.to_owned()));
        }
        let mut env = world.env.clone();
        env.extend(wrong);
        let role = Role::spawn(&env, "worker", &[]);
        role.listening().await;
        made.push((env, role, cause, remedy));
    }

    for (env, role, cause, remedy) in made {
        let said = role.complains(remedy).await;
        assert!(said.contains(cause), "{cause}: {said}");
        wait_until("the log has the remedy", async || role.log().contains(remedy)).await;
        let doctor = blocking(move || {
            crate::harness::Cli::run(&env, &["doctor", "--role", "worker"]).exits(1)
        });
        let shown = doctor.await.stdout();
        assert!(shown.contains(cause) && shown.contains(remedy), "{cause}: {shown}");
        assert!(![said, shown, role.log()].concat().contains("hush"), "a password is shown");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_with_tokens_that_end_are_renewed_under_load() {
    let kafka = SecureKafka::shared();
    let endpoint = TokenEndpoint::issuing(SHORT);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("OAUTH"))).await;
    world.import(&[("a", 100_000)]);
    let all = world.start("all").await;
    let (issued, begun) = (endpoint.issued(), Instant::now());

    // Four tokens in a row, each of which outlives its session.
    let mut placed = 0;
    while endpoint.issued() < issued + 4 || begun.elapsed() < Duration::from_secs(15) {
        order_flows(&all).await;
        placed += 1;
        assert!(begun.elapsed() < Duration::from_secs(180), "{} tokens", endpoint.issued());
    }

    all.ready().await;
    assert_eq!(all.count("stocklock_retries_total", "token_endpoint").await, 0);
    all.stop();
    world.verify();
    world.cli(&["dlq", "list"]).succeeds();
    assert_eq!(world.available("a"), 100_000 - placed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_go_on_by_themselves_after_the_token_endpoint_was_away() {
    let kafka = SecureKafka::shared();
    let endpoint = TokenEndpoint::issuing(SHORT);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("OAUTH"))).await;
    world.import(&[("a", 100)]);
    endpoint.now(Issuing::Away);
    let all = Role::spawn(&world.env, "all", &[]);
    all.listening().await;

    let said = all.complains("Failed to acquire SASL OAUTHBEARER token").await;
    assert!(said.contains(&endpoint.url) && said.contains("kafka.oauth_token_url"), "{said}");
    all.shows("stocklock_retries_total", "token_endpoint", |retries| retries >= 2.0).await;
    endpoint.now(SHORT);
    all.ready().await;
    order_flows(&all).await;

    // The tokens end, and the sessions with them.
    endpoint.now(Issuing::Hanging);
    all.complains("kafka: ").await;
    let waiting = Api::of(&all).place(&lines(&[("a", 1)])).await.is(202);
    let id = waiting.order_id().to_owned();
    stays(Duration::from_secs(2), "the order is pending", async || {
        Api::of(&all).get(&format!("/v1/orders/{id}")).await.body["status"] == "PENDING"
    })
    .await;
    endpoint.now(SHORT);
    Api::of(&all).becomes(&id, "COMPLETED").await;
    all.ready().await;
    order_flows(&all).await;

    all.stop();
    world.verify();
    assert_eq!(world.available("a"), 97);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_gives_no_token_is_named_and_asked_again() {
    let kafka = SecureKafka::shared();
    let endpoint = TokenEndpoint::issuing(SHORT);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("OAUTH"))).await;
    endpoint.now(Issuing::Text("<html>"));
    let worker = Role::spawn(&world.env, "worker", &[]);
    worker.listening().await;

    for (issuing, cause) in [
        (Issuing::Text("<html>"), "the answer is no JSON"),
        (Issuing::Text("{\"access_token\":\"hush\"}"), "the answer has no expires_in"),
        (Issuing::Text("{\"token\":\"hush\"}"), "the answer has no access_token"),
        (Issuing::Huge, "the answer has more than"),
        (Issuing::Hanging, "operation timed out"),
    ] {
        endpoint.now(issuing);
        wait_until(cause, async || worker.log().contains(cause)).await;
    }
    assert!(!worker.log().contains("hush"), "{}", worker.log());

    endpoint.now(SHORT);
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_over_tls_is_trusted_by_its_own_authority() {
    let kafka = SecureKafka::shared();
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let file = |authority: &Authority, name: &str| {
        authority.write(&folder.path().join(name)).display().to_string()
    };
    let (right, wrong) = (file(&authority, "right.crt"), file(&other, "wrong.crt"));
    let endpoint = TokenEndpoint::over_tls(SHORT, &authority);
    let mut settings = endpoint.settings(kafka.address("OAUTH"));
    settings.push(("KAFKA__OAUTH_CA_LOCATION", &right));
    let world = World::on_own_broker(&settings).await;
    world.import(&[("a", 10)]);

    let wrong = [("STOCKLOCK__KAFKA__OAUTH_CA_LOCATION", wrong.as_str())];
    let stranger = Role::spawn(&world.env, "worker", &wrong);
    stranger.listening().await;
    let said = stranger.complains("certificate").await;
    wait_until("the log has the remedy", async || {
        stranger.log().contains("in kafka.oauth_ca_location")
    })
    .await;
    let all = world.start("all").await;
    order_flows(&all).await;

    assert!(said.contains("token"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_broker_refuses_is_named_with_its_remedy() {
    let kafka = SecureKafka::shared();
    let endpoint = TokenEndpoint::issuing(SHORT);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("OAUTH"))).await;
    endpoint.now(Issuing::EndedTokens);
    let worker = Role::spawn(&world.env, "worker", &[]);
    worker.listening().await;

    let said = worker.complains("the broker refuses the token").await;
    wait_until("the log has the remedy", async || {
        worker.log().contains("check kafka.oauth_scope, the clocks")
    })
    .await;
    assert!(!worker.log().contains("kafka.sasl_password"), "{}", worker.log());

    endpoint.now(SHORT);
    worker.ready().await;
    assert!(said.contains("kafka.oauth_scope"), "{said}");
}

/// The broker reads the keys of the provider, and checks signatures, issuer, audience and times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_flow_with_signed_tokens_across_a_change_of_the_key() {
    let kafka = SecureKafka::start();
    let (first, second, strange) =
        (IssuerKey::new("first"), IssuerKey::new("second"), IssuerKey::new("first"));
    kafka.provider.rotates_to(&[&first]);
    let endpoint = TokenEndpoint::issuing(SHORT);
    endpoint.signs_with(first);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("JWKS"))).await;
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    order_flows(&all).await;

    kafka.provider.rotates_to(&[&second]);
    endpoint.signs_with(second);
    let issued = endpoint.issued();
    wait_until("tokens of the second key", async || endpoint.issued() > issued + 4).await;
    order_flows(&all).await;

    endpoint.signs_with(strange);
    all.complains("the broker refuses the token").await;
    drop(all);
    assert_eq!(world.available("a"), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_client_secret_is_named_and_never_shown() {
    let kafka = SecureKafka::shared();
    let endpoint = TokenEndpoint::issuing(SHORT);
    let world = World::on_own_broker(&endpoint.settings(kafka.address("OAUTH"))).await;
    let mut env = world.env.clone();
    env.insert("STOCKLOCK__KAFKA__OAUTH_CLIENT_SECRET".to_owned(), "hush-wrong".to_owned());
    let worker = Role::spawn(&env, "worker", &[]);
    worker.listening().await;

    let said = worker.complains("status 401, invalid_client").await;
    wait_until("the log has the remedy", async || {
        worker.log().contains("check kafka.oauth_client_id and kafka.oauth_client_secret")
    })
    .await;
    let other = env.clone();
    let doctor = blocking(move || {
        crate::harness::Cli::run(&other, &["doctor", "--role", "worker"]).exits(1).stdout()
    })
    .await;
    let setup =
        blocking(move || crate::harness::Cli::run(&env, &["setup"]).exits(2).stderr()).await;

    for text in [&said, &doctor, &setup] {
        assert!(text.contains("invalid_client"), "{text}");
        assert!(text.contains("kafka.oauth_client_secret"), "{text}");
    }
    let everything = [said, doctor, setup, worker.log(), worker.metrics().await].concat();
    // The endpoint's refusal repeats the header, which encodes the secret.
    for secret in ["hush", SECRET, "Basic "] {
        assert!(!everything.contains(secret), "{secret} is shown");
    }
}
