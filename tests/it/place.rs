//! How a group of placements is written: new orders, repeated ones, and ones of other requests.

use std::time::Duration;

use chrono::{SubsecRound as _, TimeDelta, Utc};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    domain::OrderId,
    lock::Lease,
    retention::{PurgedStore, Purger},
    store::{IdempotencyKey, Identity, KeyedRequest, NewOrder, PlaceTerms, Placed, Placement},
};

use crate::harness::{World, is_held_up_at, new_order, on_each_database, order_lines};

const TERMS: PlaceTerms = PlaceTerms {
    lease: Duration::from_secs(60),
    max_id_skew: Duration::from_secs(30),
    is_repeated: false,
};
const REPEATED: PlaceTerms = PlaceTerms { is_repeated: true, ..TERMS };

fn order(quantity: i64) -> NewOrder {
    let accepted_at = Utc::now().trunc_subsecs(3);
    NewOrder { lines: order_lines(&[("a", quantity)]), accepted_at, ..new_order() }
}

/// An order under an id that the client made.
fn put(order_id: OrderId, quantity: i64) -> Placement {
    let order = NewOrder { order_id, ..order(quantity) };
    Placement { order, identity: Some(Identity::OrderId), trace: None }
}

/// An order with a key of a caller.
fn keyed(caller: &str, key: &str, quantity: i64) -> Placement {
    let key = IdempotencyKey { caller: caller.to_owned(), key: key.to_owned() };
    let request = KeyedRequest { key, sha256: [u8::try_from(quantity).expect("few"); 32] };
    let identity = Some(Identity::Key(Box::new(request)));
    Placement { order: order(quantity), identity, trace: None }
}

fn plain() -> Placement {
    Placement { order: order(1), identity: None, trace: None }
}

async fn place(world: &World, group: &[&Placement], terms: PlaceTerms) -> Vec<Placed> {
    world.order_store().place_all(group, terms).await.expect("placed")
}

/// What became of each placement: `new`, `other`, or the number of the placement of `all` that made
/// the order.
fn shown(placed: &[Placed], all: &[&Placement]) -> Vec<String> {
    let shown = placed.iter().map(|placed| match placed {
        Placed::New => "new".to_owned(),
        Placed::OtherRequest => "other".to_owned(),
        Placed::Replayed(known) => {
            let made = |placement: &&Placement| placement.order.order_id == known.order_id;
            all.iter().position(made).expect("one of them").to_string()
        }
    });
    shown.collect()
}

async fn outbox(world: &World) -> u64 {
    world.order_store().outbox_state().await.expect("the outbox").pending
}

on_each_database!(
    one_duplicate_fails_no_other_order_of_its_group,
    equal_placements_of_a_group_make_one_order,
    an_own_attempt_that_was_not_answered_is_no_replay,
    a_key_belongs_to_its_caller,
    a_key_is_kept_for_its_retention_and_then_free,
    a_group_waits_for_a_rival_that_writes_the_same_order,
    a_group_waits_for_a_rival_that_binds_the_same_key,
    a_corrupt_order_fails_no_other_order_of_the_group,
);

async fn one_duplicate_fails_no_other_order_of_its_group(world: World) {
    let (id, key) = (OrderId::generate(), keyed("", "k", 1));
    let (first, plain_one) = (put(id, 1), plain());
    place(&world, &[&first, &key], TERMS).await;
    let (again, other) = (put(id, 1), put(OrderId::generate(), 1));
    let (key_again, other_content) = (keyed("", "k", 1), keyed("", "k", 2));
    let new_key = keyed("", "l", 1);

    let all = [&first, &key, &plain_one, &again, &other, &key_again, &other_content, &new_key];
    let placed = place(&world, &all[2..], TERMS).await;
    let changed = place(&world, &[&put(id, 2), &plain()], TERMS).await;

    assert_eq!(shown(&placed, &all), ["new", "0", "new", "1", "other", "new"]);
    assert_eq!(shown(&changed, &[]), ["other", "new"]);
    assert_eq!((world.count_orders("PENDING").await, outbox(&world).await), (6, 6));
}

async fn equal_placements_of_a_group_make_one_order(world: World) {
    let id = OrderId::generate();
    let (first, again, other) = (put(id, 1), put(id, 1), put(id, 2));
    let (key, key_again, key_other) = (keyed("", "k", 1), keyed("", "k", 1), keyed("", "k", 2));
    let group = [&first, &key, &again, &key_again, &other, &key_other];

    let placed = place(&world, &group, TERMS).await;
    let repeated = place(&world, &group, TERMS).await;

    assert_eq!(shown(&placed, &group), ["new", "new", "0", "1", "other", "other"]);
    assert_eq!(shown(&repeated, &group), ["0", "new", "0", "1", "other", "other"]);
    assert_eq!((world.count_orders("PENDING").await, outbox(&world).await), (2, 2));
}

async fn an_own_attempt_that_was_not_answered_is_no_replay(world: World) {
    let (put, key, plain) = (put(OrderId::generate(), 1), keyed("", "k", 1), plain());
    let group = [&put, &key, &plain];
    place(&world, &group, TERMS).await;

    let own = place(&world, &group, REPEATED).await;
    let mut later = put.clone();
    later.order.accepted_at += Duration::from_millis(1);
    let others = place(&world, &[&later, &keyed("", "k", 1)], REPEATED).await;

    assert_eq!(shown(&own, &group), ["new", "new", "new"]);
    assert_eq!(shown(&others, &group), ["0", "1"]);
    assert_eq!((world.count_orders("PENDING").await, outbox(&world).await), (3, 3));
}

async fn a_key_belongs_to_its_caller(world: World) {
    let group = [&keyed("", "k", 1), &keyed("one", "k", 1), &keyed("two", "k", 2)];

    let placed = place(&world, &group, TERMS).await;
    let repeated = [&keyed("one", "k", 1), &keyed("two", "k", 2), &keyed("one", "K", 1)];
    let repeated = place(&world, &repeated, TERMS).await;

    assert_eq!(shown(&placed, &group), ["new", "new", "new"]);
    assert_eq!(shown(&repeated, &group), ["1", "2", "new"]);
}

async fn a_key_is_kept_for_its_retention_and_then_free(world: World) {
    let purger = Purger {
        store: PurgedStore::Orders(world.order_store().into()),
        ages: world.config.retention.clone(),
        lease: Lease::None,
        metrics: World::metrics(),
    };
    let first = keyed("", "k", 1);
    place(&world, &[&first], TERMS).await;
    // The default is 7 days.
    let end = first.order.accepted_at + TimeDelta::days(7);

    purger.pass(end).await.expect("a pass");
    let in_time = place(&world, &[&keyed("", "k", 1)], TERMS).await;
    purger.pass(end + TimeDelta::milliseconds(1)).await.expect("a pass");
    let too_late = place(&world, &[&keyed("", "k", 2)], TERMS).await;

    assert_eq!(shown(&in_time, &[&first]), ["0"]);
    assert_eq!(shown(&too_late, &[&first]), ["new"]);
}

async fn rival(world: &World, sql: &str) -> MySqlConnection {
    let url = world.config.order_store.url.expose();
    let mut conn = MySqlConnection::connect(url).await.expect("the order store");
    let sql = format!("START TRANSACTION; {sql}");
    sqlx::raw_sql(&sql).execute(&mut conn).await.expect("inserted");
    conn
}

fn insert_order(order: &NewOrder) -> String {
    format!(
        "INSERT INTO orders (order_id, `lines`, created_at, updated_at)
         VALUES (UNHEX('{}'), '[[\"a\",1]]', NOW(3), NOW(3));",
        order.order_id.uuid().simple()
    )
}

async fn a_group_waits_for_a_rival_that_writes_the_same_order(world: World) {
    let (one, other, plain) = (put(OrderId::generate(), 1), put(OrderId::generate(), 1), plain());
    let rows = [insert_order(&one.order), insert_order(&other.order)].concat();
    let mut rival = rival(&world, &rows).await;
    let (store, group) = (world.order_store(), [one.clone(), plain.clone(), other.clone()]);
    let placing = tokio::spawn(async move {
        store.place_all(&group.iter().collect::<Vec<_>>(), TERMS).await.expect("placed")
    });

    is_held_up_at(&mut rival, &placing, "INSERT INTO orders").await;
    sqlx::raw_sql("COMMIT").execute(&mut rival).await.expect("committed");
    let placed = placing.await.expect("no panic");

    assert_eq!(shown(&placed, &[&one, &other]), ["0", "new", "1"]);
    assert_eq!((world.count_orders("PENDING").await, outbox(&world).await), (3, 1));
}

async fn a_group_waits_for_a_rival_that_binds_the_same_key(world: World) {
    let (winner, loser, plain) = (keyed("", "k", 1), keyed("", "k", 1), plain());
    let bind = format!(
        "INSERT INTO idempotency_keys VALUES ('', 'k', REPEAT(X'01', 32), UNHEX('{}'), NOW(3))",
        winner.order.order_id.uuid().simple()
    );
    let mut rival = rival(&world, &(insert_order(&winner.order) + &bind)).await;
    let (store, group) = (world.order_store(), [plain.clone(), loser.clone()]);
    let placing = tokio::spawn(async move {
        store.place_all(&group.iter().collect::<Vec<_>>(), TERMS).await.expect("placed")
    });

    is_held_up_at(&mut rival, &placing, "INSERT INTO idempotency_keys").await;
    sqlx::raw_sql("COMMIT").execute(&mut rival).await.expect("committed");
    let placed = placing.await.expect("no panic");

    assert_eq!(shown(&placed, &[&winner]), ["new", "0"]);
    assert_eq!((world.count_orders("PENDING").await, outbox(&world).await), (2, 1));
}

async fn a_corrupt_order_fails_no_other_order_of_the_group(world: World) {
    let (corrupt, plain) = (put(OrderId::generate(), 1), plain());
    place(&world, &[&corrupt], TERMS).await;
    world.tamper_with_orders("UPDATE orders SET `lines` = 'none'").await;

    let placed = place(&world, &[&corrupt, &plain], TERMS).await;

    assert_eq!(shown(&placed, &[]), ["other", "new"]);
}
