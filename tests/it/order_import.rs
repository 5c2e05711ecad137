//! `stocklock order import`: each line is accounted for, and each order is placed once, whatever
//! breaks off on the way.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use uuid::Uuid;

use crate::harness::{
    Cli, Proxy, Reply, Role, Stub, World, blocking, lines, on_each_database, wait_until,
};

on_each_database!(
    an_import_that_is_killed_three_times_places_each_order_once,
    an_import_goes_on_by_itself_after_ingest_is_killed,
    a_corrected_file_places_only_the_corrected_lines,
    the_lines_of_a_pipe_with_a_prefix_are_sent_as_they_come,
);

const SAVED: (&str, &str) = ("stocklock_orders_ingested_total", r#"result="accepted""#);

/// A file of so many orders. One third have an id, one third a key of their own. One line in 500 is
/// no JSON, and one in 500 is an order of a product that does not exist.
fn file_of(count: usize) -> NamedTempFile {
    let line = |number: usize| {
        let mut order = lines(&[("a", 1)]);
        match number % 3 {
            0 => order["order_id"] = json!(Uuid::now_v7()),
            1 => order["idempotency_key"] = json!(format!("own-{number}")),
            _ => {}
        }
        match number % 500 {
            100 => "{".to_owned(),
            200 => lines(&[("unknown", 1)]).to_string(),
            _ => order.to_string(),
        }
    };
    written(&(0..count).map(line).collect::<Vec<_>>())
}

fn written(lines: &[String]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    fs::write(file.path(), lines.join("\n")).expect("written");
    file
}

/// The arguments of an import of the file, at a role's address.
fn arguments(file: &NamedTempFile, url: &str) -> Vec<String> {
    let file = file.path().display().to_string();
    let set = format!("client.url={url}");
    ["--output", "json", "order", "import", &file, "--set", &set].map(str::to_owned).to_vec()
}

async fn import(file: &NamedTempFile, url: &str, more: &[&str]) -> Cli {
    let mut args = arguments(file, url);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    blocking(move || {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Cli::run(&BTreeMap::new(), &args)
    })
    .await
}

/// Starts a slow import.
fn spawn(file: &NamedTempFile, url: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stocklock"));
    command.args(arguments(file, url)).args(["--concurrency", "20"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary runs")
}

async fn saved(ingest: &Role, orders: u64) {
    wait_until(&format!("{orders} orders are saved"), async || {
        ingest.count(SAVED.0, SAVED.1).await >= orders
    })
    .await;
}

fn counts<const N: usize>(summary: &Value, names: [&str; N]) -> [u64; N] {
    names.map(|name| summary[name].as_u64().unwrap_or_else(|| panic!("no {name}: {summary}")))
}

async fn an_import_that_is_killed_three_times_places_each_order_once(world: World) {
    world.import(&[("a", 10_000)]);
    let (all, file) = (world.start("all").await, file_of(3_000));

    for round in 1..=3 {
        let mut import = spawn(&file, &all.http);
        saved(&all, 600 * round).await;
        assert_eq!(import.try_wait().expect("its status"), None, "it ended before it was killed");
        import.kill().expect("killed");
        import.wait().expect("it ended");
    }
    let summary = import(&file, &all.http, &[]).await.exits(1).json();

    let names = ["read", "placed", "invalid", "errors", "unplaced", "unknown"];
    assert_eq!(counts(&summary, names), [3_000, 2_988, 6, 6, 0, 0], "{summary}");
    let [replayed] = counts(&summary, ["replayed"]);
    assert!((1_800..2_988).contains(&replayed), "{summary}");
    assert_eq!(summary["refused"], json!({"400": 6, "422": 6}));
    assert_eq!(summary["refusals"][0]["line"], 101);
    world.completed(2_988).await;
    world.has_available(&[("a", 10_000 - 2_988)]).await;
    world.verify();
}

async fn an_import_goes_on_by_itself_after_ingest_is_killed(world: World) {
    world.import(&[("a", 10_000)]);
    let (file, mut ingest) = (file_of(2_000), world.start("ingest").await);
    let (proxy, url) = Proxy::before(&ingest.http).await;
    let importing = spawn(&file, &url);

    for _ in 0..2 {
        saved(&ingest, 300).await;
        ingest.kill();
        ingest = world.start("ingest").await;
        proxy.lead_to(ingest.http.trim_start_matches("http://"));
    }

    let ended = blocking(|| importing.wait_with_output().expect("it ends")).await;
    let summary: Value = serde_json::from_slice(&ended.stdout).expect("a summary");
    let names = ["read", "placed", "replayed", "invalid", "errors", "unplaced", "unknown"];
    assert_eq!(counts(&summary, names), [2_000, 1_992, 0, 4, 4, 0, 0], "{summary}");
    assert_eq!(world.count_orders("PENDING").await, 1_992);
}

async fn a_corrected_file_places_only_the_corrected_lines(world: World) {
    world.import(&[("a", 100)]);
    let ingest = world.start("ingest").await;
    let (order, wrong) = (lines(&[("a", 1)]).to_string(), lines(&[("a", 0)]).to_string());
    let file = written(&[order.clone(), wrong, order.clone()]);
    let first = import(&file, &ingest.http, &[]).await.succeeds().json();
    let prefix = first["key_prefix"].as_str().expect("a prefix").to_owned();

    let again = import(&file, &ingest.http, &[]).await.succeeds().json();
    let corrected = written(&[order.clone(), order.clone(), order.clone(), order]);
    let corrected =
        import(&corrected, &ingest.http, &["--key-prefix", &prefix]).await.succeeds().json();
    let on_purpose = import(&file, &ingest.http, &["--key-prefix", "again"]).await.succeeds();

    let names = ["placed", "replayed", "invalid"];
    assert_eq!(counts(&first, names), [2, 0, 1]);
    assert_eq!(counts(&again, names), [2, 2, 1]);
    assert_eq!(counts(&corrected, names), [4, 2, 0]);
    assert_eq!(counts(&on_purpose.json(), names), [2, 0, 1]);
    assert_eq!(world.count_orders("PENDING").await, 6);
}

async fn the_lines_of_a_pipe_with_a_prefix_are_sent_as_they_come(world: World) {
    world.import(&[("a", 100)]);
    let ingest = world.start("ingest").await;
    let (order, set) = (lines(&[("a", 1)]), format!("client.url={}", ingest.http));
    let mut command = Command::new(env!("CARGO_BIN_EXE_stocklock"));
    command.args(["--output", "json", "order", "import", "/dev/stdin", "--key-prefix", "p"]);
    command.args(["--set", &set]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut import = command.spawn().expect("the binary runs");
    let mut input = import.stdin.take().expect("a pipe");

    for count in 1..=2 {
        writeln!(input, "{order}").expect("written");
        saved(&ingest, count).await;
    }
    drop(input);

    let ended = blocking(|| import.wait_with_output().expect("it ends")).await;
    let summary: Value = serde_json::from_slice(&ended.stdout).expect("a summary");
    assert_eq!(counts(&summary, ["read", "accepted", "unknown"]), [2, 2, 0]);
    assert_eq!(summary["key_prefix"], "p");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_without_a_final_answer_are_sent_again() {
    let server = Stub::answering([
        Reply::none(),
        Reply::empty("503 Service Unavailable"),
        // The third line is not answered.
        Reply::answers(&[json!({"status": 202}), json!({"status": 504})]),
        Reply::answers(&[
            json!({"status": 202, "idempotent_replayed": true}),
            json!({"status": 409, "body": {"reason": "INSUFFICIENT_STOCK"}}),
        ]),
    ]);
    let file = written(&["{}", "{}", "{}"].map(str::to_owned));

    let summary = import(&file, &server.url, &[]).await.succeeds().json();

    // This import itself had perhaps saved the order before, so it is no replay.
    assert_eq!(counts(&summary, ["read", "accepted", "replayed", "unknown"]), [3, 2, 0, 0]);
    assert_eq!(summary["failed"], json!({"INSUFFICIENT_STOCK": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_ends_its_request_if_a_proxy_waits_for_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || serve_whole_requests(&listener));
    let file = written(&vec!["{}".to_owned(); 50]);

    let summary = import(&file, &url, &["--concurrency", "20"]).await.succeeds().json();

    assert_eq!(counts(&summary, ["read", "accepted"]), [50, 50]);
}

/// Answers a request after its last byte, as a proxy does that buffers requests.
fn serve_whole_requests(listener: &TcpListener) {
    loop {
        let (stream, _) = listener.accept().expect("a client");
        let mut client = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            client.read_line(&mut line).expect("a head");
        }
        let mut lines = 0;
        loop {
            let mut size = String::new();
            client.read_line(&mut size).expect("a chunk");
            let size = usize::from_str_radix(size.trim(), 16).expect("a size");
            let mut chunk = vec![0; size + 2];
            client.read_exact(&mut chunk).expect("a chunk");
            lines += chunk[..size].split(|byte| *byte == b'\n').count() - 1;
            if size == 0 {
                break;
            }
        }
        let body = "{\"status\":202}\n".repeat(lines);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        client.get_mut().write_all((head + &body).as_bytes()).expect("sent");
    }
}
