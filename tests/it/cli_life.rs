//! `stocklock order`: what it sends and how it takes each answer, against a server with a script.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::harness::{Cli, Reply, Stub};

const ID: &str = "01a20780-43f4-773e-ae17-eb2e30f95ecf";

/// Runs `stocklock order …` against the stub.
fn order(stub: &Stub, args: &[&str]) -> Cli {
    let url = format!("client.url={}", stub.url);
    let all: Vec<_> = ["order"].iter().chain(args).copied().chain(["--set", &url]).collect();
    Cli::run(&BTreeMap::new(), &all)
}

fn pending() -> Value {
    json!({"order_id": ID, "status": "PENDING"})
}

fn body(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_repeated_placement_names_the_same_order() {
    let stub = Stub::answering([
        Reply::none(),
        Reply::empty("503 Service Unavailable"),
        Reply::empty("504 Gateway Timeout"),
        Reply::replayed("202 Accepted", &pending()),
    ]);

    let placed = order(&stub, &["place", "a=2", "b=1", "--output", "json"]).succeeds().json();

    // Its own first attempt made the order, so this is no replay.
    assert_eq!(placed, pending());
    let requests = stub.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
    let id = requests[0].line.strip_prefix("PUT /v1/orders/").expect("a PUT of an order");
    assert_eq!(uuid::Uuid::try_parse(id).expect("an id").get_version_num(), 7);
    let lines =
        [json!({"product_id": "a", "quantity": 2}), json!({"product_id": "b", "quantity": 1})];
    assert_eq!(body(&requests[0].body), json!({"lines": lines}));
}

#[test]
fn each_argument_of_a_placement_reaches_the_server() {
    let reserved =
        json!({"order_id": ID, "status": "RESERVED", "expires_at": "2026-11-27T07:00:00.000Z"});
    let stub = Stub::answering([
        Reply::replayed("201 Created", &reserved),
        Reply::json("201 Created", &reserved),
    ]);
    let args =
        ["place", "a=1", "--hold", "15m", "--wait", "5s", "--customer", "c", "--reference", "r"];

    let keyed =
        order(&stub, &[&args[..], &["--idempotency-key", "k"]].concat()).succeeds().stdout();
    order(&stub, &[&args[..], &["--id", ID]].concat()).succeeds();

    let expected = "order_id     01a20780-43f4-773e-ae17-eb2e30f95ecf\nstatus       RESERVED\n\
                    expires_at   2026-11-27T07:00:00.000Z\nreplayed     true\n";
    assert_eq!(keyed, expected);
    let requests = stub.requests();
    let lines: Vec<_> = requests.iter().map(|request| request.line.as_str()).collect();
    assert_eq!(lines, ["POST /v1/orders", &format!("PUT /v1/orders/{ID}")]);
    let keys: Vec<_> = requests.iter().map(|request| request.header("idempotency-key")).collect();
    assert_eq!(keys, [Some("k"), None]);
    for request in &requests {
        assert_eq!(request.header("prefer"), Some("wait=5"));
        let expected = json!({
            "lines": [{"product_id": "a", "quantity": 1}],
            "hold_seconds": 900, "customer_id": "c", "reference": "r",
        });
        assert_eq!(body(&request.body), expected);
    }
}

#[test]
fn a_placement_without_an_answer_says_what_is_known() {
    let overloaded = || Reply::empty("503 Service Unavailable");
    let never = Stub::answering((0..6).map(|_| overloaded()));
    let perhaps = Stub::answering((0..5).map(|_| overloaded()).chain([Reply::none()]));
    let keyed = Stub::answering((0..6).map(|_| Reply::none()));

    let not_saved = order(&never, &["place", "a=1", "--id", ID]).exits(2).stderr();
    let unknown = order(&perhaps, &["place", "a=1", "--id", ID]).exits(2).stderr();
    let with_key = order(&keyed, &["place", "a=1", "--idempotency-key", "k"]).exits(2).stderr();

    let url = format!("{}/v1/orders/{ID}: the server answered 503", never.url);
    assert!(not_saved.starts_with(&format!("stocklock: not saved: {url}")), "{not_saved}");
    let remedy = format!("perhaps saved; to find out, repeat the command with --id {ID}: ");
    assert!(unknown.contains(&remedy), "{unknown}");
    assert!(with_key.contains("repeat the command with --idempotency-key k: "), "{with_key}");
}

#[test]
fn the_answer_to_a_request_decides_the_exit_status() {
    let commands: [(&[&str], &str, &str); 4] = [
        (&["show", ID], "GET", ""),
        (&["confirm", ID], "POST", "/confirm"),
        (&["cancel", ID], "POST", "/cancel"),
        (&["extend", ID, "1h"], "POST", "/extend"),
    ];
    let answers = [
        ("200 OK", 0),
        ("202 Accepted", 0),
        ("404 Not Found", 1),
        ("409 Conflict", 1),
        ("422 Unprocessable Entity", 1),
        ("400 Bad Request", 2),
        ("401 Unauthorized", 2),
        ("500 Internal Server Error", 2),
    ];
    for (command, method, path) in commands {
        for (status, exit_status) in answers {
            let answer = json!({"order_id": ID, "detail": "so it is"});
            let stub = Stub::answering([Reply::json(status, &answer)]);

            let said = order(&stub, &[command, &["--output", "json"]].concat()).exits(exit_status);

            let request = &stub.requests()[0];
            assert_eq!(request.line, format!("{method} /v1/orders/{ID}{path}"));
            let sent = if path == "/extend" { r#"{"hold_seconds":3600}"# } else { "" };
            assert_eq!(request.body, sent);
            if exit_status == 2 {
                let error = format!(
                    "{}/v1/orders/{ID}{path}: the server answered {status}: so it is",
                    stub.url
                );
                assert_eq!(body(&said.stderr()), json!({"error": error}));
            } else {
                assert_eq!(said.json(), answer);
            }
        }
    }
}

#[test]
fn a_change_without_an_answer_is_repeated_and_then_reported() {
    let mended = Stub::answering([Reply::none(), Reply::json("200 OK", &pending())]);
    let broken = Stub::answering((0..6).map(|_| Reply::empty("502 Bad Gateway")));
    let away = Stub::answering((0..6).map(|_| Reply::empty("429 Too Many Requests")));

    order(&mended, &["cancel", ID]).succeeds();
    let perhaps = order(&broken, &["cancel", ID]).exits(2).stderr();
    let nothing = order(&away, &["confirm", ID]).exits(2).stderr();

    assert!(perhaps.contains("perhaps carried out"), "{perhaps}");
    assert!(nothing.contains("nothing was changed"), "{nothing}");
    assert_eq!((mended.requests().len(), broken.requests().len()), (2, 6));
}

/// An event as ingest sends it.
fn event(status: &str) -> String {
    let data = json!({"order_id": ID, "status": status});
    format!(": keep-alive\n\nevent: status\nid: {status}\ndata: {data}\n\n")
}

/// The statuses that a watch printed as JSON.
fn statuses(watched: &Cli) -> Vec<String> {
    let printed = watched.stdout();
    printed
        .lines()
        .map(|line| body(line)["status"].as_str().expect("a status").to_owned())
        .collect()
}

#[test]
fn a_watch_connects_again_where_it_was_and_ends_with_the_order() {
    let stub = Stub::answering([
        Reply::none(),
        Reply::events(&format!("{}{}", event("PENDING"), event("RESERVED"))),
        Reply::empty("503 Service Unavailable"),
        Reply::events("event: status\ndata: {\"status\":"),
        // The order ended while nobody looked.
        Reply::empty("204 No Content"),
        Reply::open_events(&event("CANCELLED")),
    ]);

    let watched = order(&stub, &["watch", ID, "--output", "json"]).succeeds();

    assert_eq!(statuses(&watched), ["PENDING", "RESERVED", "CANCELLED"]);
    let requests = stub.requests();
    let sent: Vec<_> = requests.iter().map(|request| request.header("last-event-id")).collect();
    let reserved = Some("RESERVED");
    assert_eq!(sent, [None, None, reserved, reserved, reserved, None]);
    assert!(requests.iter().all(|request| {
        request.line == format!("GET /v1/orders/{ID}/events")
            && request.header("accept") == Some("text/event-stream")
    }));
    let complaints = watched.stderr();
    assert_eq!(complaints.lines().count(), 1, "a line for each outage: {complaints}");
    assert!(body(&complaints)["error"].as_str().is_some_and(|text| text.contains("again")));
}

#[test]
fn a_watch_ends_at_each_end_of_an_order() {
    for (end, status) in [("COMPLETED", 0), ("FAILED", 1), ("CANCELLED", 1)] {
        // A status that is repeated is no change. One that is unknown is.
        let events = ["PENDING", "PENDING", "NEW", end].map(event).concat();
        let stub = Stub::answering([Reply::open_events(&events), Reply::open_events(&events)]);

        let watched = order(&stub, &["watch", ID, "--output", "json"]).succeeds();
        let asked = order(&stub, &["watch", ID, "--exit-status"]).exits(status).stdout();

        assert_eq!(statuses(&watched), ["PENDING", "NEW", end]);
        let shown: Vec<_> = asked.lines().filter_map(|line| line.split("  ").nth(1)).collect();
        assert_eq!(shown, ["PENDING", "NEW", end], "{asked}");
    }
}

#[test]
fn a_watch_without_an_order_or_a_server_ends() {
    let problem = json!({"status": 404, "detail": "no order"});
    let unknown = Stub::answering([Reply::json("404 Not Found", &problem)]);
    let refused = Stub::answering([Reply::json("403 Forbidden", &json!({"detail": "not yours"}))]);
    let page = Stub::answering([Reply::json("200 OK", &pending())]);
    let endless = Stub::answering([Reply::open_events(&"x".repeat(1 << 17))]);
    let away = Stub::answering((0..6).map(|_| Reply::empty("503 Service Unavailable")));

    let no = order(&unknown, &["watch", ID, "--output", "json"]).exits(1);
    let errors = [&refused, &endless, &away, &page]
        .map(|stub| order(stub, &["watch", ID]).exits(2).stderr());

    assert_eq!(no.json(), problem);
    assert!(errors[0].ends_with("403 Forbidden: not yours\n"), "{errors:?}");
    assert!(errors[1].contains("65536 bytes"), "{errors:?}");
    assert!(errors[2].contains("/events: the server answered 503"), "{errors:?}");
    assert!(errors[3].ends_with("no stream of events\n"), "{errors:?}");
    assert_eq!(away.requests().len(), 6);
}

#[test]
fn a_watch_ends_when_its_reader_leaves() {
    let stub = Stub::answering([Reply::open_events(&event("PENDING"))]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);

    let status = Command::new(env!("CARGO_BIN_EXE_stocklock"))
        .args(["order", "watch", ID, "--set", &format!("client.url={}", stub.url)])
        .stdin(Stdio::null())
        .stdout(writer)
        .status()
        .expect("it runs");

    assert_eq!(status.code(), Some(0), "{status}");
}
