//! Macros that run a test on several stacks. A test is an `async fn name(world: World)`; the macro
//! makes a `#[tokio::test]` of it for each database and lock strategy, each with a new world.

/// Runs tests on each database under each lock strategy: `on_every_stack!(first, second);`.
macro_rules! on_every_stack {
    ($($test:ident),+ $(,)?) => {
        crate::harness::tests_on! {
            [
                mysql_row: MySql Row, mysql_redlock: MySql Redlock,
                mariadb_row: MariaDb Row, mariadb_redlock: MariaDb Redlock
            ]
            $($test)+
        }
    };
}
pub(crate) use on_every_stack;

/// Runs tests once on each database, for behaviour that does not depend on the lock strategy.
macro_rules! on_each_database {
    ($($test:ident),+ $(,)?) => {
        crate::harness::tests_on! { [mysql: MySql Row, mariadb: MariaDb Row] $($test)+ }
    };
}
pub(crate) use on_each_database;

/// Runs tests on two of the four stacks, which together have both databases and both strategies.
/// It is for slow tests, which wait until a consumer group misses a member.
macro_rules! on_two_stacks {
    ($($test:ident),+ $(,)?) => {
        crate::harness::tests_on! {
            [mysql_row: MySql Row, mariadb_redlock: MariaDb Redlock] $($test)+
        }
    };
}
pub(crate) use on_two_stacks;

/// A module for each test, so that its variants are named `test::stack`.
macro_rules! tests_on {
    ($stacks:tt $($test:ident)+) => {$(
        mod $test {
            crate::harness::each_stack! { $test $stacks }
        }
    )+};
}
pub(crate) use tests_on;

macro_rules! each_stack {
    ($test:ident [$($stack:ident: $database:ident $strategy:ident),+]) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $stack() {
            use crate::harness::{Database, Strategy, World};

            super::$test(World::new(Database::$database, Strategy::$strategy).await).await;
        }
    )+};
}
pub(crate) use each_stack;
