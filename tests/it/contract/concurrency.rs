//! Many orders at once on the same products: stock is never below zero, and no order is refused for
//! units that remain.

use std::sync::Arc;

use stocklock::domain::{
    Lines, OrderEvent, Reason,
    fold::{Decisions, Outcome},
};

use crate::harness::{
    World, decide, deliver, lines, on_every_stack, order_lines, place_all, random_orders,
};

/// Has several workers decide their shares of the orders side by side. Each worker has connections
/// and locks of its own.
async fn decide_side_by_side(
    world: &World,
    orders: Vec<Lines>,
    workers: usize,
    batch: usize,
) -> (Vec<OrderEvent>, Vec<Decisions>) {
    let orders = world.save(&orders).await;
    let tasks = orders.chunks(orders.len().div_ceil(workers)).map(|share| {
        let (worker, share) = (world.worker(&World::metrics()), share.to_vec());
        tokio::spawn(async move {
            let mut decisions = Vec::new();
            for batch in share.chunks(batch) {
                decisions.extend(decide(&worker, batch).await);
            }
            decisions
        })
    });
    let decisions = futures::future::join_all(tasks)
        .await
        .into_iter()
        .flat_map(|decided| decided.expect("decided"));
    let decisions = decisions.collect();
    (orders, decisions)
}

fn count(decisions: &[Decisions], wanted: impl Fn(&Outcome) -> bool) -> usize {
    decisions
        .iter()
        .flat_map(|decided| decided.outcomes.values())
        .filter(|outcome| wanted(outcome))
        .count()
}

on_every_stack!(
    hundreds_of_orders_on_one_product_sell_it_out_exactly,
    workers_side_by_side_sell_one_product_out_exactly,
    workers_that_want_the_same_products_in_different_orders_all_get_done,
    an_order_gets_all_its_lines_or_none,
);

async fn hundreds_of_orders_on_one_product_sell_it_out_exactly(world: World) {
    world.import(&[("hot", 150)]);
    let all = world.start("all").await;
    let bodies = vec![lines(&[("hot", 1)]); 400];

    assert_eq!(place_all(&all.http, &bodies, 64).await.len(), 400);
    world.settled().await;

    let counts = (world.count_orders("COMPLETED").await, world.count_orders("FAILED").await);
    assert_eq!((counts, world.available("hot")), ((150, 250), 0));
    world.verify();
    all.stop();
}

async fn workers_side_by_side_sell_one_product_out_exactly(world: World) {
    world.import(&[("hot", 100)]);
    let (_, decisions) =
        decide_side_by_side(&world, vec![order_lines(&[("hot", 1)]); 240], 6, 8).await;

    let completed = count(&decisions, |outcome| matches!(outcome, Outcome::Completed(_)));
    let refused =
        count(&decisions, |outcome| *outcome == Outcome::Failed(Reason::InsufficientStock));
    assert_eq!((completed, refused, world.available("hot")), (100, 140, 0));
    world.check_ledger(&world.stock_store(&World::metrics())).await;
}

async fn workers_that_want_the_same_products_in_different_orders_all_get_done(world: World) {
    let products: Vec<_> = (0..6).map(|n| format!("p{n}")).collect();
    world.import(&products.iter().map(|id| (id.as_str(), 90)).collect::<Vec<_>>());

    let (orders, decisions) =
        decide_side_by_side(&world, random_orders(7, 240, products.len()), 4, 6).await;

    assert_eq!(count(&decisions, |_| true), 240);
    let store = world.stock_store(&World::metrics());
    let left = store.snapshot().await.expect("a snapshot").available;

    // Stock only goes down here: what could be served at the end could have been served before.
    let is_refused = |order: &&OrderEvent| {
        decisions
            .iter()
            .any(|d| matches!(d.outcomes.get(&order.order_id), Some(Outcome::Failed(_))))
    };
    let refused: Vec<_> = orders.iter().filter(is_refused).collect();
    assert!(!refused.is_empty());
    for order in refused {
        let demand = order.lines.demand();
        assert!(
            demand.iter().any(|(id, quantity)| left[id] < quantity),
            "{demand:?} was refused, {left:?} are left"
        );
    }

    world.check_ledger(&store).await;
}

async fn an_order_gets_all_its_lines_or_none(world: World) {
    world.import(&[("few", 5), ("none", 0)]);
    let worker = world.worker(&World::metrics());
    let wanted = [
        order_lines(&[("few", 1), ("none", 1)]),
        // A repeated product is one demand: each line alone could be served.
        order_lines(&[("few", 3), ("few", 3)]),
        order_lines(&[("few", 1), ("nowhere", 1)]),
        order_lines(&[("few", 2), ("few", 3)]),
    ];
    let events = world.save(&wanted).await;

    assert_eq!(deliver(&worker, &events).await, 4);

    let outcomes = worker
        .store
        .find_outcomes(&events.iter().map(|e| e.order_id).collect::<Vec<_>>())
        .await
        .unwrap();
    let of = |index: usize| outcomes[&events[index].order_id].clone().unwrap();
    assert_eq!([of(0), of(1)], [(); 2].map(|()| Outcome::Failed(Reason::InsufficientStock)));
    assert_eq!(
        [of(2), of(3)],
        [Outcome::Failed(Reason::UnknownProduct), Outcome::Completed(wanted[3].demand())]
    );
    assert_eq!((world.available("few"), world.available("none")), (0, 0));
}

/// Few connections to the server, and many tasks that wait for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_that_many_tasks_share_sells_out_exactly() {
    use crate::harness::{Database, Strategy};
    use stocklock::store::Guard;

    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("hot", 60)]);
    let store = Arc::new(world.stock_store(&World::metrics()));
    let events = world.save(&vec![order_lines(&[("hot", 1)]); 100]).await;
    let tasks = events.into_iter().enumerate().map(|(index, event)| {
        let (store, guard) = (Arc::clone(&store), [Guard::RowLocks, Guard::Versions][index % 2]);
        tokio::spawn(async move {
            loop {
                match store
                    .decide(std::slice::from_ref(&event), guard, chrono::Utc::now(), || true)
                    .await
                {
                    Ok(decisions) => return decisions,
                    Err(error) => eprintln!("repeated: {error}"),
                }
            }
        })
    });
    let decisions: Vec<_> =
        futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    let completed = count(&decisions, |outcome| matches!(outcome, Outcome::Completed(_)));
    assert_eq!((completed, world.available("hot")), (60, 0));
    world.check_ledger(&store).await;
}
