//! What the tests stand on: a world of its own for each, and the project's processes in it.

mod api;
mod process;
mod proxy;
mod tamper;
mod world;

pub use api::Api;
pub use process::{Cli, Role};
pub use proxy::Proxy;
pub use world::{Database, PATIENCE, Strategy, World, lines};

/// Runs a test once for each database and lock strategy: `on_every_stack!(async fn name(world: World) { … });`
macro_rules! on_every_stack {
    ($($(#[$meta:meta])* async fn $name:ident($world:ident: World) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs what surrounds it")]
            use super::*;

            $(#[$meta])*
            async fn check($world: crate::harness::World) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql_row() {
                check(crate::harness::World::new(crate::harness::Database::MySql, crate::harness::Strategy::Row).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql_redlock() {
                check(crate::harness::World::new(crate::harness::Database::MySql, crate::harness::Strategy::Redlock).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb_row() {
                check(crate::harness::World::new(crate::harness::Database::MariaDb, crate::harness::Strategy::Row).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb_redlock() {
                check(crate::harness::World::new(crate::harness::Database::MariaDb, crate::harness::Strategy::Redlock).await).await;
            }
        }
    )+};
}
pub(crate) use on_every_stack;

/// The same once for each database, for what does not depend on the lock strategy.
macro_rules! on_each_database {
    ($($(#[$meta:meta])* async fn $name:ident($world:ident: World) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs what surrounds it")]
            use super::*;

            $(#[$meta])*
            async fn check($world: crate::harness::World) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql() {
                check(crate::harness::World::new(crate::harness::Database::MySql, crate::harness::Strategy::Row).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb() {
                check(crate::harness::World::new(crate::harness::Database::MariaDb, crate::harness::Strategy::Row).await).await;
            }
        }
    )+};
}
pub(crate) use on_each_database;
