//! What the tests stand on: a world of its own for each, and the project's processes in it.

mod api;
mod broker_proxy;
mod clients;
mod load;
mod masters;
mod private_kafka;
mod process;
mod proxy;
mod raw;
mod rival;
mod servers;
mod steps;
mod tamper;
mod topics;
mod world;

pub(crate) use api::Api;
pub(crate) use broker_proxy::BrokerProxy;
pub(crate) use clients::Program;
pub(crate) use load::{body, place_all};
pub(crate) use masters::Masters;
pub(crate) use private_kafka::PrivateKafka;
pub(crate) use process::{Cli, Role, blocking, free_address};
pub(crate) use proxy::Proxy;
pub(crate) use raw::Raw;
pub(crate) use rival::Rival;
pub(crate) use servers::Server;
pub(crate) use steps::{
    acquire, aged, decide, deliver, is_held_up_at, made_ago, made_at, order_lines, random_orders,
    release, try_step,
};
pub(crate) use topics::{delivered, header};
pub(crate) use world::{Database, PATIENCE, Strategy, World, lines};

/// Runs a test once for each database and lock strategy:
/// `on_every_stack! { async fn name(world: World) { … } }`.
macro_rules! on_every_stack {
    ($($tests:tt)+) => {
        crate::harness::tests_on! {
            [
                mysql_row: MySql Row, mysql_redlock: MySql Redlock,
                mariadb_row: MariaDb Row, mariadb_redlock: MariaDb Redlock
            ]
            $($tests)+
        }
    };
}
pub(crate) use on_every_stack;

/// The same once for each database, for what does not depend on the lock strategy.
macro_rules! on_each_database {
    ($($tests:tt)+) => {
        crate::harness::tests_on! { [mysql: MySql Row, mariadb: MariaDb Row] $($tests)+ }
    };
}
pub(crate) use on_each_database;

/// The same on two of the four, where each test waits for a consumer group to notice that a member
/// is gone: between them they have both databases and both strategies.
macro_rules! on_two_stacks {
    ($($tests:tt)+) => {
        crate::harness::tests_on! {
            [mysql_row: MySql Row, mariadb_redlock: MariaDb Redlock] $($tests)+
        }
    };
}
pub(crate) use on_two_stacks;

macro_rules! tests_on {
    ($stacks:tt $($(#[$meta:meta])* async fn $name:ident($world:ident: World) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs what surrounds it")]
            use super::*;

            $(#[$meta])*
            async fn check($world: crate::harness::World) $body

            crate::harness::each_stack! { $stacks }
        }
    )+};
}
pub(crate) use tests_on;

macro_rules! each_stack {
    ([$($stack:ident: $database:ident $strategy:ident),+]) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $stack() {
            use crate::harness::{Database, Strategy, World};
            let (database, strategy) = (Database::$database, Strategy::$strategy);
            check(World::new(database, strategy).await).await;
        }
    )+};
}
pub(crate) use each_stack;
