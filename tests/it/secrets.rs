//! No secret is shown, whatever fails.

use std::collections::BTreeMap;

use crate::harness::{
    Cli, Database, Role, Strategy, TokensFile, World, free_address, http_client, token_line,
    wait_until,
};

/// The beginning of every secret, and of no other text.
const HUSH: &str = "hush";
const DEPENDENCIES: [&str; 4] = ["kafka", "order_store", "stock_store", "redis"];

/// Settings by which no dependency can be used, each with secrets of its own. Some servers refuse
/// the password, and others do not answer.
fn settings(world: &World, tokens: &TokensFile) -> BTreeMap<String, String> {
    let away = free_address();
    let real = &world.env["STOCKLOCK__ORDER_STORE__URL"];
    let (_, server) = real.split_once('@').expect("a user");
    let pem = "-----BEGIN%20PRIVATE%20KEY-----hush-20-----END%20PRIVATE%20KEY-----";
    let keys = format!("ssl-mode=VERIFY_CA&ssl-cert=/nowhere&ssl-key={pem}");
    let redis = world.config.redis.urls[0].expose().replace("redis://", "redis://u:hush-8@");
    let mut settings = world.env.clone();
    for (key, value) in [
        ("KAFKA__BROKERS", away.clone()),
        ("KAFKA__SECURITY_PROTOCOL", "sasl_plaintext".to_owned()),
        ("KAFKA__SASL_MECHANISM", "PLAIN".to_owned()),
        ("KAFKA__SASL_USERNAME", "u".to_owned()),
        ("KAFKA__SASL_PASSWORD", "hush-1".to_owned()),
        ("ORDER_STORE__URL", format!("mysql://u:hush-3,hush-4@{server}")),
        ("ORDER_STORE__MIGRATE_URL", format!("mysql://u:hush-5@{server}")),
        ("STOCK_STORE__URL", format!("mysql://u:hush-6@hush-7@{away}/stock?{keys}")),
        ("REDIS__URLS", redis),
        ("SCHEMA_REGISTRY__URL", format!("http://{away}")),
        ("SCHEMA_REGISTRY__USERNAME", "u".to_owned()),
        ("SCHEMA_REGISTRY__PASSWORD", "hush-9".to_owned()),
        ("CLIENT__TOKEN", "hush-10".to_owned()),
        ("LOCK__STRATEGY", "redlock".to_owned()),
        ("LOG__LEVEL", "debug".to_owned()),
    ] {
        settings.insert(format!("STOCKLOCK__{key}"), value);
    }
    let (key, file) = tokens.setting();
    settings.insert(key.to_owned(), file);
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_shown_by_roles_and_commands_that_cannot_connect() {
    let world = World::without_setup(Database::MySql, Strategy::Redlock).await;
    let tokens = TokensFile::with(&[token_line("shop", "hush-11", "orders:write")]);
    let settings = settings(&world, &tokens);
    let role = Role::spawn(&settings, "all", &[]);
    role.listening().await;

    let mut shown = Vec::new();
    for dependency in DEPENDENCIES {
        role.complains(dependency).await;
        wait_until("the log names the dependency", async || {
            let log = role.log();
            log.lines().any(|line| line.contains("dependency down") && line.contains(dependency))
        })
        .await;
    }
    for token in ["hush-11", "hush-12"] {
        let order = http_client().post(format!("{}/v1/orders", role.http));
        let answer = order.bearer_auth(token).body("{}").send().await.expect("an answer");
        shown.push(answer.text().await.expect("a text"));
    }
    shown.push(role.complains("redis").await);
    shown.push(role.metrics().await);
    for args in [
        &["config"][..],
        &["config", "--check"],
        &["config", "--output", "json"],
        &["doctor", "--all"],
        &["doctor", "--all", "--output", "json"],
        &["setup"],
        &["stock", "show", "a"],
        &["verify", "--settle", "1s"],
        &["dlq", "list"],
        &["order", "show", "0197f6a0-0000-7000-8000-000000000000"],
    ] {
        let ran = Cli::run(&settings, args);
        let text = ran.stdout() + &ran.stderr();
        assert!(!text.is_empty(), "{args:?}");
        shown.push(format!("{args:?}: {text}"));
    }
    role.terminate();
    shown.push(role.log());

    for text in shown {
        assert!(!text.contains(HUSH), "{text}");
    }
}
