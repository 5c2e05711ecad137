//! JWTs of a provider: what they must say, and what happens to its keys.

use std::{process::Command, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::harness::{
    Answering, Api, Database, IssuerKey, Provider, Role, Strategy, World, claims, in_seconds,
    stays, wait_until,
};

/// Long enough that no test sees a second reading that no request has caused.
const SELDOM: &str = "1h";

async fn ingest(provider: &Provider, refresh: &str) -> (World, Role) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let role = world.start_with("ingest", &provider.settings(refresh)).await;
    (world, role)
}

/// Good claims with another value of one of them; null takes the claim away.
fn claims_but(name: &str, value: Value) -> Value {
    let mut claims = claims("shop");
    claims["scope"] = json!("orders:read orders:write");
    claims[name] = value;
    if claims[name].is_null() {
        claims.as_object_mut().expect("an object").remove(name);
    }
    claims
}

/// A token whose parts are as given, with the signature of another one.
fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| {
        let key = EncodingKey::from_secret(b"x");
        let signed = encode(&Header::default(), json, &key).expect("encoded");
        signed.split('.').nth(1).expect("a part").to_owned()
    };
    format!("{}.{}.", part(header), part(claims))
}

/// The key of a provider that signs with RSA, and its public key as a PEM text.
fn rsa_key(id: &str) -> (IssuerKey, String) {
    let openssl = |arguments: &[&str], input: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), input).expect("written");
        let path = file.path().display().to_string();
        let mut command = Command::new("openssl");
        let command = command.args(arguments);
        let command = if input.is_empty() { command } else { command.args(["-in", &path]) };
        String::from_utf8(command.output().expect("openssl runs").stdout).expect("a text")
    };
    let private = openssl(&["genrsa", "2048"], "");
    let public = openssl(&["rsa", "-pubout"], &private);
    let key = EncodingKey::from_rsa_pem(private.as_bytes()).expect("a key");
    (IssuerKey::of(id, key, Algorithm::RS256), public)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_must_say_what_the_settings_demand() {
    let key = IssuerKey::new("k-1");
    let provider = Provider::serving(&[&key]);
    let (world, role) = ingest(&provider, SELDOM).await;
    let api = Api::of(&role);

    api.place_as(&key.sign(&claims_but("aud", json!(["other", "stocklock"])))).await.is(202);
    for (name, value, reason) in [
        ("aud", json!("other"), "wrong_audience"),
        ("aud", json!(["other"]), "wrong_audience"),
        ("aud", Value::Null, "bad_claims"),
        ("iss", json!("https://other.example.com"), "wrong_issuer"),
        ("iss", Value::Null, "bad_claims"),
        ("exp", json!(in_seconds(-60)), "expired"),
        ("exp", Value::Null, "bad_claims"),
        ("exp", json!("tomorrow"), "bad_claims"),
        ("nbf", json!(in_seconds(60)), "not_yet_valid"),
        ("sub", Value::Null, "bad_claims"),
        ("sub", json!(""), "bad_claims"),
    ] {
        let before = role.refused(reason).await;

        let refused = api.place_as(&key.sign(&claims_but(name, value.clone()))).await.problem(401);

        assert!(refused.header("www-authenticate").contains("invalid_token"), "{refused:?}");
        assert_eq!(role.refused(reason).await, before + 1, "{name} = {value}: {refused:?}");
        assert!(role.log().contains(reason), "{reason} is not logged:\n{}", role.log());
    }
    // Within the leeway of 5 s.
    api.place_as(&key.sign(&claims_but("nbf", json!(in_seconds(3))))).await.is(202);
    let other_scope = key.sign(&claims_but("scope", json!("openid orders:read")));
    api.place_as(&other_scope).await.problem(403);
    api.read_as(&other_scope).await.is(200);

    assert_eq!(world.count_orders("PENDING").await, 2);
    assert_eq!(provider.readings(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_decides_the_algorithm_and_not_the_token() {
    let ((rsa, public_pem), curve) = (rsa_key("rsa"), IssuerKey::new("curve"));
    let provider = Provider::serving(&[&rsa, &curve]);
    let (world, role) = ingest(&provider, SELDOM).await;
    let api = Api::of(&role);
    let good = claims_but("nbf", json!(in_seconds(-60)));
    let signed_by = |key: &EncodingKey, algorithm: Algorithm, id: &str| {
        let header = Header { kid: Some(id.to_owned()), ..Header::new(algorithm) };
        encode(&header, &good, key).expect("signed")
    };
    let public = EncodingKey::from_secret(public_pem.as_bytes());
    let none = json!({"alg": "none", "typ": "JWT", "kid": "rsa"});
    let (stranger, _) = rsa_key("rsa");
    let mut tampered = rsa.sign(&good);
    tampered.replace_range(tampered.len() - 8..tampered.len() - 4, "AAAA");

    api.place_as(&rsa.sign(&good)).await.is(202);
    api.place_as(&curve.sign(&good)).await.is(202);
    for (token, reason) in [
        (unsigned(&none, &good), "malformed_token"),
        (unsigned(&json!({"alg": "RS256", "kid": "rsa"}), &good), "bad_signature"),
        (signed_by(&public, Algorithm::HS256, "rsa"), "wrong_algorithm"),
        (signed_by(&public, Algorithm::HS512, "other"), "wrong_algorithm"),
        (rsa_as(&rsa, "curve", &good), "wrong_algorithm"),
        (stranger.sign(&good), "bad_signature"),
        (tampered, "bad_signature"),
    ] {
        let before = role.refused(reason).await;

        let refused = api.place_as(&token).await.problem(401);

        assert_eq!(role.refused(reason).await, before + 1, "{reason}: {refused:?}");
    }
    for (token, detail) in [
        ("a.b.c", "the token is no JWT that ingest can read; nothing was changed"),
        ("sl_removed", "the token is not known; nothing was changed"),
    ] {
        assert_eq!(api.place_as(token).await.problem(401).body["detail"], detail);
    }

    assert_eq!(world.count_orders("PENDING").await, 2);
    assert_eq!(provider.readings(), 1, "a wrong algorithm made ingest ask the provider");
}

/// A token of one key that names another one.
fn rsa_as(key: &IssuerKey, id: &str, claims: &Value) -> String {
    let token = key.sign(claims);
    let (_, rest) = token.split_once('.').expect("parts");
    let header = unsigned(&json!({"alg": "RS256", "kid": id}), claims);
    format!("{}.{rest}", header.split('.').next().expect("a part"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_asked_for_once_a_minute() {
    let (first, second, third) =
        (IssuerKey::new("k-1"), IssuerKey::new("k-2"), IssuerKey::new("k-3"));
    let provider = Provider::serving(&[&first]);
    let (_world, role) = ingest(&provider, SELDOM).await;
    let api = Api::of(&role);
    api.read_as(&first.sign(&claims("shop"))).await.is(200);
    provider.rotates_to(&[&second]);

    let token = second.sign(&claims("shop"));
    let at_once = futures::future::join_all((0..20).map(|_| api.read_as(&token))).await;
    assert!(at_once.iter().all(|answer| answer.status == 200), "{at_once:?}");
    assert_eq!(provider.readings(), 2, "requests at the same time share one reading");
    api.read_as(&first.sign(&claims("shop"))).await.problem(401);

    for _ in 0..50 {
        api.read_as(&third.sign(&claims("shop"))).await.problem(401);
    }
    assert_eq!(provider.readings(), 2, "there was a reading within the minute");
    assert!(role.refused("unknown_key").await >= 51);
}

/// The reading in flight may have begun before the provider had the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_asked_for_after_a_reading_in_flight() {
    let (first, second) = (IssuerKey::new("k-1"), IssuerKey::new("k-2"));
    let provider = Provider::serving(&[&first]);
    let (_world, role) = ingest(&provider, "1s").await;
    let api = Api::of(&role);
    provider.now(Answering::Late(Duration::from_secs(2), vec![first.public.clone()]));
    let before = provider.readings();
    wait_until("a reading is in flight", async || provider.readings() > before).await;
    provider.rotates_to(&[&second]);

    let token = second.sign(&claims("shop"));
    let at_once = futures::future::join_all((0..20).map(|_| api.read_as(&token))).await;

    assert!(at_once.iter().all(|answer| answer.status == 200), "{at_once:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_keys_stay_while_the_provider_fails() {
    let (first, second) = (IssuerKey::new("k-1"), IssuerKey::new("k-2"));
    let provider = Provider::serving(&[&first]);
    let (_world, role) = ingest(&provider, "1s").await;
    let api = Api::of(&role);
    let (good, other) = (first.sign(&claims("shop")), second.sign(&claims("shop")));

    for answering in [
        Answering::Away,
        Answering::Text("<html>out of order</html>"),
        Answering::Text(r#"{"keys":[]}"#),
        Answering::Text(r#"{"keys":[{"kty":"oct","kid":"k-1","k":"c2VjcmV0"}]}"#),
        Answering::Hanging,
    ] {
        provider.now(answering.clone());
        let failed = r#"result="failed",what="keys""#;
        let before = role.count("stocklock_http_reloads_total", failed).await;
        wait_until("a reading fails", async || {
            role.count("stocklock_http_reloads_total", failed).await > before
        })
        .await;

        assert_eq!(api.read_as(&good).await.status, 200, "{answering:?}");
        assert_eq!(role.metric("stocklock_http_outdated", "keys").await, 1.0, "{answering:?}");
        provider.rotates_to(&[&first]);
        role.shows("stocklock_http_outdated", "keys", |outdated| outdated == 0.0).await;
    }
    assert!(role.log().contains("keys of the provider not read"), "{}", role.log());

    provider.rotates_to(&[&second]);
    wait_until("the new keys are used", async || api.read_as(&other).await.status == 200).await;
    api.read_as(&good).await.problem(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_key_requests_are_told_to_come_again() {
    let key = IssuerKey::new("k-1");
    let provider = Provider::serving(&[]);
    provider.now(Answering::Away);
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let role = Role::spawn(&world.env, "ingest", &provider.settings(SELDOM));
    let api = Api::of(&role);

    role.complains("keys of the provider").await;
    let refused = api.read_as(&key.sign(&claims("shop"))).await.problem(503);
    // It is no JWT, whatever the keys are.
    api.read_as("sl_removed").await.problem(401);
    provider.rotates_to(&[&key]);
    role.ready().await;

    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    api.read_as(&key.sign(&claims("shop"))).await.is(200);
    assert!(role.refused("no_keys").await > 0);
}

/// A remembered token must not outlive its own end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_accepted_expires_all_the_same() {
    let key = IssuerKey::new("k-1");
    let provider = Provider::serving(&[&key]);
    let (_world, role) = ingest(&provider, SELDOM).await;
    let api = Api::of(&role);
    // With the leeway of 5 s it is good for 4 s.
    let token = key.sign(&claims_but("exp", json!(in_seconds(-1))));

    api.read_as(&token).await.is(200);

    wait_until("the token has expired", async || api.read_as(&token).await.status == 401).await;
    let second = Duration::from_secs(1);
    stays(second, "expired", async || api.read_as(&token).await.status == 401).await;
    assert!(role.refused("expired").await > 0);
}
