//! `stocklock verify` and orders that hold their stock for a while: holds that are lost, or that
//! nobody ends, and moves that nobody announces.

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _, mysql::MySqlRow};
use stocklock::domain::{OrderEvent, OrderId};

use crate::harness::{World, deliver, on_each_database, order_lines, wait_for, wait_until};

/// A world with one order that holds its stock for another hour.
async fn reserved(world: &World) -> OrderEvent {
    world.import(&[("a", 9)]);
    let [order] = world.save(&[order_lines(&[("a", 2)])]).await.try_into().expect("one order");
    deliver(&world.worker(&World::metrics()), std::slice::from_ref(&order)).await;
    reserve(world, 3600).await;
    order
}

/// Makes the order RESERVED, with a hold that ends in some seconds.
async fn reserve(world: &World, seconds: i64) {
    let sql = format!(
        "UPDATE orders SET status = 'RESERVED', hold_seconds = 3600;
         DELETE FROM holds;
         INSERT INTO holds
             SELECT order_id, UTC_TIMESTAMP(3) + INTERVAL {seconds} SECOND FROM orders"
    );
    world.tamper_with_orders(&sql).await;
}

fn report(world: &World, args: &[&str], status: i32) -> Value {
    let verify = ["--output", "json", "verify", "--settle", "0s"];
    world.cli(&[&verify[..], args].concat()).exits(status).json()
}

/// Fails the test unless `verify` finds this violation of invariant 3 by the order, and no other.
#[track_caller]
fn check_violation(world: &World, order_id: OrderId, detail: &str) {
    let violations = &report(world, &[], 1)["violations"];
    let subject = format!("order {order_id}");
    assert_eq!(
        *violations,
        json!([{"invariant": 3, "subject": subject, "detail": detail}]),
        "{detail}"
    );
}

on_each_database!(
    reserved_orders_and_open_holds_are_the_same,
    a_reserved_order_has_its_stock,
    a_hold_is_due_for_a_minute_at_most_while_a_compensator_runs,
    a_move_that_is_not_announced_for_long_is_not_settled,
    late_announcements_are_awaited,
    an_order_that_moves_while_it_is_read_is_no_violation,
    a_page_is_read_again_after_its_session_was_lost,
);

async fn reserved_orders_and_open_holds_are_the_same(world: World) {
    let id = reserved(&world).await.order_id;

    assert_eq!(report(&world, &[], 0)["unsettled"], json!([]), "an open hold is on its way");

    world.tamper_with_orders("DELETE FROM holds").await;
    check_violation(&world, id, "is RESERVED, and has no open hold");

    for state in ["PENDING", "COMPLETED"] {
        reserve(&world, 3600).await;
        world.tamper_with_orders(&format!("UPDATE orders SET status = '{state}'")).await;
        check_violation(&world, id, &format!("is {state}, and has an open hold"));
    }

    reserve(&world, 3600).await;
    world.tamper_with_stock("DELETE FROM order_outcomes").await;
    world.tamper_with_stock("UPDATE products SET available = 9").await;
    world.tamper_with_orders("DELETE FROM orders").await;
    check_violation(&world, id, "has an open hold, and the order store does not have it");
}

async fn a_reserved_order_has_its_stock(world: World) {
    let id = reserved(&world).await.order_id;
    let details = [
        ("outcome = 'RELEASED'", "is RESERVED, and its stock was released"),
        (
            "outcome = 'FAILED', `lines` = '[]', reason = 'INSUFFICIENT_STOCK'",
            "is RESERVED, and the worker refused it: INSUFFICIENT_STOCK",
        ),
    ];
    world.tamper_with_stock("UPDATE products SET available = 9").await;

    for (outcome, detail) in details {
        world.tamper_with_stock(&format!("UPDATE order_outcomes SET {outcome}")).await;
        check_violation(&world, id, detail);
    }
    world.tamper_with_stock("DELETE FROM order_outcomes").await;
    check_violation(&world, id, "is RESERVED, and no worker decided it");
}

async fn a_hold_is_due_for_a_minute_at_most_while_a_compensator_runs(world: World) {
    let id = reserved(&world).await.order_id;
    let unsettled = |args: &[&str]| report(&world, args, 2)["unsettled"][0].clone();

    reserve(&world, -50).await;
    report(&world, &[], 0);

    reserve(&world, -70).await;
    let fact = "its hold has been due for more than a minute";
    let no_compensator = json!([id.to_string(), format!("{fact}, and no compensator runs")]);
    assert_eq!(unsettled(&[]), no_compensator);

    let silent = unsettled(&["--set", "kafka.brokers=127.0.0.1:9", "--without", "7"]);
    let why = format!("{fact}, and Kafka does not say whether a compensator runs");
    assert!(silent[1].as_str().is_some_and(|text| text.starts_with(&why)), "{silent}");

    // The sweep leaves a locked order alone.
    let mut rival = MySqlConnection::connect(world.config.order_store.url.expose())
        .await
        .expect("a connection");
    let lock = "START TRANSACTION; SELECT * FROM orders FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut rival).await.expect("locked");
    let compensator = world.start("compensator").await;
    let detail = format!("{fact} while a compensator runs");
    check_violation(&world, id, &detail);

    sqlx::raw_sql("ROLLBACK").execute(&mut rival).await.expect("unlocked");
    wait_until("the hold has ended", async || world.count_orders("CANCELLED").await == 1).await;
    assert_eq!(report(&world, &[], 2)["violations"], json!([]), "its release is in flight");
    compensator.stop();
}

/// Has the order's move to COMPLETED wait for its announcement for some minutes, and for some
/// seconds more.
async fn leave_unannounced(world: &World, minutes: i64, leased_seconds: i64) {
    let sql = format!(
        "UPDATE orders SET status = 'COMPLETED'; DELETE FROM holds;
         REPLACE INTO announcements SELECT order_id, 'COMPLETED', 'ingest',
             UTC_TIMESTAMP(3) - INTERVAL {minutes} MINUTE,
             UTC_TIMESTAMP(3) + INTERVAL {leased_seconds} SECOND FROM orders"
    );
    world.tamper_with_orders(&sql).await;
}

async fn a_move_that_is_not_announced_for_long_is_not_settled(world: World) {
    let id = reserved(&world).await.order_id;

    leave_unannounced(&world, 9, 0).await;
    report(&world, &[], 0);

    leave_unannounced(&world, 11, 0).await;
    let found = report(&world, &[], 2);

    let why = "its COMPLETED has not been announced for more than ten minutes";
    assert_eq!(found["unsettled"], json!([[id.to_string(), why]]));
    assert_eq!(found["violations"], json!([]));
}

async fn late_announcements_are_awaited(world: World) {
    reserved(&world).await;
    let ingest = world.start("ingest").await;
    let before = world.count_messages(&world.config.topics.order_status);
    leave_unannounced(&world, 11, 4).await;

    world.cli(&["verify", "--settle", "60s"]).succeeds();

    let after = world.count_messages(&world.config.topics.order_status);
    assert_eq!(after, before + 1, "ingest has announced it");
    ingest.stop();
}

/// Runs `verify`, which has read the orders and cannot read their holds until `meanwhile` has
/// ended. Returns its report. `meanwhile` gets a session, and the number of the session that waits.
async fn report_with(
    world: &World,
    meanwhile: impl AsyncFnOnce(&mut MySqlConnection, u64) + Send,
) -> Value {
    let mut blocking = MySqlConnection::connect(world.config.order_store.url.expose())
        .await
        .expect("a connection");
    blocking.execute("LOCK TABLES holds WRITE").await.expect("locked");
    std::thread::scope(|threads| {
        let verifying = threads.spawn(|| report(world, &[], 0));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let reader = waits_for_a_lock(&mut blocking).await;
                meanwhile(&mut blocking, reader).await;
                blocking.execute("UNLOCK TABLES").await.expect("unlocked");
            });
        });
        verifying.join().expect("verified")
    })
}

/// The order is read, then it fails and is released, then its outcome is read.
async fn an_order_that_moves_while_it_is_read_is_no_violation(world: World) {
    reserved(&world).await;

    let found = report_with(&world, async |session, _| {
        session.execute("DELETE FROM holds").await.expect("deleted");
        let fail = "UPDATE orders SET status = 'FAILED', reason = 'payment'";
        world.tamper_with_orders(fail).await;
        let release = "UPDATE order_outcomes SET outcome = 'RELEASED', released_at = NOW(3);
                       UPDATE products SET available = 9";
        world.tamper_with_stock(release).await;
    });
    let found = found.await;

    assert_eq!((&found["orders"], &found["violations"]), (&json!(1), &json!([])));
}

async fn a_page_is_read_again_after_its_session_was_lost(world: World) {
    reserved(&world).await;

    let found = report_with(&world, async |session, reader| {
        session.execute(format!("KILL {reader}").as_str()).await.expect("killed");
    });
    let found = found.await;

    assert_eq!((&found["orders"], &found["violations"]), (&json!(1), &json!([])));
}

/// Waits until a session of the server waits for a table of another one. Returns its number.
async fn waits_for_a_lock(conn: &mut MySqlConnection) -> u64 {
    wait_for(async || {
        let sessions = conn.fetch_all("SHOW PROCESSLIST").await.expect("the list");
        let waits = |session: &&MySqlRow| {
            let state: Option<String> = session.try_get_unchecked("State").expect("a state");
            state.is_some_and(|state| state.starts_with("Waiting for table"))
        };
        let reader = sessions.iter().find(waits).ok_or("nobody waits for the holds")?;
        Ok::<u64, &str>(reader.try_get_unchecked("Id").expect("a number"))
    })
    .await
}
