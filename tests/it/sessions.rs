//! A database that makes us wait: sessions stay few, and no row stays locked for longer than
//! `lock.ttl`.

use std::time::Duration;

use futures::future::join_all;
use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};
use stocklock::store::{Database as Pool, Guard, IdRange, OrderStore, StoreError, StoreName};
use tokio::task::JoinHandle;

use crate::harness::{PATIENCE, World, aged, new_order, on_each_database, order_lines, wait_until};

const LEASE: Duration = Duration::from_secs(60);
const LOCK_LIMIT: Duration = Duration::from_secs(3);
/// Ten minutes that no limit on waiting for locks ends, as none ends the wait for a disk or for a
/// replica. The sleeps are short: MariaDB ends a long one by itself once its client has gone.
const SLEEP: &str = "FOR EACH ROW BEGIN
    DECLARE passes INT DEFAULT 0;
    WHILE passes < 1200 DO SET @slept = SLEEP(0.5); SET passes = passes + 1; END WHILE;
END";

fn order_store(world: &World, pool_max: u32, lock_limit: Duration) -> OrderStore {
    let mut config = world.config.order_store.clone();
    config.pool_max = pool_max;
    let pool = Pool::open(&config, StoreName::OrderStore, lock_limit, World::metrics())
        .expect("the order store");
    OrderStore::new(pool)
}

/// What the server says of a session that is in [`SLEEP`].
const SLEEPING: &str = "User sleep";

/// The sessions in this connection's database, but for itself: what each is at.
async fn sessions(conn: &mut MySqlConnection) -> Vec<Option<String>> {
    let own = "SELECT CAST(CONNECTION_ID() AS UNSIGNED), DATABASE()";
    let (id, database): (u64, String) =
        sqlx::query_as(own).fetch_one(&mut *conn).await.expect("its id");
    let all = conn.fetch_all("SHOW PROCESSLIST").await.expect("the list");
    let others = all.iter().filter(|row| {
        row.try_get_unchecked::<Option<String>, _>("db").expect("a name").as_ref()
            == Some(&database)
            && row.try_get_unchecked::<u64, _>("Id").expect("an id") != id
    });
    others.map(|row| row.try_get_unchecked("State").expect("a state")).collect()
}

/// Waits until a statement of the task is in [`SLEEP`]. Fails the test if the task ends before.
async fn is_held_up<T>(watching: &mut MySqlConnection, task: &JoinHandle<T>) {
    wait_until("the statement is held up", async || {
        assert!(!task.is_finished(), "the statement is not held up");
        sessions(watching).await.iter().flatten().any(|state| state == SLEEPING)
    })
    .await;
}

async fn connect(url: &str) -> MySqlConnection {
    MySqlConnection::connect(url).await.expect("a connection")
}

on_each_database!(
    statements_that_were_given_up_are_ended_and_sessions_stay_few,
    the_statement_of_a_caller_that_has_gone_is_ended,
    no_row_stays_locked_for_longer_than_the_limit,
    a_wait_for_a_table_ends_as_one_for_a_row_does,
    a_long_read_of_verify_has_no_limit,
);

/// On `MariaDB` the session's `max_statement_time` ends the statements too.
async fn statements_that_were_given_up_are_ended_and_sessions_stay_few(world: World) {
    const POOL_MAX: u32 = 3;
    let store = order_store(&world, POOL_MAX, LOCK_LIMIT);
    let mut admin = connect(world.config.order_store.url.expose()).await;
    admin
        .execute(format!("CREATE TRIGGER slow BEFORE INSERT ON orders {SLEEP}").as_str())
        .await
        .expect("a trigger");

    let placing = tokio::spawn({
        let store = store.clone();
        let place = async move || store.place(&[new_order()], LEASE).await;
        async move { join_all((0..8).map(|_| place())).await }
    });
    let (mut most, mut slept) = (0, false);
    while !placing.is_finished() {
        let found = sessions(&mut admin).await;
        slept |= found.iter().flatten().any(|state| state == SLEEPING);
        most = most.max(found.len());
        // Between two samples of the number of sessions.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let placed = placing.await.expect("no panic");
    let dropping = tokio::time::timeout(PATIENCE, admin.execute("DROP TRIGGER slow")).await;
    dropping.expect("a statement goes on").expect("dropped");

    assert!(slept, "no statement was held up");
    assert!(
        placed.iter().all(|placed| matches!(placed, Err(StoreError::Unavailable(_)))),
        "{placed:?}"
    );
    assert!(most <= POOL_MAX as usize, "there were {most} sessions");
    store.place(&[new_order()], LEASE).await.expect("placed");
    assert_eq!(world.count_orders("PENDING").await, 1, "a statement went on after it was given up");
}

async fn the_statement_of_a_caller_that_has_gone_is_ended(world: World) {
    let store = order_store(&world, 2, Duration::from_secs(600));
    let mut admin = connect(world.config.order_store.url.expose()).await;
    admin
        .execute(format!("CREATE TRIGGER slow BEFORE INSERT ON orders {SLEEP}").as_str())
        .await
        .expect("a trigger");
    let mut watching = connect(world.config.order_store.url.expose()).await;

    let placing = tokio::spawn({
        let store = store.clone();
        async move { store.place(&[new_order()], LEASE).await }
    });
    is_held_up(&mut watching, &placing).await;
    placing.abort();

    let dropping = tokio::time::timeout(PATIENCE, admin.execute("DROP TRIGGER slow"));
    dropping.await.expect("the statement went on").expect("dropped");
    store.place(&[new_order()], LEASE).await.expect("placed");
}

async fn no_row_stays_locked_for_longer_than_the_limit(world: World) {
    world.import(&[("a", 5)]);
    let pool =
        Pool::open(&world.config.stock_store, StoreName::StockStore, LOCK_LIMIT, World::metrics());
    let store = stocklock::store::StockStore::new(
        pool.expect("the stock store"),
        World::metrics(),
        world.config.retention.horizon,
    );
    let events = world.save(&[order_lines(&[("a", 1)])]).await;
    let url = world.config.stock_store.url.expose().to_owned();
    let (mut admin, mut rival) = (connect(&url).await, connect(&url).await);
    let trigger = format!("CREATE TRIGGER slow BEFORE INSERT ON order_outcomes {SLEEP}");
    admin.execute(trigger.as_str()).await.expect("a trigger");

    let deciding = tokio::spawn({
        let (store, events) = (store.clone(), events.clone());
        async move { store.decide(&events, Guard::RowLocks, chrono::Utc::now(), || true).await }
    });
    is_held_up(&mut admin, &deciding).await;
    rival.execute("SET SESSION innodb_lock_wait_timeout = 500").await.expect("patience");
    let locking = "SELECT available FROM products WHERE product_id = 'a' FOR UPDATE";
    let locked = tokio::time::timeout(PATIENCE, rival.fetch_one(locking)).await;

    locked.expect("the row stays locked").expect("locked");
    let given_up = deciding.await.expect("no panic");
    assert!(matches!(given_up, Err(StoreError::Unavailable(_))), "{given_up:?}");
    admin.execute("DROP TRIGGER slow").await.expect("dropped");
    store.decide(&events, Guard::RowLocks, chrono::Utc::now(), || true).await.expect("decided");
    assert_eq!(world.available("a"), 4);
    world.check_ledger(&store).await;
}

async fn a_wait_for_a_table_ends_as_one_for_a_row_does(world: World) {
    let store = order_store(&world, 2, LOCK_LIMIT);
    let mut admin = connect(world.config.order_store.url.expose()).await;
    admin.execute("LOCK TABLES orders READ").await.expect("locked");

    let placed =
        tokio::time::timeout(PATIENCE, store.place(&[new_order()], LEASE)).await.expect("it ends");
    admin.execute("UNLOCK TABLES").await.expect("unlocked");

    assert!(matches!(placed, Err(StoreError::Conflict(_))), "{placed:?}");
    store.place(&[new_order()], LEASE).await.expect("placed");
    assert_eq!(world.count_orders("PENDING").await, 1);
}

async fn a_long_read_of_verify_has_no_limit(world: World) {
    let pool = Pool::open(
        &world.config.stock_store,
        StoreName::StockStore,
        Duration::from_secs(2),
        World::metrics(),
    );
    let store = stocklock::store::StockStore::new(
        pool.expect("the stock store"),
        World::metrics(),
        world.config.retention.horizon,
    );
    world
        .tamper_with_stock(
            "ALTER TABLE order_outcomes RENAME TO kept_outcomes;
         CREATE SQL SECURITY INVOKER VIEW order_outcomes AS
             SELECT order_id, outcome, reason, `lines`, released_at FROM kept_outcomes
         WHERE SLEEP(3) = 0",
        )
        .await;
    let id = aged(0);
    let insert = format!(
        "INSERT INTO kept_outcomes (order_id, outcome, `lines`, decided_at)
         VALUES (UNHEX('{}'), 'FAILED', '[]', NOW(3))",
        id.uuid().simple()
    );
    world.tamper_with_stock(&insert).await;

    let bounded = store.page_of_outcomes(IdRange::from(None, 10)).await;
    let snapshot = store.snapshot().await.expect("a snapshot");

    assert!(
        matches!(bounded, Err(StoreError::Unavailable(_))) || cfg!(not(debug_assertions)),
        "{bounded:?}"
    );
    assert_eq!(snapshot.outcomes, 1);
}
