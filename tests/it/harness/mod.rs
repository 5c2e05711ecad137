//! What the tests stand on: a world of its own for each, and the project's processes in it.

mod process;
mod world;

pub use process::{Cli, Role};
pub use world::{Database, Strategy, World, lines};

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

/// Runs a test once for each database, under `row`, where the strategy does not matter.
macro_rules! on_every_database {
    ($(async fn $name:ident($world:ident: World) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs what surrounds it")]
            use super::*;

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
pub(crate) use on_every_database;
