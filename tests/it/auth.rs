//! Static tokens: each endpoint needs its scope, and without it nothing changes.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, MySqlConnection};
use uuid::Uuid;

use crate::harness::{
    Answer, Api, Database, Role, Strategy, TokensFile, World, bearer, lines, on_each_database,
    token_line, wait_until,
};

on_each_database!(
    without_its_scope_no_request_changes_anything,
    a_key_belongs_to_its_principal_and_to_those_of_before,
);

/// A token for each scope, and one for all of them.
const TOKENS: [(&str, &str); 4] = [
    ("writer", "orders:write"),
    ("reader", "orders:read"),
    ("keeper", "stock:write"),
    ("all", "orders:write,orders:read,stock:write"),
];

fn tokens() -> TokensFile {
    TokensFile::with(&TOKENS.map(|(name, scopes)| token_line(name, name, scopes)))
}

async fn ingest(world: &World, file: &TokensFile, more: &[(&str, &str)]) -> Role {
    let (key, path) = file.setting();
    let settings: Vec<_> = [(key, path.as_str())].into_iter().chain(more.iter().copied()).collect();
    world.start_with("ingest", &settings).await
}

/// A request, and the tokens that may send it.
struct Operation {
    method: Method,
    path: String,
    body: String,
    content_type: &'static str,
    allowed: &'static [&'static str],
}

impl Operation {
    fn new(method: Method, path: &str, body: &str, allowed: &'static [&'static str]) -> Self {
        let is_batch = path.ends_with(":batch");
        let content_type = if is_batch { "application/x-ndjson" } else { "application/json" };
        Self { method, path: path.to_owned(), body: body.to_owned(), content_type, allowed }
    }

    async fn send(&self, api: &Api, authorization: Option<&str>) -> Answer {
        let mut headers = vec![("content-type", self.content_type)];
        headers.extend(authorization.map(|value| ("authorization", value)));
        api.send(self.method.clone(), &self.path, &headers, &self.body).await
    }
}

/// Every operation of the API but its document. The last one ends the stream of events.
fn operations(order: &str) -> Vec<Operation> {
    const WRITER: &[&str] = &["writer", "all"];
    const READER: &[&str] = &["reader", "all"];
    const PRODUCTS: &[&str] = &["reader", "keeper", "all"];
    let new = lines(&[("a", 1)]).to_string();
    let at = |rest: &str| format!("/v1/orders/{order}{rest}");
    let adjustment = json!({"request_id": "r-1", "adjustments": [
        {"product_id": "a", "delta": 1, "reason": "count"}]});
    vec![
        Operation::new(Method::POST, "/v1/orders", &new, WRITER),
        Operation::new(Method::POST, "/v1/orders:batch", &new, WRITER),
        Operation::new(Method::PUT, &format!("/v1/orders/{}", Uuid::now_v7()), &new, WRITER),
        Operation::new(Method::GET, &at(""), "", READER),
        Operation::new(Method::POST, &at("/confirm"), "", WRITER),
        Operation::new(Method::POST, &at("/extend"), r#"{"hold_seconds":9}"#, WRITER),
        Operation::new(Method::GET, "/v1/products/a", "", PRODUCTS),
        Operation::new(Method::GET, "/v1/products/a/movements", "", PRODUCTS),
        Operation::new(
            Method::POST,
            "/v1/stock/adjustments",
            &adjustment.to_string(),
            &["keeper", "all"],
        ),
        Operation::new(Method::POST, &at("/cancel"), "", WRITER),
        Operation::new(Method::GET, &at("/events"), "", READER),
    ]
}

/// What both stores hold, as far as requests could change it.
async fn contents(world: &World) -> (i64, String, i64, i64) {
    let mut orders = MySqlConnection::connect(world.config.order_store.url.expose())
        .await
        .expect("the order store");
    let mut stock = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("the stock store");
    let states = "SELECT CAST(COALESCE(GROUP_CONCAT(status, COALESCE(hold_seconds, 0) \
                  ORDER BY order_id), '') AS CHAR) FROM orders";
    let available = "SELECT CAST(SUM(available) AS SIGNED) FROM products";
    (
        sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(&mut orders).await.expect("n"),
        sqlx::query_scalar(states).fetch_one(&mut orders).await.expect("states"),
        sqlx::query_scalar("SELECT COUNT(*) FROM stock_movements")
            .fetch_one(&mut stock)
            .await
            .expect("n"),
        sqlx::query_scalar(available).fetch_one(&mut stock).await.expect("a sum"),
    )
}

async fn without_its_scope_no_request_changes_anything(world: World) {
    world.import(&[("a", 100)]);
    let ingest = ingest(&world, &tokens(), &[]).await;
    let api = Api::of(&ingest);
    let all = bearer("all");
    let placed = api.post(&lines(&[("a", 1)]).to_string(), &[(all.0, &all.1)]).await.is(202);
    let operations = operations(placed.order_id());
    let before = contents(&world).await;

    for operation in &operations {
        for (value, error) in [
            (None, ""),
            (Some("Bearer"), "invalid_token"),
            (Some("Basic YWxsOmFsbA=="), "invalid_token"),
            (Some("Bearer nobody"), "invalid_token"),
            (Some("Bearer a.b.c"), "invalid_token"),
        ] {
            let refused = operation.send(&api, value).await.problem(401);
            let challenge = refused.header("www-authenticate");
            assert!(challenge.starts_with("Bearer realm="), "{refused:?}");
            assert_eq!(challenge.contains("invalid_token"), !error.is_empty(), "{refused:?}");
        }
        for (name, _) in TOKENS.iter().filter(|(name, _)| !operation.allowed.contains(name)) {
            let refused = operation.send(&api, Some(&format!("Bearer {name}"))).await.problem(403);
            let challenge = refused.header("www-authenticate");
            assert!(challenge.contains("insufficient_scope"), "{refused:?}");
        }
    }
    assert_eq!(contents(&world).await, before, "a refused request changed something");

    for operation in &operations {
        for name in operation.allowed {
            let done = operation.send(&api, Some(&format!("Bearer {name}"))).await;
            let is_allowed = (200..300).contains(&done.status) || done.status == 409;
            assert!(is_allowed, "{name}: {done:?}");
        }
    }
    assert_ne!(contents(&world).await, before, "the right scopes changed nothing");
    api.get("/openapi.json").await.is(200);
    for reason in ["no_token", "malformed_token", "unknown_token", "no_scope"] {
        assert!(ingest.refused(reason).await > 0, "{reason}");
        assert!(ingest.log().contains(reason), "{reason} is not logged:\n{}", ingest.log());
    }
}

async fn a_key_belongs_to_its_principal_and_to_those_of_before(world: World) {
    world.import(&[("a", 100)]);
    let (order, other) = (lines(&[("a", 1)]).to_string(), lines(&[("a", 2)]).to_string());
    let key = ("idempotency-key", "k-1");
    let open = world.start("ingest").await;
    let before = Api::of(&open).post(&order, &[key]).await.is(202);
    open.stop();
    let ingest = ingest(&world, &tokens(), &[]).await;
    let api = Api::of(&ingest);
    let (writer, all) = (bearer("writer"), bearer("all"));
    let new = ("idempotency-key", "k-2");

    let again = api.post(&order, &[key, (writer.0, &writer.1)]).await.is(202);
    let different = api.post(&other, &[key, (all.0, &all.1)]).await.problem(422);
    let of_writer = api.post(&order, &[new, (writer.0, &writer.1)]).await.is(202);
    let of_all = api.post(&other, &[new, (all.0, &all.1)]).await.is(202);
    let repeated = api.post(&order, &[new, (writer.0, &writer.1)]).await.is(202);

    assert_eq!(again.order_id(), before.order_id(), "the key of before is forgotten");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert!(different.body["detail"].as_str().expect("a text").contains("another request"));
    assert_ne!(of_writer.order_id(), of_all.order_id(), "principals share a key");
    assert_eq!(repeated.order_id(), of_writer.order_id());
    assert_eq!(world.count_orders("PENDING").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_of_tokens_is_used_and_a_broken_one_is_not() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let file = tokens();
    let ingest = ingest(&world, &file, &[]).await;
    let api = Api::of(&ingest);
    let status = async |token: &str| api.read_as(token).await.status;
    assert_eq!((status("all").await, status("new").await), (200, 401));

    file.replace(&token_line("new", "new", "orders:read"));
    wait_until("the new token is known", async || status("new").await == 200).await;
    assert_eq!(status("all").await, 401, "a token that was taken out of the file still works");

    file.replace("new sl_secret-instead-of-its-digest orders:read\n");
    wait_until("the broken file is reported", async || {
        ingest.metric("stocklock_http_outdated", "tokens").await == 1.0
    })
    .await;
    assert_eq!(status("new").await, 200, "the last good tokens are kept");
    let log = ingest.log();
    let named = format!("auth.tokens_file: {}: line 1", file.path().display());
    assert!(log.contains("files not reloaded") && log.contains(&named), "{log}");
    assert!(!log.contains("secret-instead"), "the log shows what may be a token");

    std::fs::remove_file(file.path()).expect("removed");
    wait_until("the missing file is reported", async || {
        let failed = r#"result="failed",what="tokens""#;
        ingest.count("stocklock_http_reloads_total", failed).await == 2
    })
    .await;
    assert_eq!(status("new").await, 200);
    file.replace("# Every token was removed.\n");
    wait_until("no token is good", async || status("new").await == 401).await;
    file.replace(&token_line("all", "all", "orders:read"));
    wait_until("the tokens are up to date again", async || {
        status("all").await == 200
            && ingest.metric("stocklock_http_outdated", "tokens").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_api_beyond_the_loopback_says_so() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let port = crate::harness::free_address().rsplit_once(':').expect("a port").1.to_owned();
    let everywhere = [("STOCKLOCK__HTTP__LISTEN", &*format!("0.0.0.0:{port}"))];
    let warning = "listens beyond the loopback without authentication";

    let open = world.start_with("ingest", &everywhere).await;
    assert!(open.log().contains(warning), "{}", open.log());
    open.stop();
    let file = tokens();
    let closed = ingest(&world, &file, &everywhere).await;

    assert!(!closed.log().contains(warning), "{}", closed.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_tokens_that_cannot_be_used_stops_the_start() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let huge = "#".repeat((1 << 20) + 1);
    for (content, complaint) in [
        ("", "no token in the file"),
        ("shop sl_secret orders:read", "line 1"),
        (&huge, "the file has more than 1048576 bytes"),
    ] {
        let file = TokensFile::with(&[content.to_owned()]);
        let (key, path) = file.setting();

        let role = Role::spawn(&world.env, "ingest", &[(key, &path)]);

        let log = role.ended(2).await;
        assert!(log.contains(complaint) && log.contains("auth.tokens_file"), "{log}");
        assert!(!log.contains("sl_secret"), "{log}");
    }
}

/// `stocklock token`, and the commands as clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_make_tokens_and_present_them() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let scopes = ["--scope", "orders:write", "--scope", "orders:read"];
    let args = [&["--output", "json", "token", "shop"], &scopes[..]].concat();
    let made = world.cli(&args).succeeds().json();
    let (token, line) = (text(&made["token"]), text(&made["line"]));
    let ingest = ingest(&world, &TokensFile::with(&[line]), &[]).await;
    world.env.insert("STOCKLOCK__CLIENT__URL".to_owned(), ingest.http.clone());

    let refused = world.cli(&["order", "place", "a=1"]).exits(2);
    world.env.insert("STOCKLOCK__CLIENT__TOKEN".to_owned(), token.clone());
    let placed = world.cli(&["--output", "json", "order", "place", "a=1"]).succeeds();
    let shown = world.cli(&["config"]).succeeds();
    world.env.remove("STOCKLOCK__CLIENT__TOKEN");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{token}\n")).expect("written");
    let path = file.path().display().to_string();
    world.env.insert("STOCKLOCK__CLIENT__TOKEN_FILE".to_owned(), path);
    let order = text(&placed.json()["order_id"]);
    world.cli(&["order", "show", &order]).succeeds();
    let import = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(import.path(), lines(&[("a", 1)]).to_string()).expect("written");
    world.cli(&["order", "import", &import.path().display().to_string()]).succeeds();

    assert!(refused.stderr().contains("401"), "{}", refused.stderr());
    let secret = token.trim_start_matches("sl_");
    assert!(!shown.stdout().contains(secret), "config shows the token");
    assert!(!ingest.log().contains(secret), "the log shows the token");
    assert_eq!(world.count_orders("PENDING").await, 2);
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
