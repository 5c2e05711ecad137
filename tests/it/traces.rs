//! Traces as a collector of OpenTelemetry receives them.

use std::time::{Duration, Instant};

use rdkafka::message::OwnedMessage;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{
        Api, Collector, Database, Program, Proxy, Role, Span, Strategy, Trace, World, free_address,
        header, http_client, lines, on_each_database, wait_until,
    },
    intake::{taking_orders, topic},
};

pub(crate) const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";
pub(crate) const STATE: &str = "vendor=1,other=2";
/// The spans of an order from the request to the compensator.
const SPANS_OF_AN_ORDER: usize = 6;

fn traceparent(is_sampled: bool) -> String {
    format!("00-{TRACE_ID}-{PARENT_ID}-{:02x}", u8::from(is_sampled))
}

async fn place(api: &Api, headers: &[(&str, &str)]) -> String {
    api.post(&lines(&[("a", 1)]).to_string(), headers).await.is(202).order_id().to_owned()
}

pub(crate) async fn place_sampled(api: &Api) -> String {
    // One list may come as several headers.
    let (first, second) = STATE.split_once(',').expect("a list");
    let parent = traceparent(true);
    place(api, &[("traceparent", &parent), ("tracestate", first), ("tracestate", second)]).await
}

/// What the names of the world's topics begin with.
fn prefix(world: &World) -> &str {
    world.config.topics.orders.strip_suffix("orders").expect("a prefix")
}

/// The messages of a topic that name a trace.
fn traced_messages(world: &World, topic: &str) -> Vec<OwnedMessage> {
    let mut messages = world.read_topic(topic);
    messages.retain(|message| header(message, "traceparent").is_some());
    messages
}

pub(crate) fn is_child_of(child: &Span, parent: &Span) -> bool {
    child.text("parent_span_id") == parent.text("span_id")
}

/// The spans of batches of a topic.
fn batches(collector: &Collector, topic: &str) -> Vec<Span> {
    let name = format!("process {topic}");
    let mut spans = collector.spans();
    spans.retain(|span| span.text("name") == name);
    spans
}

on_each_database!(
    an_order_has_one_trace_through_all_roles,
    an_order_from_kafka_is_in_the_trace_of_its_producer,
    an_order_keeps_its_trace_if_processes_die,
);

async fn an_order_has_one_trace_through_all_roles(world: World) {
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let secret = [("OTEL_EXPORTER_OTLP_HEADERS", "x-test=secret")];
    let ingest = collector.traced(&world, "ingest", &secret).await;
    let _worker = collector.traced(&world, "worker", &[]).await;
    let _compensator = collector.traced(&world, "compensator", &[]).await;

    let order_id = place_sampled(&Api::of(&ingest)).await;
    let trace = collector.trace(TRACE_ID, SPANS_OF_AN_ORDER).await;

    let tree = trace.tree(prefix(&world));
    let document = include_str!("../../docs/tracing.md");
    assert!(document.contains(&tree), "docs/tracing.md does not show:\n{tree}");
    check_request(&world, &trace);
    for span in trace.spans() {
        assert_eq!(span.text("trace_state"), STATE, "{span:?}");
        let is_of_order = span.attribute("stocklock.order.id") == order_id.as_str();
        assert!(is_of_order || span.text("kind") == "SERVER", "{span:?}");
    }
    check_batch(&world, &collector, &trace).await;
    check_headers(&world, &trace);
}

/// The request is below the caller's span, and its spans carry what the environment says.
fn check_request(world: &World, trace: &Trace) {
    let request = trace.only("POST /v1/orders");
    assert_eq!(request.text("parent_span_id"), PARENT_ID);
    assert_eq!(request.text("header"), "secret");
    assert_eq!(request.attribute("http.request.method"), "POST");
    assert_eq!(request.attribute("http.route"), "/v1/orders");
    let sent = trace.only(&format!("send {}", world.config.topics.orders));
    assert!(is_child_of(sent, request));
    assert_eq!(sent.attribute("messaging.system"), "kafka");
    assert_eq!(sent.attribute("messaging.operation.type"), "send");
}

/// The batch of the worker is a trace of its own, which has a link to the order and back.
async fn check_batch(world: &World, collector: &Collector, trace: &Trace) {
    let topics = &world.config.topics;
    wait_until("the batch has ended", async || !batches(collector, &topics.orders).is_empty())
        .await;
    let [batch] = &batches(collector, &topics.orders)[..] else { panic!("one batch") };
    let stages = collector.trace(batch.text("trace_id"), 5).await;
    for name in ["lock", "stock_store decide", "unlock", &format!("send {}", topics.order_status)] {
        assert!(is_child_of(stages.only(name), batch), "{name}");
    }
    let sent = trace.only(&format!("send {}", topics.orders));
    let decided = trace.only(&format!("decide {}", topics.orders));
    assert_eq!(batch.links(), [sent.text("span_id")]);
    assert_eq!(decided.links(), [batch.text("span_id")]);
    assert_eq!(batch.attribute("messaging.batch.message_count"), 1);
    let group = world.config.kafka.group_id.as_str();
    assert_eq!(batch.attribute("messaging.consumer.group.name"), group);
}

/// Each message names the span that sent it.
fn check_headers(world: &World, trace: &Trace) {
    let topics = &world.config.topics;
    for topic in [&topics.orders, &topics.order_status] {
        let [message] = &traced_messages(world, topic)[..] else { panic!("one message") };
        let sent = trace.only(&format!("send {topic}"));
        let parent = format!("00-{TRACE_ID}-{}-01", sent.text("span_id"));
        assert_eq!(header(message, "traceparent"), Some(parent));
        assert_eq!(header(message, "tracestate").as_deref(), Some(STATE));
    }
}

async fn an_order_from_kafka_is_in_the_trace_of_its_producer(world: World) {
    let world = taking_orders(world);
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let _all = collector.traced(&world, "all", &off).await;
    let record = |headers: Value| {
        let record = json!({"format": "json", "key": null, "request": lines(&[("a", 1)])});
        let mut record = record.as_object().expect("an object").clone();
        record.insert("headers".to_owned(), headers);
        Value::from(record).to_string()
    };
    let sampled = json!({"traceparent": traceparent(true), "tracestate": STATE});
    let unsampled = json!({"traceparent": traceparent(false)});
    let records = [record(json!({})), record(sampled), record(unsampled)].join("\n");

    let requests = &topic(&world).requests;
    let client = Program::python("tests/clients/order_requests.py");
    client.run(&[&world.config.kafka.brokers, requests], &records);
    let trace = collector.trace(TRACE_ID, SPANS_OF_AN_ORDER).await;

    let taken = trace.only(&format!("process {requests}"));
    assert_eq!(taken.text("parent_span_id"), PARENT_ID);
    assert_eq!(taken.text("kind"), "CONSUMER");
    assert!(is_child_of(trace.only("order_store place"), taken));
    let applied = trace.only(&format!("apply {}", world.config.topics.order_status));
    assert_eq!(applied.attribute("stocklock.order.status"), "COMPLETED");
    wait_until("all orders are completed", async || world.count_orders("COMPLETED").await == 3)
        .await;
    assert_eq!(traced_messages(&world, &world.config.topics.orders).len(), 1);
    assert_eq!(traced_messages(&world, &world.config.topics.order_status).len(), 1);
}

async fn an_order_keeps_its_trace_if_processes_die(world: World) {
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let topics = &world.config.topics;
    // Its spans wait, and die with it.
    let dying = [("STOCKLOCK_CRASH_AT", "relay.producing"), ("OTEL_BSP_SCHEDULE_DELAY", "60000")];
    let ingest = collector.traced(&world, "ingest", &dying).await;
    ingest.ready().await;
    let request = http_client().post(format!("{}/v1/orders", ingest.http));
    let request = request.header("traceparent", traceparent(true)).header("tracestate", STATE);
    // The process may die before it answers.
    let _answer = request.body(lines(&[("a", 1)]).to_string()).send().await;
    ingest.crashed_at("relay.producing").await;
    assert_eq!(world.count_messages(&topics.orders), 0);

    let _ingest = collector.traced(&world, "ingest", &[]).await;
    wait_until("the order is published", async || world.count_messages(&topics.orders) == 1).await;
    let dying = [("STOCKLOCK_CRASH_AT", "deduct.committed")];
    let worker = collector.traced(&world, "worker", &dying).await;
    worker.crashed_at("deduct.committed").await;
    let _worker = collector.traced(&world, "worker", &[]).await;
    let _compensator = collector.traced(&world, "compensator", &[]).await;
    wait_until("the order is completed", async || world.count_orders("COMPLETED").await == 1).await;

    let trace = collector.trace(TRACE_ID, SPANS_OF_AN_ORDER - 2).await;
    let [published] = &traced_messages(&world, &topics.orders)[..] else { panic!("one message") };
    let sent = trace.only(&format!("send {}", topics.orders));
    let parent = format!("00-{TRACE_ID}-{}-01", sent.text("span_id"));
    assert_eq!(header(published, "traceparent"), Some(parent));
    assert_eq!(sent.text("trace_state"), STATE);
    let decided = trace.only(&format!("decide {}", topics.orders));
    assert!(is_child_of(decided, sent));
}

/// A worker that decides five orders in one batch, of which these are sampled. Returns the span of
/// the batch.
async fn batch_of_five(world: &World, collector: &Collector, sampled: &[bool]) -> Span {
    world.import(&[("a", 9)]);
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let ingest = collector.traced(world, "ingest", &off).await;
    let api = Api::of(&ingest);
    for is_sampled in sampled {
        place(&api, &[("traceparent", &traceparent(*is_sampled))]).await;
    }
    let topics = &world.config.topics;
    wait_until("all are published", async || world.count_messages(&topics.orders) == sampled.len())
        .await;
    let two_links = [("OTEL_SPAN_LINK_COUNT_LIMIT", "2"), ("STOCKLOCK__WORKER__LINGER", "1s")];
    let _worker = collector.traced(world, "worker", &two_links).await;
    wait_until("a batch has ended", async || !batches(collector, &topics.orders).is_empty()).await;
    batches(collector, &topics.orders).swap_remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_links_to_its_sampled_orders_alone() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.configure(&[("TOPICS__ORDERS", "{name}.one"), ("TOPICS__PARTITIONS", "1")]);
    let collector = Collector::start();

    let batch = batch_of_five(&world, &collector, &[false, true, false, true, false]).await;

    assert_eq!(batch.attribute("messaging.batch.message_count"), 5);
    assert_eq!(batch.attribute("stocklock.batch.traced_orders"), 2);
    let trace = collector.trace(TRACE_ID, 2 * (SPANS_OF_AN_ORDER - 1)).await;
    let sent_by = format!("send {}", world.config.topics.orders);
    let sent = trace.spans().iter().filter(|span| span.text("name") == sent_by);
    let mut sent: Vec<_> = sent.map(|span| span.text("span_id")).collect();
    let mut links = batch.links();
    sent.sort_unstable();
    links.sort_unstable();
    assert_eq!((links, batch.dropped_links()), (sent, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_above_the_limit_are_counted_as_dropped() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.configure(&[("TOPICS__ORDERS", "{name}.one"), ("TOPICS__PARTITIONS", "1")]);
    let collector = Collector::start();

    let batch = batch_of_five(&world, &collector, &[true; 5]).await;

    assert_eq!((batch.links().len(), batch.dropped_links()), (2, 3));
    assert_eq!(batch.attribute("stocklock.batch.traced_orders"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsampled_order_has_no_span_and_no_header() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let all = collector.traced(&world, "all", &off).await;
    let api = Api::of(&all);

    for headers in [&[][..], &[("traceparent", &*traceparent(false))], &[("traceparent", "x")]] {
        let id = place(&api, headers).await;
        api.becomes(&id, "COMPLETED").await;
    }
    all.stop();

    assert_eq!(collector.spans().len(), 0);
    for topic in [&world.config.topics.orders, &world.config.topics.order_status] {
        // A slow machine may publish an order again.
        assert!(world.count_messages(topic) >= 3);
        assert_eq!(traced_messages(&world, topic).len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampler_takes_its_share_of_the_requests() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let collector = Collector::start();
    let half = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")];
    let ingest = collector.traced(&world, "ingest", &half).await;
    let api = Api::of(&ingest);

    for _ in 0..100 {
        api.get("/v1/orders/none").await.is(404);
    }
    ingest.stop();

    let spans = collector.spans();
    assert!((20..=80).contains(&spans.len()), "{} of 100", spans.len());
    assert!(spans.iter().all(|span| span.text("name") == "GET /v1/orders/{id}"), "{spans:?}");
}

/// A role whose collector is behind this URL, and whose queue is small.
async fn with_small_queue(world: &World, url: &str) -> Role {
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    world.start_with("all", &settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_while_the_collector_is_away() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let all = with_small_queue(&world, &format!("http://{}", free_address())).await;
    let api = Api::of(&all);

    for _ in 0..20 {
        api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    }

    all.shows("stocklock_trace_spans_total", "dropped", |dropped| dropped > 0.0).await;
    all.shows("stocklock_trace_spans_total", "failed", |failed| failed > 0.0).await;
    assert_eq!(all.count("stocklock_trace_spans_total", "exported").await, 0);
    assert_eq!(all.log().matches("spans not exported").count(), 1, "{}", all.log());
    all.terminate();
    all.ended(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_does_not_delay_the_stop() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100)]);
    let collector = Collector::start();
    let (proxy, url) = Proxy::before(&collector.url).await;
    let all = with_small_queue(&world, &url).await;
    let api = Api::of(&all);
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    all.shows("stocklock_trace_spans_total", "exported", |exported| exported > 0.0).await;

    proxy.hang();
    for _ in 0..3 {
        api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    }
    let begun = Instant::now();
    all.terminate();
    let log = all.ended(0).await;

    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(log.contains("spans not exported before the stop"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_has_one_trace_down_to_its_release() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let all = collector.traced(&world, "all", &off).await;
    let api = Api::of(&all);
    let id = place(&api, &[]).await;
    api.becomes(&id, "COMPLETED").await;

    let (path, parent) = (format!("/v1/orders/{id}/cancel"), traceparent(true));
    api.send(Method::POST, &path, &[("traceparent", &parent)], "").await.is(200);
    let trace = collector.trace(TRACE_ID, 7).await;

    let request = trace.only("POST /v1/orders/{id}/cancel");
    let topics = &world.config.topics;
    let released = trace.only(&format!("send {}", topics.orders));
    assert!(is_child_of(released, request));
    let decided = trace.only(&format!("decide {}", topics.orders));
    assert_eq!(decided.attribute("stocklock.order.status"), "RELEASED");
    assert!(is_child_of(decided, released));
    let applied = format!("apply {}", topics.order_status);
    let applied = trace.spans().iter().filter(|span| span.text("name") == applied);
    let mut statuses: Vec<_> =
        applied.filter_map(|span| span.attribute("stocklock.order.status").as_str()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, ["CANCELLED", "RELEASED"]);
}
