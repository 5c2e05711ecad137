//! Publishes the levels of products: those that are named, or all.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Answer, Output, print::complaint, process::SchemaRegistry};
use crate::{
    config::Config, domain::ProductId, kafka::Producer, levels::Levels, store::StockStore,
    telemetry::Metrics, wire::StockLevelCodec,
};

/// Products of one page.
const PAGE_PRODUCTS: u32 = 4_000;

/// Publishes levels page by page. Each page gets its notes first, so that workers finish it if this
/// process dies.
///
/// Fails if `topics.stock_levels` is not set, or if the store, the brokers or the
/// schema registry are unavailable.
pub(super) async fn run(
    store: StockStore,
    config: &Config,
    metrics: Metrics,
    ids: Vec<ProductId>,
    output: Output,
) -> anyhow::Result<Answer> {
    let Some(topic) = &config.topics.stock_levels else {
        bail!("topics.stock_levels is not set, so there is no topic of levels");
    };
    let registry = SchemaRegistry::open_for_command(config).await?;
    let schemas = registry.as_ref().map(|registry| &registry.schemas);
    let levels = Levels {
        store,
        producer: Producer::new(&config.kafka).context("cannot open the Kafka client")?,
        topic: topic.as_str().into(),
        codec: Arc::new(StockLevelCodec::new()?.on(&config.topics, schemas)),
        metrics,
    };
    let wanted: BTreeSet<_> = ids.into_iter().collect();
    let (published, answer) = if wanted.is_empty() {
        (publish_all(&levels).await?, Answer::Done)
    } else {
        publish_some(&levels, wanted, output).await?
    };
    match output {
        Output::Json => println!("{}", json!({"published": published, "topic": topic})),
        Output::Text => println!("{published} levels published to {topic}"),
    }
    Ok(answer)
}

async fn publish_some(
    levels: &Levels,
    wanted: BTreeSet<ProductId>,
    output: Output,
) -> anyhow::Result<(usize, Answer)> {
    let wanted: Vec<_> = wanted.into_iter().collect();
    let found = levels.store.find_products(&wanted).await?;
    let found: BTreeSet<_> = found.into_iter().map(|product| product.id).collect();
    for id in wanted.iter().filter(|id| !found.contains(*id)) {
        complaint(&format!("no product {id}"), output);
    }
    let answer = if found.len() == wanted.len() { Answer::Done } else { Answer::No };
    let found: Vec<_> = found.into_iter().collect();
    publish(levels, &found).await?;
    Ok((found.len(), answer))
}

async fn publish_all(levels: &Levels) -> anyhow::Result<usize> {
    let products = levels.store.count_products().await?;
    let style = ProgressStyle::with_template("publishing {bar:40} {pos}/{len} levels, {per_sec}")?;
    let progress = ProgressBar::new(products.unsigned_abs()).with_style(style);
    let (mut published, mut after) = (0, None);
    loop {
        let page = levels.store.list_products(after.as_ref(), PAGE_PRODUCTS).await?;
        if page.is_empty() {
            progress.finish_and_clear();
            return Ok(published);
        }
        let page: Vec<_> = page.into_iter().map(|product| product.id).collect();
        publish(levels, &page).await.with_context(|| {
            format!("{published} levels were published; it is safe to repeat the command")
        })?;
        published += page.len();
        progress.inc(page.len() as u64);
        after = page.into_iter().next_back();
    }
}

async fn publish(levels: &Levels, products: &[ProductId]) -> anyhow::Result<()> {
    levels.store.note_levels(products).await?;
    // A worker may have published some of them already, and deleted their notes.
    let notes = levels.store.read_level_notes(products).await?;
    levels.publish_noted(&notes).await?;
    Ok(())
}
