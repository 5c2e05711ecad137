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

use crate::{domain::ProductId, store::StockStore};

/// Products that are remembered; a product is never deleted, so what is remembered stays true.
const REMEMBERED: usize = 200_000;
/// Unknown products that are remembered, and for how long: a product may be imported any moment.
const REMEMBERED_MISSES: usize = 10_000;
const MISS_STANDS: Duration = Duration::from_secs(1);
/// How long a request waits for a look-up, and how long a look-up may take.
const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(500);
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the stock store is left alone after it failed to answer.
const PAUSE_MS: u64 = 1_000;
/// Requests that wait for a look-up; of more the products stay unchecked.
const QUEUE: usize = 1_000;
/// Requests that share a query.
const SHARE: usize = 50;

/// Which products exist. One query at a time looks up what all requests lack.
#[derive(Clone)]
pub(crate) struct Catalog {
    known: Arc<Cache<ProductId, ()>>,
    missed: Arc<Cache<ProductId, Instant>>,
    queue: mpsc::Sender<LookUp>,
    begun: Instant,
    /// Milliseconds since `begun` until which nothing is looked up.
    paused_until: Arc<AtomicU64>,
}

struct LookUp {
    wanted: Vec<ProductId>,
    /// Those that exist.
    found: oneshot::Sender<Result<Arc<HashSet<ProductId>>, String>>,
}

impl Catalog {
    /// Starts the task that looks up; it ends with the last clone.
    pub(crate) fn new(store: StockStore) -> Self {
        let (queue, wanted) = mpsc::channel(QUEUE);
        tokio::spawn(look_up(store, wanted));
        Self {
            known: Arc::new(Cache::new(REMEMBERED)),
            missed: Arc::new(Cache::new(REMEMBERED_MISSES)),
            queue,
            begun: Instant::now(),
            paused_until: Arc::default(),
        }
    }

    /// Those of the products that do not exist. None while the stock store is away: then the worker
    /// decides.
    pub(crate) async fn unknown(&self, products: &BTreeSet<ProductId>) -> BTreeSet<ProductId> {
        let (mut unknown, mut wanted) = (BTreeSet::new(), Vec::new());
        for id in products.iter().filter(|id| self.known.get(*id).is_none()) {
            if self.missed.get(id).is_some_and(|missed: Instant| missed.elapsed() < MISS_STANDS) {
                unknown.insert(id.clone());
            } else {
                wanted.push(id.clone());
            }
        }
        if wanted.is_empty() || self.now() < self.paused_until.load(Ordering::Relaxed) {
            return unknown;
        }
        match self.find(wanted.clone()).await {
            Ok(found) => {
                for id in wanted {
                    if found.contains(&id) {
                        self.known.insert(id, ());
                    } else {
                        self.missed.insert(id.clone(), Instant::now());
                        unknown.insert(id);
                    }
                }
            }
            Err(error) => {
                self.paused_until.store(self.now() + PAUSE_MS, Ordering::Relaxed);
                tracing::warn!(error, "products not looked up, orders are taken unchecked");
            }
        }
        unknown
    }

    async fn find(&self, wanted: Vec<ProductId>) -> Result<Arc<HashSet<ProductId>>, String> {
        let (sender, found) = oneshot::channel();
        self.queue
            .try_send(LookUp { wanted, found: sender })
            .map_err(|_| "too many requests wait".to_owned())?;
        match timeout(LOOK_UP_TIMEOUT, found).await {
            Ok(Ok(found)) => found,
            _ => Err("no answer in time".to_owned()),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn look_up(store: StockStore, mut queue: mpsc::Receiver<LookUp>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, SHARE).await > 0 {
        // Requests that waited too long are gone.
        waiting.retain(|look_up| !look_up.found.is_closed());
        let wanted: BTreeSet<_> =
            waiting.iter().flat_map(|look_up| &look_up.wanted).cloned().collect();
        if wanted.is_empty() {
            continue;
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        let found = match timeout(QUERY_TIMEOUT, store.find_products(&wanted)).await {
            Ok(Ok(found)) => Ok(Arc::new(found.into_iter().map(|product| product.id).collect())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        for look_up in waiting.drain(..) {
            let _gone = look_up.found.send(found.clone());
        }
    }
}
