use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

use crate::{domain::ProductId, store::StockStore};

/// Products that are remembered; a product is never deleted, so what is remembered stays true.
const REMEMBERED: usize = 200_000;
const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the stock store is left alone after it failed to answer.
const PAUSE_MS: u64 = 1_000;

/// Which products exist.
#[derive(Clone)]
pub struct Catalog {
    store: StockStore,
    known: Arc<Cache<ProductId, ()>>,
    begun: Instant,
    /// Milliseconds since `begun` until which nothing is looked up.
    paused_until: Arc<AtomicU64>,
}

impl Catalog {
    pub fn new(store: StockStore) -> Self {
        let known = Arc::new(Cache::new(REMEMBERED));
        Self { store, known, begun: Instant::now(), paused_until: Arc::default() }
    }

    /// Those of the products that do not exist. With the stock store away, none: the worker then decides.
    pub async fn unknown(&self, products: &BTreeSet<ProductId>) -> BTreeSet<ProductId> {
        let missed: Vec<_> = products.iter().filter(|id| self.known.get(*id).is_none()).cloned().collect();
        if missed.is_empty() || self.now() < self.paused_until.load(Ordering::Relaxed) {
            return BTreeSet::new();
        }
        let (store, wanted) = (self.store.clone(), missed.clone());
        // A task of its own, so that the timeout ends the waiting and not the query.
        let looking_up = tokio::spawn(async move { store.find_products(&wanted).await });
        match tokio::time::timeout(LOOK_UP_TIMEOUT, looking_up).await {
            Ok(Ok(Ok(found))) => {
                let mut unknown: BTreeSet<_> = missed.into_iter().collect();
                for product in found {
                    unknown.remove(&product.product_id);
                    self.known.insert(product.product_id, ());
                }
                unknown
            }
            failed => {
                self.paused_until.store(self.now() + PAUSE_MS, Ordering::Relaxed);
                let error = match failed {
                    Ok(Ok(Err(error))) => error.to_string(),
                    _ => "no answer in time".to_owned(),
                };
                tracing::warn!(error, "products not looked up, orders are taken unchecked");
                BTreeSet::new()
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
