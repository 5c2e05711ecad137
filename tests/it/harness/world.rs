use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection, MySqlConnection};
use stocklock::{
    config::{Config, Layers},
    domain::Horizon,
    kafka::delete_topics,
    lock::overlong_keys,
    store,
    telemetry::Metrics,
};
use uuid::Uuid;

use super::{Cli, Role, wait_for};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    MySql,
    MariaDb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    Row,
    Redlock,
}

/// Databases, topics, groups and lock keys that no other test has.
pub(crate) struct World {
    pub env: BTreeMap<String, String>,
    pub config: Config,
    pub strategy: Strategy,
    server_url: String,
    name: String,
    /// Whether the broker ends with the test, so that nobody has to delete its topics.
    has_own_broker: bool,
}

/// How long a test waits for something that is bound to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

impl World {
    /// Sets up both stores, in two databases, and the topics.
    pub(crate) async fn new(database: Database, strategy: Strategy) -> Self {
        Self::on_brokers(database, strategy, &inherited("STOCKLOCK__KAFKA__BROKERS")).await
    }

    /// The same without `setup`.
    pub(crate) async fn without_setup(database: Database, strategy: Strategy) -> Self {
        Self::on(&server_url(database), strategy).await
    }

    /// The same on other brokers than those of the stack.
    pub(crate) async fn on_brokers(database: Database, strategy: Strategy, brokers: &str) -> Self {
        let world = Self::on_servers(&server_url(database), brokers, strategy).await;
        world.cli(&["setup"]).succeeds();
        world
    }

    /// The same on a database server of the test's choice, without `setup`.
    pub(crate) async fn on(server_url: &str, strategy: Strategy) -> Self {
        Self::on_servers(server_url, &inherited("STOCKLOCK__KAFKA__BROKERS"), strategy).await
    }

    async fn on_servers(server_url: &str, brokers: &str, strategy: Strategy) -> Self {
        let name = format!("it_{}", &Uuid::now_v7().simple().to_string()[20..]);
        let mut server = MySqlConnection::connect(server_url).await.expect("the database server");
        for store in ["orders", "stock"] {
            let create = format!("CREATE DATABASE {name}_{store}");
            sqlx::raw_sql(&create).execute(&mut server).await.expect("CREATE DATABASE");
        }
        let env = environment(&name, server_url, brokers, strategy);
        let config = Config::resolve(&Layers::read(None, env.clone().into_iter(), &[]))
            .expect("the configuration");
        let server_url = server_url.to_owned();
        Self { env, config, strategy, server_url, name, has_own_broker: false }
    }

    /// A world on a broker that ends with the test. `settings` connect to it.
    pub(crate) async fn on_own_broker(settings: &[(&str, &str)]) -> Self {
        let mut world = Self::without_setup(Database::MySql, Strategy::Row).await;
        world.has_own_broker = true;
        world.set(settings);
        // A broker that has just started may need a while to show the topics that it created.
        wait_for(async || {
            let tried = world.cli(&["setup"]);
            if tried.is_done() { Ok(()) } else { Err(tried.stderr()) }
        })
        .await;
        world
    }

    /// Changes settings, `("TOPICS__ORDERS", "x")`, and runs `setup` again. `{name}` in a value is
    /// a name that no other test has.
    pub(crate) fn configure(&mut self, settings: &[(&str, &str)]) {
        self.set(settings);
        self.cli(&["setup"]).succeeds();
    }

    fn set(&mut self, settings: &[(&str, &str)]) {
        for (key, value) in settings {
            let value = value.replace("{name}", &self.name);
            self.env.insert(format!("STOCKLOCK__{key}"), value);
        }
        self.config = Config::resolve(&Layers::read(None, self.env.clone().into_iter(), &[]))
            .expect("the configuration");
    }

    /// Runs a command to its end.
    pub(crate) fn cli(&self, args: &[&str]) -> Cli {
        Cli::run(&self.env, args)
    }

    /// Runs the laboratory to its end.
    pub(crate) fn lab(&self, args: &[&str]) -> Cli {
        Cli::run_lab(&self.env, args)
    }

    /// Starts a role and waits until it is ready. It is killed when it is dropped.
    pub(crate) async fn start(&self, role: &str) -> Role {
        self.start_with(role, &[]).await
    }

    /// The same with more settings: `[("STOCKLOCK__LOCK__TTL", "1s")]`.
    pub(crate) async fn start_with(&self, role: &str, settings: &[(&str, &str)]) -> Role {
        let started = Role::spawn(&self.env, role, settings);
        started.ready().await;
        started
    }

    pub(crate) fn import(&self, stock: &[(&str, i64)]) {
        let mut csv = "product_id,name,available\n".to_owned();
        for (id, available) in stock {
            writeln!(csv, "{id},{id},{available}").expect("a string takes it");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), csv).expect("written");
        self.cli(&["stock", "import", &file.path().display().to_string()]).succeeds();
    }

    /// What is available of a product.
    pub(crate) fn available(&self, id: &str) -> i64 {
        let shown = self.cli(&["--output", "json", "stock", "show", id]).succeeds();
        shown.json()[0]["available"].as_i64().expect("available")
    }

    /// Fails the test unless all invariants hold.
    pub(crate) fn verify(&self) {
        self.cli(&["verify", "--settle", "60s"]).succeeds();
    }

    /// Counts the orders in a state, in the order store.
    pub(crate) async fn count_orders(&self, status: &str) -> i64 {
        let mut conn = MySqlConnection::connect(self.config.order_store.url.expose())
            .await
            .expect("the order store");
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM orders WHERE status = ?").bind(status);
        count.fetch_one(&mut conn).await.expect("a count")
    }

    /// Waits until no order is pending.
    pub(crate) async fn settled(&self) {
        let begun = Instant::now();
        loop {
            let pending = self.count_orders("PENDING").await;
            if pending == 0 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{pending} orders are still pending");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Runs a statement behind the project's back, in the stock store.
    pub(crate) async fn tamper_with_stock(&self, sql: &str) {
        let mut conn = MySqlConnection::connect(self.config.stock_store.url.expose())
            .await
            .expect("the stock store");
        sqlx::raw_sql(sql).execute(&mut conn).await.expect("the statement");
    }

    pub(crate) fn metrics() -> Metrics {
        Metrics::new().expect("metrics")
    }

    pub(crate) fn order_store(&self) -> store::OrderStore {
        self.order_store_with(&Self::metrics())
    }

    pub(crate) fn order_store_with(&self, metrics: &Metrics) -> store::OrderStore {
        let idle = Duration::from_secs(60);
        let opened = store::Database::open(
            &self.config.order_store,
            store::StoreName::OrderStore,
            idle,
            metrics.clone(),
        );
        store::OrderStore::new(opened.expect("the order store"))
    }

    pub(crate) fn stock_store(&self, metrics: &Metrics) -> store::StockStore {
        self.stock_store_with(metrics, self.config.retention.horizon)
    }

    /// The same with another horizon than the configured one.
    pub(crate) fn stock_store_with(
        &self,
        metrics: &Metrics,
        horizon: Horizon,
    ) -> store::StockStore {
        let idle = Duration::from_secs(60);
        let opened = store::Database::open(
            &self.config.stock_store,
            store::StoreName::StockStore,
            idle,
            metrics.clone(),
        );
        store::StockStore::new(opened.expect("the stock store"), metrics.clone(), horizon)
    }
}

impl Drop for World {
    /// Fails the test if any of its keys on the masters, as far as they are still there, lives for
    /// longer than the TTL. Drops the databases and the topics, whose sheer number would stop the
    /// broker; a failed test keeps them for a look.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "kept: databases {0}_orders and {0}_stock on {1}",
                self.name, self.server_url
            );
            return;
        }
        let (url, name) = (self.server_url.clone(), self.name.clone());
        let (kafka, topics) = (self.config.kafka.clone(), self.config.topics.clone());
        let has_own_broker = self.has_own_broker;
        let (redis, lock) = (self.config.redis.clone(), self.config.lock.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let overlong = overlong_keys(&lock, &redis).await;
                assert!(
                    overlong.as_ref().map_or(true, Vec::is_empty),
                    "keys that outlive their TTL: {overlong:?}"
                );
                let mut server = MySqlConnection::connect(&url).await.expect("the database server");
                for store in ["orders", "stock"] {
                    let drop = format!("DROP DATABASE {name}_{store}");
                    sqlx::raw_sql(&drop).execute(&mut server).await.expect("DROP DATABASE");
                }
                if !has_own_broker {
                    delete_topics(&kafka, &topics).await.expect("deleted");
                }
            });
        });
        dropping.join().expect("the databases are dropped");
    }
}

/// An order's lines as a request body has them.
pub(crate) fn lines(lines: &[(&str, i64)]) -> Value {
    let lines = lines.iter().map(|(id, quantity)| json!({"product_id": id, "quantity": quantity}));
    json!({"lines": lines.collect::<Vec<_>>()})
}

fn server_url(database: Database) -> String {
    let name = match database {
        Database::MySql => "mysql=",
        Database::MariaDb => "mariadb=",
    };
    let all =
        std::env::var("STOCKLOCK_TEST_DATABASES").expect("STOCKLOCK_TEST_DATABASES: run dev/test");
    let url = all.split(',').find_map(|entry| entry.strip_prefix(name));
    url.unwrap_or_else(|| panic!("STOCKLOCK_TEST_DATABASES names no {name}")).to_owned()
}

fn inherited(key: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| panic!("{key}: run dev/test"))
}

fn environment(
    name: &str,
    server_url: &str,
    brokers: &str,
    strategy: Strategy,
) -> BTreeMap<String, String> {
    let database = |store: &str| {
        let (server, query) = server_url.split_once("/?").expect("a URL with /?");
        format!("{server}/{name}_{store}?{query}")
    };
    let strategy = match strategy {
        Strategy::Row => "row",
        Strategy::Redlock => "redlock",
    };
    let settings = [
        ("KAFKA__BROKERS", brokers.to_owned()),
        ("REDIS__URLS", inherited("STOCKLOCK__REDIS__URLS")),
        ("ORDER_STORE__URL", database("orders")),
        ("STOCK_STORE__URL", database("stock")),
        ("KAFKA__GROUP_ID", format!("{name}-worker")),
        ("COMPENSATOR__GROUP_ID", format!("{name}-compensator")),
        ("INGEST__GROUP_ID", format!("{name}-ingest")),
        ("TOPICS__ORDER_REQUESTS", format!("{name}.order-requests")),
        ("TOPICS__ORDER_REQUESTS_DLQ", format!("{name}.order-requests.dlq")),
        ("TOPICS__ORDERS", format!("{name}.orders")),
        ("TOPICS__ORDER_STATUS", format!("{name}.order-status")),
        ("TOPICS__ORDERS_DLQ", format!("{name}.orders.dlq")),
        ("TOPICS__ORDER_STATUS_DLQ", format!("{name}.order-status.dlq")),
        ("TOPICS__PARTITIONS", "4".to_owned()),
        ("LOCK__STRATEGY", strategy.to_owned()),
        ("LOCK__PREFIX", format!("{name}:lock:")),
    ];
    settings.into_iter().map(|(key, value)| (format!("STOCKLOCK__{key}"), value)).collect()
}
