use stocklock_servers::{Lifetime, Patience, Running, SchemaRegistry};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Database, PATIENCE, Strategy, World, blocking, free_address, http_client};

/// A schema registry that all tests share. It lives as long as their process.
pub(crate) struct Registry {
    running: Running<SchemaRegistry>,
    _dir: TempDir,
}

impl Registry {
    /// Starts it, unless another test did.
    pub(crate) async fn shared() -> &'static Self {
        static REGISTRY: OnceCell<Registry> = OnceCell::const_new();
        REGISTRY
            .get_or_init(async || {
                let started = blocking(Self::start).await;
                // Several first schemas at once fail: each wants to make the counter of the ids.
                started.register("first", r#""string""#).await;
                started
            })
            .await
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let registry = SchemaRegistry::new(dir.path(), &free_address()).expect("its program");
        let running = Running::start(registry, Lifetime::OfParent, &Patience::new(PATIENCE));
        Self { running: running.expect("it answers"), _dir: dir }
    }

    /// As for `schema_registry.url`.
    pub(crate) fn url(&self) -> String {
        self.running.service.url()
    }

    /// The URL for Apicurio's own clients.
    pub(crate) fn own_url(&self) -> String {
        self.running.service.own_url()
    }

    /// Registers a schema under a subject, and answers its id.
    pub(crate) async fn register(&self, subject: &str, schema: &str) -> u32 {
        let url = format!("{}/subjects/{subject}/versions", self.url());
        let request = http_client().post(url);
        let answer = request.json(&serde_json::json!({"schema": schema})).send().await;
        let answer = answer.expect("an answer").error_for_status().expect("registered");
        let body: serde_json::Value = answer.json().await.expect("JSON");
        u32::try_from(body["id"].as_u64().expect("an id")).expect("a small id")
    }
}

impl World {
    /// A world whose schemas are in the registry at this URL.
    pub(crate) async fn with_registry(database: Database, url: &str) -> Self {
        let mut world = Self::new(database, Strategy::Row).await;
        world.env.insert("STOCKLOCK__SCHEMA_REGISTRY__URL".to_owned(), url.to_owned());
        world.cli(&["setup"]).succeeds();
        world
    }
}
