//! A consumer is replaced if its client delivers nothing although its broker has messages.

use std::time::{Duration, Instant};

use crate::harness::{BrokerProxy, Database, Strategy, World, order_lines, stays};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_no_longer_fetches_is_replaced_and_loses_nothing() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 1000)]);
    let proxy = BrokerProxy::before(&world.config.kafka.brokers).await;
    let settings =
        [("STOCKLOCK__KAFKA__BROKERS", &*proxy.address), ("STOCKLOCK__KAFKA__STALL_TIMEOUT", "8s")];
    let (worker, _compensator) =
        (world.start_with("worker", &settings).await, world.start("compensator").await);
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 50]).await).await;
    world.settled().await;
    // Longer than the stall timeout: a partition without messages is no fault.
    stays(Duration::from_secs(12), "the consumer is not replaced", async || {
        worker.count("stocklock_consumer_recreations_total", "").await == 0
    })
    .await;

    proxy.swallow_fetches();
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 100]).await).await;
    let begun = Instant::now();
    world.settled().await;
    assert!(proxy.swallowed() > 0, "the fault never fired");
    assert!(begun.elapsed() > Duration::from_secs(3), "its fetches were answered all the same");
    assert_eq!(
        worker.count("stocklock_consumer_recreations_total", topic).await,
        1,
        "{}",
        worker.log()
    );
    assert!(worker.log().contains("replacing the consumer"), "{}", worker.log());
    worker.ready().await;
    world.caught_up(group, topic).await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (150, 850));
    assert_eq!(world.count_messages(&world.config.topics.orders_dlq), 0);
    world.verify();
    worker.stop();
}
