//! A database refuses a write for its data: that message alone is dead-lettered. A database cannot
//! write at present: the messages wait.

use rdkafka::{Message as _, message::OwnedMessage};
use serde_json::json;
use stocklock::domain::{OrderEvent, OrderId};

use crate::harness::{
    PATIENCE, Role, World, header, on_each_database, order_lines, readiness, release,
    wait_for_within,
};

/// Long enough that all messages of the topic are one batch.
const ONE_BATCH: (&str, &str) = ("STOCKLOCK__WORKER__LINGER", "500ms");
const ORDERS: usize = 300;

/// Puts undecided orders on the topic. Returns them, and the id of the order in their middle.
async fn orders_with_a_culprit(world: &World) -> (Vec<OrderEvent>, OrderId) {
    world.import(&[("a", 1000)]);
    let orders = world.save(&vec![order_lines(&[("a", 1)]); ORDERS]).await;
    let culprit = orders[ORDERS / 2].order_id;
    world.produce_events(&orders).await;
    (orders, culprit)
}

/// Waits until everything on both topics is done, and committed.
async fn all_done(world: &World) {
    let (kafka, topics) = (&world.config.kafka, &world.config.topics);
    world.caught_up(&kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
}

/// Fails the test unless one message was dead-lettered, as it was found, for this reason.
fn check_letter(
    world: &World,
    topic: &str,
    letters_topic: &str,
    culprit: OrderId,
    class: &str,
    text: &str,
) {
    let letters = world.read_topic(letters_topic);
    assert_eq!(letters.len(), 1);
    let is_its = |message: &&OwnedMessage| message.key() == Some(culprit.to_string().as_bytes());
    let found = world.read_topic(topic);
    let origin = found.iter().rfind(is_its).expect("the message");
    let letter = letters.iter().find(is_its).expect("the culprit's letter");
    assert_eq!(letter.payload(), origin.payload());
    let header = |name: &str| header(letter, &format!("stocklock.{name}")).unwrap_or_default();
    assert_eq!(header("error.class"), class);
    assert!(header("error.text").contains(text), "{}", header("error.text"));
    assert_eq!(header("original.topic"), topic);
    assert_eq!(header("original.partition"), origin.partition().to_string());
    assert_eq!(header("original.offset"), origin.offset().to_string());
}

/// Fails the test unless `verify` lists this order as dead-lettered, and finds nothing else.
fn check_only_dead_lettered(world: &World, culprit: OrderId) {
    let report = world.cli(&["--output", "json", "verify", "--settle", "60s"]).exits(0).json();
    assert_eq!((&report["unsettled"], &report["violations"]), (&json!([]), &json!([])));
    let apart = report["dead_lettered"].as_array().expect("a list");
    assert_eq!((apart.len(), &apart[0][0]), (1, &json!(culprit.to_string())), "{apart:?}");
}

/// A constraint of a table that one order breaks.
fn constraint(table: &str, condition: &str) -> String {
    format!("ALTER TABLE {table} ADD CONSTRAINT not_this_one CHECK ({condition})")
}

/// A trigger before a write of a table that signals for one order.
fn trigger(write: &str, table: &str, culprit: OrderId, state: &str) -> String {
    format!(
        "CREATE TRIGGER refuses BEFORE {write} ON {table} FOR EACH ROW IF NEW.order_id = {}
         THEN SIGNAL SQLSTATE '{state}' SET MESSAGE_TEXT = 'not this one'; END IF",
        literal(culprit)
    )
}

fn literal(id: OrderId) -> String {
    format!("X'{}'", id.uuid().simple())
}

/// Waits until a role has repeated a batch, in the end a batch of one message, and is not ready.
async fn repeats(role: &Role, dependency: &str) {
    let mut alone_since = None;
    // Each part on the way there is tried some times, ever more rarely.
    wait_for_within(3 * PATIENCE, async || {
        let retries = role.count("stocklock_retries_total", dependency).await;
        let (status, why) = readiness(role).await;
        // Of many failures the log names few.
        if alone_since.is_none() && role.log().contains("batch failed messages=1 ") {
            alone_since = Some(retries);
        }
        if status != 200 && alone_since.is_some_and(|before| retries >= before + 3) {
            Ok(())
        } else {
            Err(format!("{retries} retries, alone since {alone_since:?}, {status} {why}"))
        }
    })
    .await;
}

on_each_database!(
    an_order_that_the_stock_store_refuses_is_dead_lettered_alone,
    a_status_that_the_order_store_refuses_is_dead_lettered_alone,
    an_order_that_the_database_cannot_write_at_present_waits,
    an_order_whose_outcome_is_corrupt_is_dead_lettered_alone,
    orders_of_a_product_whose_row_is_corrupt_wait_until_it_is_mended,
);

async fn an_order_that_the_stock_store_refuses_is_dead_lettered_alone(world: World) {
    let topics = &world.config.topics;
    let (_, culprit) = orders_with_a_culprit(&world).await;
    let condition = format!("order_id <> {}", literal(culprit));
    world.tamper_with_stock(&constraint("order_outcomes", &condition)).await;
    let (worker, compensator) =
        (world.start_with("worker", &[ONE_BATCH]).await, world.start("compensator").await);
    all_done(&world).await;
    check_letter(&world, &topics.orders, &topics.orders_dlq, culprit, "refused", "not_this_one");
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (299, 701));
    assert_eq!(worker.count("stocklock_dead_letters_total", "class=\"refused\"").await, 1);
    let parts = worker.count("stocklock_batch_orders_count", "").await;
    assert!(parts >= 6, "done in {parts} parts: it was not in the middle of a batch");
    assert_eq!(
        worker.count("stocklock_batch_orders_sum", "").await,
        299,
        "each of the others once"
    );
    assert_eq!(
        worker.count("stocklock_retries_total", "stock_store").await,
        0,
        "a refusal is no outage"
    );

    world.produce_events(&world.save(&vec![order_lines(&[("a", 2)]); 20]).await).await;
    all_done(&world).await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (319, 661));
    check_only_dead_lettered(&world, culprit);
    worker.stop();
    compensator.stop();
}

async fn a_status_that_the_order_store_refuses_is_dead_lettered_alone(world: World) {
    let topics = &world.config.topics;
    let (_, culprit) = orders_with_a_culprit(&world).await;
    world.tamper_with_orders(&trigger("UPDATE", "orders", culprit, "45000")).await;
    let worker = world.start("worker").await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    let linger = [("STOCKLOCK__COMPENSATOR__LINGER", "500ms")];
    let compensator = world.start_with("compensator", &linger).await;
    all_done(&world).await;
    check_letter(
        &world,
        &topics.order_status,
        &topics.order_status_dlq,
        culprit,
        "refused",
        "not this one",
    );
    assert_eq!(
        (world.count_orders("COMPLETED").await, world.count_orders("PENDING").await),
        (299, 1)
    );
    assert_eq!(compensator.count("stocklock_dead_letters_total", "class=\"refused\"").await, 1);
    assert_eq!(compensator.count("stocklock_compensations_total", "completed").await, 299);
    assert_eq!(
        compensator.count("stocklock_retries_total", "order_store").await,
        0,
        "a refusal is no outage"
    );

    world.produce_events(&world.save(&vec![order_lines(&[("a", 2)]); 20]).await).await;
    all_done(&world).await;
    assert_eq!(world.count_orders("COMPLETED").await, 319);
    check_only_dead_lettered(&world, culprit);
    worker.stop();
    compensator.stop();
}

/// A trigger that asks for another attempt is no refusal, whatever it says.
async fn an_order_that_the_database_cannot_write_at_present_waits(world: World) {
    let topics = &world.config.topics;
    let (orders, culprit) = orders_with_a_culprit(&world).await;
    world.tamper_with_stock(&trigger("INSERT", "order_outcomes", culprit, "40001")).await;

    // It is ready only until its first batch fails.
    let worker = Role::spawn(&world.env, "worker", &[ONE_BATCH]);
    worker.listening().await;
    let compensator = world.start("compensator").await;
    repeats(&worker, "stock_store").await;

    assert!(world.uncommitted(&world.config.kafka.group_id, &topics.orders) > 0);

    world.tamper_with_stock("DROP TRIGGER refuses").await;
    world.settled().await;
    worker.ready().await;

    assert_eq!(world.count_orders("COMPLETED").await, i64::try_from(orders.len()).unwrap());
    assert_eq!(world.count_messages(&topics.orders_dlq), 0, "an outage dead-letters no message");
    world.verify();
    worker.stop();
    compensator.stop();
}

/// The others of its batch, and those that want the same product, are not to blame.
async fn an_order_whose_outcome_is_corrupt_is_dead_lettered_alone(world: World) {
    let topics = &world.config.topics;
    let (orders, culprit) = orders_with_a_culprit(&world).await;
    let worker = world.start_with("worker", &[ONE_BATCH]).await;
    let compensator = world.start("compensator").await;
    world.settled().await;

    let damage =
        format!("UPDATE order_outcomes SET `lines` = '[[' WHERE order_id = {}", literal(culprit));
    world.tamper_with_stock(&damage).await;
    world.produce_events(&orders.iter().map(release).collect::<Vec<_>>()).await;

    all_done(&world).await;

    check_letter(
        &world,
        &topics.orders,
        &topics.orders_dlq,
        culprit,
        "damaged",
        "order_outcomes.lines",
    );
    assert_eq!(world.available("a"), 999, "the units of the others are released");
    worker.stop();
    compensator.stop();
}

/// Trailing blanks do not count where the database compares ids, and no id has any.
async fn orders_of_a_product_whose_row_is_corrupt_wait_until_it_is_mended(world: World) {
    let topics = &world.config.topics;
    world.import(&[("a", 100), ("b", 100)]);
    world.tamper_with_stock("UPDATE products SET product_id = 'a ' WHERE product_id = 'a'").await;
    let orders = world.save(&[order_lines(&[("a", 1)]), order_lines(&[("b", 1)])]).await;
    world.produce_events(&orders).await;

    // It is ready only until its first batch fails.
    let worker = Role::spawn(&world.env, "worker", &[ONE_BATCH]);
    worker.listening().await;
    let compensator = world.start("compensator").await;
    repeats(&worker, "stock_store").await;

    world.tamper_with_stock("UPDATE products SET product_id = 'a' WHERE product_id = 'a '").await;
    world.settled().await;

    assert_eq!((world.available("a"), world.available("b")), (99, 99));
    assert_eq!(world.count_messages(&topics.orders_dlq), 0, "no order is to blame");
    world.verify();
    worker.stop();
    compensator.stop();
}
