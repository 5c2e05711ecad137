//! `/log-filter` of the admin address, and `stocklock log-filter`.

use std::{net::IpAddr, time::Duration};

use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    Cli, Database, Role, Strategy, World, http_client, http_client_builder, wait_until,
};

/// Runs `stocklock log-filter` for a role.
fn log_filter(world: &World, role: &Role, args: &[&str]) -> Cli {
    let admin = role.admin.replace("http://", "admin.listen=");
    let mut all = vec!["log-filter", "--timeout", "30s", "--set", &admin];
    all.extend(args);
    world.cli(&all)
}

fn shown(world: &World, role: &Role) -> Value {
    log_filter(world, role, &["--output", "json"]).succeeds().json()
}

/// Sends a request about the filter. Answers the status and the text.
async fn send(
    role: &Role,
    method: Method,
    query: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> (u16, String) {
    let mut request = http_client().request(method, format!("{}/log-filter{query}", role.admin));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.body(body).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// Sends what is no request. The role logs that at the level debug.
async fn send_garbage(role: &Role) {
    let address = role.admin.strip_prefix("http://").expect("an address");
    let mut client = TcpStream::connect(address).await.expect("a connection");
    client.write_all(b"no request\r\n\r\n").await.expect("sent");
    // The role answers, and closes the connection.
    let _reset = client.read_to_end(&mut Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_logs_more_for_a_while_without_a_restart() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let role = world.start("compensator").await;
    assert_eq!(log_filter(&world, &role, &[]).succeeds().stdout(), "info\n");
    send_garbage(&role).await;
    assert!(!role.log().contains("DEBUG"), "{}", role.log());

    let changed = log_filter(&world, &role, &["info,stocklock=debug"]).succeeds().stdout();
    assert_eq!(changed, "info,stocklock=debug\n");
    wait_until("a line of the level debug comes", async || {
        send_garbage(&role).await;
        role.log().contains("connection ended")
    })
    .await;
    let changed = log_filter(&world, &role, &["error", "--for", "2s"]).succeeds().stdout();
    assert!(changed.starts_with("error\nuntil ") && changed.ends_with("then info\n"), "{changed}");

    wait_until("the filter is log.level again", async || {
        shown(&world, &role)["directives"] == "info"
    })
    .await;
    assert_eq!(shown(&world, &role)["until"], Value::Null);
    let log = role.log();
    let written: Vec<_> = log.lines().filter(|line| line.contains("log filter changed")).collect();
    assert_eq!(written.len(), 3, "{written:#?}");
    assert!(written[1].contains("directives=\"error\""), "{written:#?}");
    assert!(written[2].contains("directives=\"info\" former=\"error\""), "{written:#?}");
    role.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_change_of_the_log_filter_outlives_an_earlier_one() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let role = world.start("compensator").await;

    log_filter(&world, &role, &["debug", "--for", "1s"]).succeeds();
    log_filter(&world, &role, &["warn"]).succeeds();

    // The first change would have ended by then.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(shown(&world, &role)["directives"], "warn");
    assert_eq!(log_filter(&world, &role, &["--reset"]).succeeds().stdout(), "info\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_log_filter_is_refused_with_what_and_where() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let role = world.start("compensator").await;
    let long = format!("info,{}=debug", "x".repeat(4_096));
    let form = [("content-type", "application/x-www-form-urlencoded")];

    for (query, headers, body, status, text) in [
        ("", &[][..], "info,stocklock=loud", 400, r#"directive "stocklock=loud": "#),
        ("", &[], "debgu", 400, r#"directive "debgu": expected off, error, warn"#),
        ("", &[], "", 400, "expected off, error"),
        ("?for=0s", &[], "debug", 400, "for: expected a duration from 1s to 7d, found 0s"),
        ("?for=8d", &[], "debug", 400, "for: expected a duration from 1s to 7d, found 8days"),
        ("?for=soon", &[], "debug", 400, r#"found "soon""#),
        ("?until=1m", &[], "debug", 400, r#"parameter "until": expected "for""#),
        ("", &[], &long, 413, "4096 bytes at most"),
        ("", &form, "debug", 415, "not text/plain"),
        ("", &[("x-forwarded-for", "192.0.2.1")], "debug", 403, "only clients on this machine"),
    ] {
        let (answered, why) = send(&role, Method::PUT, query, headers, body.to_owned()).await;
        assert_eq!(answered, status, "{query} {body}: {why}");
        assert!(why.contains(text) && why.contains("not changed"), "{query} {body}: {why}");
    }
    let (status, why) = send(&role, Method::PUT, "", &[], vec![0xFF]).await;
    assert!(status == 400 && why.contains("not UTF-8"), "{status} {why}");
    assert_eq!(send(&role, Method::POST, "", &[], "debug").await.0, 405);
    let refused = log_filter(&world, &role, &["info,stocklock=loud"]).exits(2).stderr();
    assert!(refused.contains(r#"directive "stocklock=loud""#), "{refused}");

    assert_eq!(shown(&world, &role)["directives"], "info");
    assert!(!role.log().contains("log filter changed"), "{}", role.log());
}

/// `127.0.0.2` stands for any other client: a role counts only `127.0.0.1` and `::1` as local.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_filter_is_closed_to_clients_on_other_machines() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let role = world.start("compensator").await;
    let elsewhere: IpAddr = [127, 0, 0, 2].into();
    let client = http_client_builder().local_address(elsewhere).build().expect("a client");
    let url = format!("{}/log-filter", role.admin);

    for request in [client.get(&url), client.put(&url).body("debug"), client.delete(&url)] {
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 403);
    }

    let ready = client.get(format!("{}/readyz", role.admin)).send().await.expect("an answer");
    assert_eq!(ready.status(), 200);
    assert_eq!(shown(&world, &role)["directives"], "info");
}
