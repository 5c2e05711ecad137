//! A message that comes again changes no row, and is answered again.

use std::collections::BTreeSet;

use sqlx::{Connection as _, MySqlConnection};
use stocklock::domain::{EventKind, ReportedStatus};

use crate::harness::{
    World, body, deliver, lines, on_every_stack, on_two_stacks, order_lines, place_all,
    random_orders,
};

/// Every row of the tables, as text: a repetition must not change them.
async fn contents(url: &str, tables: &[&str]) -> Vec<String> {
    let mut conn = MySqlConnection::connect(url).await.expect("a connection");
    let mut contents = Vec::new();
    for table in tables {
        let columns = "SELECT GROUP_CONCAT('HEX(`', column_name, '`)' ORDER BY ordinal_position)
                       FROM information_schema.columns
                       WHERE table_schema = DATABASE() AND table_name = ?";
        let columns: String =
            sqlx::query_scalar(columns).bind(table).fetch_one(&mut conn).await.expect("columns");
        let rows =
            format!("SELECT CONCAT_WS('|', '{table}', {columns}) AS r FROM {table} ORDER BY r");
        let rows = sqlx::query_scalar(&rows).fetch_all(&mut conn).await;
        contents.extend(
            rows.expect("rows")
                .into_iter()
                .map(|row: Vec<u8>| String::from_utf8(row).expect("hex")),
        );
    }
    contents
}

async fn everything(world: &World) -> Vec<String> {
    let stock = ["products", "order_outcomes", "stock_movements"];
    let mut everything = contents(world.config.stock_store.url.expose(), &stock).await;
    everything.extend(
        contents(
            world.config.order_store.url.expose(),
            &["orders", "outbox_groups", "owed_releases"],
        )
        .await,
    );
    everything
}

on_two_stacks!(both_topics_replayed_from_the_start_change_nothing,);

async fn both_topics_replayed_from_the_start_change_nothing(world: World) {
    let topics = &world.config.topics;
    world.import(&[("p0", 100), ("p1", 40), ("p2", 0)]);
    let all = world.start("all").await;
    let completed = place_all(&all.http, &[lines(&[("p0", 1)])], 1).await;
    let bodies: Vec<_> = random_orders(11, 149, 3).iter().map(body).collect();
    place_all(&all.http, &bodies, 16).await;
    world.settled().await;
    world.cli(&["order", "fail", &completed[0], "--reason", "lost in the warehouse"]).succeeds();
    world.verify();
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    all.stop();
    let outcomes_reported = || {
        world.read_statuses().iter().filter(|said| said.status != ReportedStatus::Released).count()
    };
    let (before, statuses) = (everything(&world).await, outcomes_reported());
    // The relay may have published some of them more than once.
    let placed: Vec<_> = world
        .read_events()
        .iter()
        .filter(|event| event.kind == EventKind::Placed)
        .map(|e| e.order_id)
        .collect();
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), 150);
    let repeated = placed.iter().filter(|id| id.to_string() != completed[0]).count();

    let groups = [
        ("STOCKLOCK__KAFKA__GROUP_ID", "again-w"),
        ("STOCKLOCK__COMPENSATOR__GROUP_ID", "again-c"),
    ];
    let groups = groups.map(|(key, name)| (key, format!("{name}-{}", topics.orders)));
    let settings = groups.each_ref().map(|(key, name)| (*key, name.as_str()));
    let (worker, compensator) = (
        world.start_with("worker", &settings).await,
        world.start_with("compensator", &settings).await,
    );
    world.caught_up(&groups[0].1, &topics.orders).await;
    world.caught_up(&groups[1].1, &topics.order_status).await;
    assert_eq!(worker.count("stocklock_orders_decided_total", "").await, 0);
    // A completion that meets a failed order is released again: the worker knows that it was.
    for kind in ["completed", "failed"] {
        assert_eq!(compensator.count("stocklock_compensations_total", kind).await, 0);
    }
    // Until the release that this owes again is done.
    world.verify();
    worker.stop();
    compensator.stop();
    assert_eq!(outcomes_reported() - statuses, repeated, "all but the released one are repeated");
    assert_eq!(everything(&world).await, before);
    world.verify();
}

on_every_stack!(a_duplicate_in_a_batch_is_decided_once_and_answered_each_time,);

async fn a_duplicate_in_a_batch_is_decided_once_and_answered_each_time(world: World) {
    world.import(&[("a", 5)]);
    let worker = world.worker(&World::metrics());
    let events = world.save(&[order_lines(&[("a", 3)]), order_lines(&[("a", 3)])]).await;
    let batch = [0, 0, 1, 0, 1].map(|index: usize| events[index].clone());

    assert_eq!(deliver(&worker, &batch).await, 2);
    assert_eq!(world.available("a"), 2);
    assert_eq!(world.read_statuses().len(), 5);

    let before = everything(&world).await;
    assert_eq!(deliver(&worker, &batch).await, 0);
    assert_eq!((everything(&world).await, world.read_statuses().len()), (before, 10));

    world.replay_statuses(&world.compensator(&World::metrics())).await;
    assert_eq!((world.count_orders("COMPLETED").await, world.count_orders("FAILED").await), (1, 1));
}
