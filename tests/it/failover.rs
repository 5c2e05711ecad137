//! The primary of a store is demoted and stays up: sessions move to the new one by themselves.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};
use stocklock::{domain::ProductId, store::StoreError};

use crate::harness::{
    Api, Database, Proxy, Server, Strategy, World, lines, new_order, on_each_database,
    wait_until_within,
};

const LEASE: Duration = Duration::from_secs(60);
/// Sooner than a session ends for its age alone.
const SOON: Duration = Duration::from_secs(30);

/// Errors of a server that cannot do the work and stays connected: shut down, read-only in four
/// ways, offline, a member of a cluster or a group that is not ready.
const UNFIT: [u16; 12] = [1047, 1053, 1290, 1792, 1836, 1874, 3032, 3098, 3100, 3168, 3796, 3797];

async fn fail_over(database: Database) {
    let (old, new) = tokio::join!(Server::start(database, &[]), Server::start(database, &[]));
    new.follow(&old).await;
    let (proxy, url) = Proxy::before(&old.url()).await;
    let world = World::on(&url, Strategy::Row).await;
    world.cli(&["setup"]).succeeds();
    world.import(&[("a", 100)]);
    let roles = [
        world.start("ingest").await,
        world.start("worker").await,
        world.start("compensator").await,
    ];
    let api = Api::of(&roles[0]);
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    let reader = world.stock_store(&World::metrics());
    let id = ProductId::parse("a").expect("an id");
    let shown = reader.find_products(std::slice::from_ref(&id)).await.expect("read");
    assert_eq!(shown[0].available, 99);

    old.hand_over_to(&new).await;
    api.place(&lines(&[("a", 1)])).await.problem(503);
    // The first session of this pool is opened at the demoted primary.
    let (fresh, order) = (world.order_store(), new_order());
    let placing = tokio::spawn(async move { fresh.place(&[order], Duration::ZERO).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!placing.is_finished(), "a session of the demoted primary was used");
    proxy.lead_to(new.address());
    let switched = Instant::now();
    placing.await.unwrap().expect("placed by a session of the new primary");
    wait_until_within(SOON, "an order completes", async || {
        api.place_and_wait(&lines(&[("a", 1)]), 10).await.status == 201
    })
    .await;
    eprintln!("{database:?}: an order completed {:?} after the switch", switched.elapsed());
    // How long a session may read from the old primary is what is tested.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shown = reader.find_products(&[id]).await.expect("read");
    assert_eq!(shown[0].available, world.available("a"), "a session reads from the old primary");
    world.settled().await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_completes_soon_after_a_mysql_primary_is_demoted() {
    fail_over(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_completes_soon_after_a_mariadb_primary_is_demoted() {
    fail_over(Database::MariaDb).await;
}

/// The sessions of a world's order store, but for that which asks.
async fn sessions(asking: &mut MySqlConnection) -> Vec<u64> {
    let own: (u64, String) = sqlx::query_as("SELECT CAST(CONNECTION_ID() AS UNSIGNED), DATABASE()")
        .fetch_one(&mut *asking)
        .await
        .expect("its id");
    let all = asking.fetch_all("SHOW PROCESSLIST").await.expect("the list");
    let of_world = all.iter().filter(|row| {
        row.try_get_unchecked::<Option<String>, _>("db").unwrap().as_ref() == Some(&own.1)
    });
    of_world
        .map(|row| row.try_get_unchecked("Id").expect("an id"))
        .filter(|id| *id != own.0)
        .collect()
}

on_each_database!(a_session_of_an_unfit_server_is_closed_and_no_idle_one_used,);

async fn a_session_of_an_unfit_server_is_closed_and_no_idle_one_used(world: World) {
    let store = world.order_store();
    let mut admin = MySqlConnection::connect(world.config.order_store.url.expose())
        .await
        .expect("a connection");
    let place = || {
        let store = store.clone();
        async move { store.place(&[new_order()], LEASE).await }
    };
    for number in UNFIT {
        let all = futures::future::join_all((0..3).map(|_| place())).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        let before = sessions(&mut admin).await;
        let trigger = format!(
            "CREATE TRIGGER unfit BEFORE INSERT ON outbox_groups FOR EACH ROW
             SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'unfit'"
        );
        admin.execute(trigger.as_str()).await.expect("a trigger");

        let refused = place().await.expect_err("the server is unfit");
        admin.execute("DROP TRIGGER unfit").await.expect("dropped");
        place().await.expect("placed by a new session");

        assert!(matches!(refused, StoreError::Unavailable(_)), "{number}: {refused:?}");
        assert!(!before.is_empty());
        wait_until_within(
            SOON,
            &format!("no old session remains after error {number}"),
            async || !sessions(&mut admin).await.iter().any(|id| before.contains(id)),
        )
        .await;
    }
}

/// Saves the rows of tables, or restores the saved rows: the store then lost its last commits, as
/// in a failover.
async fn lose(url: &str, tables: &[&str], save: bool) {
    let mut conn = MySqlConnection::connect(url).await.expect("a connection");
    for table in tables {
        let sql = if save {
            format!(
                "CREATE TABLE saved_{table} LIKE {table};
                 INSERT INTO saved_{table} SELECT * FROM {table}"
            )
        } else {
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}")
        };
        sqlx::raw_sql(&sql).execute(&mut conn).await.expect("copied");
    }
}

on_each_database!(verify_finds_what_a_failover_of_a_store_lost,);

async fn verify_finds_what_a_failover_of_a_store_lost(world: World) {
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    world.settled().await;
    let (orders, stock) =
        (world.config.order_store.url.expose(), world.config.stock_store.url.expose());
    let (of_orders, of_stock) =
        (["orders", "outbox_groups"], ["products", "order_outcomes", "stock_movements"]);
    lose(orders, &of_orders, true).await;
    lose(stock, &of_stock, true).await;
    let order = api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();
    world.settled().await;
    world.verify();
    all.stop();

    lose(orders, &of_orders, false).await;
    let lost_order = world.cli(&["verify", "--settle", "1s"]).exits(1).stdout();
    lose(stock, &of_stock, false).await;
    let both = world.cli(&["verify", "--settle", "1s"]).exits(1).stdout();
    world
        .tamper_with_orders(&format!(
            "INSERT INTO orders
         SELECT UNHEX(REPLACE('{order}', '-', '')), status, reason, reference, customer_id,
         `lines`, created_at, updated_at, hold_seconds, is_hold_confirmed
         FROM saved_orders LIMIT 1"
        ))
        .await;
    let lost_outcome = world.cli(&["verify", "--settle", "1s"]).exits(1).stdout();

    let says = |text: &str| format!("VIOLATED invariant 3: order {order}: {text}");
    assert!(
        lost_order.contains(&says("was decided, and the order store does not have it")),
        "{lost_order}"
    );
    // The stores agree, and only the topic still knows of the order.
    assert!(both.contains(&format!("VIOLATED invariant 7: order {order}: was passed")), "{both}");
    assert!(!both.contains("invariant 3"), "{both}");
    assert!(
        lost_outcome.contains(&says("is COMPLETED, and no worker decided it")),
        "{lost_outcome}"
    );
}
