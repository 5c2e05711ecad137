//! Traces of which a part is off, or not as expected.

use reqwest::Method;

use crate::{
    harness::{Api, Collector, Database, Proxy, Span, Strategy, World, wait_until},
    traces::{STATE, TRACE_ID, is_child_of, place_sampled},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_traces_passes_a_sampled_context_on() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let ingest = collector.traced(&world, "ingest", &[]).await;
    let _worker = world.start("worker").await;
    let _compensator = collector.traced(&world, "compensator", &[]).await;

    place_sampled(&Api::of(&ingest)).await;
    // The spans of ingest, and that of the compensator.
    let trace = collector.trace(TRACE_ID, 4).await;

    let topics = &world.config.topics;
    let applied = trace.only(&format!("apply {}", topics.order_status));
    assert!(is_child_of(applied, trace.only(&format!("send {}", topics.orders))));
    assert_eq!(applied.text("trace_state"), STATE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_certificate_turns_traces_off() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:9"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];

    let role = world.start_with("compensator", &settings).await;

    let log = role.log();
    assert!(log.contains("traces cannot be started, they are off"), "{log}");
    assert!(log.contains("OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere.pem"), "{log}");
    assert!(log.contains("OTEL_EXPORTER_OTLP_COMPRESSION: not supported"), "{log}");
    role.stop();
}

/// Clients choose what they send, and names of spans have to be few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_span_has_no_method_or_path_of_a_client() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let collector = Collector::start();
    let ingest = collector.traced(&world, "ingest", &[]).await;
    let api = Api::of(&ingest);
    let brew = Method::from_bytes(b"BREW").expect("a method");

    api.send(brew, "/coffee", &[], "").await.is(404);
    api.get("/coffee").await.is(404);
    ingest.stop();

    let spans = collector.spans();
    let named = |name| {
        let found = spans.iter().find(|span: &&Span| span.text("name") == name);
        found.unwrap_or_else(|| panic!("no {name} in {spans:?}"))
    };
    let (other, known) = (named("HTTP"), named("GET"));
    assert_eq!(other.attribute("http.request.method"), "_OTHER");
    assert_eq!(other.attribute("http.request.method_original"), "BREW");
    assert_eq!(known.attribute("http.request.method"), "GET");
    assert_eq!(known.attribute("url.path"), "/coffee");
    assert!(known.attribute("http.route").is_null(), "{known:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_fails_has_spans_with_the_error() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 9)]);
    let collector = Collector::start();
    let ingest = collector.traced(&world, "ingest", &[]).await;
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let settings = [("STOCKLOCK__STOCK_STORE__URL", url.as_str())];
    let worker = collector.traced(&world, "worker", &settings).await;

    store.hang();
    place_sampled(&Api::of(&ingest)).await;
    worker.complains("deducting: ").await;
    store.mend();

    let failed = async || {
        let mut spans = collector.spans();
        spans.retain(Span::is_failed);
        spans
    };
    wait_until("failed spans arrive", async || !failed().await.is_empty()).await;
    for span in failed().await {
        assert_eq!(span.attribute("error.type"), "_OTHER", "{span:?}");
        assert!(span.text("error").contains("no answer"), "{span:?}");
    }
}
