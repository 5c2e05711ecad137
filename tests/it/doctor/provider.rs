//! Faults of the provider of JWTs.

use super::{Diagnosis, fault};
use crate::harness::{Answering, Database, IssuerKey, Provider, Strategy, World};

const INGEST: [&str; 2] = ["--role", "ingest"];
const EMPTY: &str = r#"{"keys": []}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_without_keys_or_an_answer_is_named() {
    let key = IssuerKey::new("a");
    let provider = Provider::serving(&[&key]);
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    for (name, value) in provider.settings("1m") {
        world.env.insert(name.to_owned(), value.to_owned());
    }

    Diagnosis::with_status(&world, &INGEST, 0);
    assert_eq!(provider.readings(), 1);

    provider.now(Answering::Text(EMPTY));
    let lines = Diagnosis::with_status(&world, &INGEST, 1).lines(&fault(
        "reachable",
        "wrong",
        "has no key that a JWT may be signed with",
    ));
    assert!(lines.iter().all(|line| line.starts_with("auth.jwks_url = ")), "{lines:?}");

    for answering in [Answering::Away, Answering::Hanging] {
        provider.now(answering);
        let away = Diagnosis::with_status(&world, &INGEST, 2);
        assert_eq!(away.faults("reachable")[0]["dependency"], "jwks");
    }
    // No other role needs it.
    Diagnosis::with_status(&world, &["--role", "worker"], 0);
}
