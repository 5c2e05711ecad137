//! `stocklock order`: the API's client on the command line.

use serde_json::{Value, json};

use crate::harness::{Api, Cli, Database, Role, Strategy, World, lines};

async fn world() -> (World, Role) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5), ("b=1", 1)]);
    let all = world.start("all").await;
    (world, all)
}

/// Runs `stocklock order …` against a role.
fn order(world: &World, role: &Role, args: &[&str]) -> Cli {
    let url = format!("client.url={}", role.http);
    let all: Vec<_> = ["order"].iter().chain(args).copied().chain(["--set", &url]).collect();
    world.cli(&all)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name}: {value}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_placed_and_shown_and_the_exit_status_is_its_outcome() {
    let (world, all) = world().await;
    let place =
        ["place", "a=2", "b=1=1", "a=1", "--wait", "30", "--reference", "PO-1", "--output", "json"];
    let completed = order(&world, &all, &place).succeeds().json();
    assert_eq!(text(&completed, "status"), "COMPLETED");
    let shown = order(&world, &all, &["show", text(&completed, "order_id"), "--output", "json"])
        .succeeds()
        .json();
    assert_eq!((text(&shown, "reference"), text(&shown, "status")), ("PO-1", "COMPLETED"));
    assert_eq!(shown["lines"], lines(&[("a", 2), ("b=1", 1), ("a", 1)])["lines"]);

    let refused =
        order(&world, &all, &["place", "a=3", "--wait", "30", "--output", "json"]).exits(1).json();
    assert_eq!(
        (text(&refused, "order_status"), text(&refused, "reason")),
        ("FAILED", "INSUFFICIENT_STOCK")
    );
    let invalid = order(&world, &all, &["place", "unknown=1", "--output", "json"]).exits(1).json();
    assert_eq!(invalid["errors"][0]["pointer"], "/lines/0/product_id");
    let accepted = order(&world, &all, &["place", "a=1"]).succeeds().stdout();
    assert!(
        accepted.lines().any(|line| line.split_whitespace().eq(["status", "PENDING"])),
        "{accepted}"
    );
    order(&world, &all, &["show", &uuid::Uuid::now_v7().to_string()]).exits(1);
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_reported_late_fails_the_order_and_returns_its_stock() {
    let (world, all) = world().await;
    let api = Api::of(&all);
    let placed = api.place_and_wait(&lines(&[("a", 4)]), 30).await.is(201);
    assert_eq!(world.available("a"), 1);
    let id = placed.order_id();

    let reported =
        order(&world, &all, &["fail", id, "--reason", "payment declined ✗", "--output", "json"])
            .succeeds();

    assert_eq!(
        (text(&reported.json(), "order_id"), text(&reported.json(), "reported")),
        (id, "FAILED")
    );
    assert_eq!(text(&reported.json(), "outcome"), "unknown");

    let unknown =
        order(&world, &all, &["fail", &uuid::Uuid::now_v7().to_string(), "--reason", "r"])
            .succeeds()
            .stdout();
    assert!(unknown.contains("this command cannot know"), "{unknown}");
    let shown = api.becomes(id, "FAILED").await;
    world.verify();
    assert_eq!((text(&shown, "status"), text(&shown, "reason")), ("FAILED", "payment declined ✗"));
    assert_eq!(world.available("a"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_counts_how_its_orders_were_answered() {
    let (world, all) = world().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let (two, none, unknown) = (lines(&[("a", 2)]), lines(&[("a", 0)]), lines(&[("unknown", 1)]));
    let orders = [&two, &none, &two, &two, &unknown].map(ToString::to_string).join("\n\n");
    std::fs::write(file.path(), format!("{orders}\n")).expect("written");

    let import = ["import", &path, "--concurrency", "1", "--wait", "30", "--output", "json"];
    let mut summary = order(&world, &all, &import).succeeds().json();
    for measured in ["seconds", "p50_ms", "p99_ms"] {
        assert!(summary[measured].as_f64().is_some_and(|value| value > 0.0), "{summary}");
        summary.as_object_mut().expect("an object").remove(measured);
    }
    let prefix = summary.as_object_mut().expect("an object").remove("key_prefix");
    assert_eq!(prefix.expect("a prefix").as_str().map(str::len), Some(32));
    let quantity = "/lines/0/quantity";
    for (index, (line, pointer)) in [(3, quantity), (9, "/lines/0/product_id")].iter().enumerate() {
        let refusal = &summary["refusals"][index];
        assert_eq!((&refusal["line"], &refusal["status"]), (&json!(line), &json!(422)));
        assert!(text(refusal, "detail").contains(pointer), "{refusal}");
    }
    summary.as_object_mut().expect("an object").remove("refusals");
    let expected = json!({
        "read": 5, "placed": 3, "accepted": 0, "completed": 2,
        "failed": {"INSUFFICIENT_STOCK": 1}, "replayed": 0, "invalid": 2, "errors": 0,
        "refused": {"422": 2}, "unplaced": 0, "unknown": 0
    });
    assert_eq!(summary, expected);
    assert_eq!(world.available("a"), 1);

    std::fs::write(
        file.path(),
        [two.to_string().as_bytes(), b"\n\xff\n", none.to_string().as_bytes()].concat(),
    )
    .expect("written");
    let faulty = order(&world, &all, &["import", &path]).exits(1);
    let (said, complaint) = (faulty.stdout(), faulty.stderr());
    assert!(said.contains("1 of 3 orders placed") && said.contains("1 accepted"), "{said}");
    assert!(
        said.contains("1 invalid, 1 errors, 0 not placed") && complaint.starts_with("line 2: 400"),
        "{said}{complaint}"
    );
    let missing = order(&world, &all, &["import", "/nowhere/orders.ndjson"]).exits(2).stderr();
    assert!(missing.contains("/nowhere/orders.ndjson"), "{missing}");
    world.verify();
}
