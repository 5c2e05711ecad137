//! Which products exist, so that an order of an unknown product is rejected at once.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    domain::ProductId,
    error_text,
    store::{StockStore, StoreError},
};

/// The most products that are remembered as existing. A product is never deleted, so what is
/// remembered stays true.
const MAX_KNOWN_PRODUCTS: usize = 200_000;
/// The most products that are remembered as unknown, and for how long: a product may be imported at
/// any moment.
const MAX_UNKNOWN_PRODUCTS: usize = 10_000;
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// How long a request waits for its look-up.
const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long nothing is looked up after a look-up has failed.
const PAUSE_MS: u64 = 1_000;
/// The most requests that wait for a look-up. The products of a request above it stay unchecked.
const MAX_QUEUED_LOOK_UPS: usize = 1_000;
/// The most requests that share a query.
const MAX_LOOK_UPS_PER_QUERY: usize = 50;

/// Finds out which products exist. One query at a time looks up the products that all requests
/// lack. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Catalog {
    known: Arc<Cache<ProductId, ()>>,
    /// When a query found that the product does not exist.
    unknown: Arc<Cache<ProductId, Instant>>,
    queue: mpsc::Sender<LookUp>,
    begun_at: Instant,
    /// Nothing is looked up before this time, in ms since `begun_at`.
    paused_until_ms: Arc<AtomicU64>,
}

/// A request's question which of its products exist.
struct LookUp {
    wanted: Vec<ProductId>,
    found: oneshot::Sender<Result<Arc<HashSet<ProductId>>, LookUpError>>,
}

/// Why products were not looked up.
#[derive(Debug, Clone, thiserror::Error)]
enum LookUpError {
    #[error("{MAX_QUEUED_LOOK_UPS} requests wait for a look-up already")]
    QueueFull,
    #[error("the stock store did not answer in time")]
    TimedOut,
    #[error("the stock store cannot be asked")]
    Store(#[source] Arc<StoreError>),
}

impl Catalog {
    /// Starts the task that looks up products. It ends once the last clone is dropped.
    pub(crate) fn new(store: StockStore) -> Self {
        let (queue, wanted) = mpsc::channel(MAX_QUEUED_LOOK_UPS);
        tokio::spawn(run_queries(store, wanted));
        Self {
            known: Arc::new(Cache::new(MAX_KNOWN_PRODUCTS)),
            unknown: Arc::new(Cache::new(MAX_UNKNOWN_PRODUCTS)),
            queue,
            begun_at: Instant::now(),
            paused_until_ms: Arc::default(),
        }
    }

    /// The products among `products` that do not exist.
    ///
    /// Products that cannot be looked up count as existing: the worker decides about their orders.
    /// After a failure, nothing is looked up for 1 s.
    pub(super) async fn find_unknown(&self, products: &BTreeSet<ProductId>) -> BTreeSet<ProductId> {
        let (mut unknown, mut wanted) = (BTreeSet::new(), Vec::new());
        for id in products.iter().filter(|id| self.known.get(*id).is_none()) {
            if self.unknown.get(id).is_some_and(|since: Instant| since.elapsed() < UNKNOWN_FOR) {
                unknown.insert(id.clone());
            } else {
                wanted.push(id.clone());
            }
        }
        if wanted.is_empty() || self.now_ms() < self.paused_until_ms.load(Ordering::Relaxed) {
            return unknown;
        }
        match self.look_up(wanted.clone()).await {
            Ok(found) => {
                for id in wanted {
                    if found.contains(&id) {
                        self.known.insert(id, ());
                    } else {
                        self.unknown.insert(id.clone(), Instant::now());
                        unknown.insert(id);
                    }
                }
            }
            Err(error) => {
                self.paused_until_ms.store(self.now_ms() + PAUSE_MS, Ordering::Relaxed);
                let error = error_text::with_causes(&error);
                tracing::warn!(error, "products not looked up, orders are accepted unchecked");
            }
        }
        unknown
    }

    /// Returns the products of `wanted` that exist. Fails with every variant of [`LookUpError`].
    async fn look_up(
        &self,
        wanted: Vec<ProductId>,
    ) -> Result<Arc<HashSet<ProductId>>, LookUpError> {
        let (sender, found) = oneshot::channel();
        self.queue
            .try_send(LookUp { wanted, found: sender })
            .map_err(|_| LookUpError::QueueFull)?;
        match timeout(LOOK_UP_TIMEOUT, found).await {
            Ok(Ok(found)) => found,
            _ => Err(LookUpError::TimedOut),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Runs one query after the other, each for all requests that wait.
async fn run_queries(store: StockStore, mut queue: mpsc::Receiver<LookUp>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, MAX_LOOK_UPS_PER_QUERY).await > 0 {
        // Requests whose wait has timed out need no answer.
        waiting.retain(|look_up| !look_up.found.is_closed());
        let wanted: BTreeSet<_> =
            waiting.iter().flat_map(|look_up| &look_up.wanted).cloned().collect();
        if wanted.is_empty() {
            continue;
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        let found = match timeout(QUERY_TIMEOUT, store.find_products(&wanted)).await {
            Ok(Ok(found)) => Ok(Arc::new(found.into_iter().map(|product| product.id).collect())),
            Ok(Err(error)) => Err(LookUpError::Store(Arc::new(error))),
            Err(_) => Err(LookUpError::TimedOut),
        };
        for look_up in waiting.drain(..) {
            let _request_gone = look_up.found.send(found.clone());
        }
    }
}
