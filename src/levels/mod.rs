//! The levels of products on the topic `stock-levels`: available units and version.
//!
//! Compaction keeps the last record of a product, which need not be the record with the highest
//! version, since several processes write. Three rules make it so:
//!
//! 1. After the acknowledgement a writer reads the product again. It publishes again if the version
//!    is higher. So the writer of the last record has seen no later version after that record.
//! 2. A worker stores no offset before that. A batch that is delivered again publishes the levels
//!    of all its products.
//! 3. Each other writer of stock notes the product in its transaction (`level_notes`). A worker
//!    publishes the noted products. It reads the note, then the product, and deletes that very note
//!    after rule 1. A newer note stays.
//!
//! `tests/model_levels.rs` checks the rules. `docs/topics.md` says where they end.

mod notes;

use std::{collections::HashMap, sync::Arc};

use chrono::Utc;
pub use notes::NotePublisher;

use crate::{
    crash_point::crash_point,
    domain::{ProductId, StockLevel},
    kafka::{Message, ProduceError, Producer},
    store::{LevelNote, StockStore, StoreError},
    telemetry::Metrics,
    wire::StockLevelCodec,
};

/// Products that one statement reads, and one call of the producer publishes.
const MAX_CHUNK_PRODUCTS: usize = 4_000;
/// How often the level of a product is published before the writer leaves it to its note.
const MAX_ROUNDS: u32 = 8;

/// Why levels were not published. The caller repeats.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("levels not read: {0}")]
    Store(#[from] StoreError),
    #[error("the broker did not take the levels: {0}")]
    Kafka(#[from] ProduceError),
}

impl LevelError {
    /// The dependency that failed: a label of `stocklock_retries_total`.
    pub(crate) fn dependency(&self) -> &'static str {
        match self {
            Self::Store(_) => "stock_store",
            Self::Kafka(_) => "kafka",
        }
    }
}

/// Publishes levels of products. Cheap to clone.
#[derive(Clone)]
pub struct Levels {
    pub store: StockStore,
    pub producer: Producer,
    pub topic: Arc<str>,
    pub codec: Arc<StockLevelCodec>,
    pub metrics: Metrics,
}

/// What a publication did.
#[derive(Default)]
struct Publication {
    /// The last version that was published, of each product that has not changed since.
    settled: HashMap<ProductId, i64>,
    /// Products that changed in each of the rounds, sorted.
    unsettled: Vec<ProductId>,
}

impl Levels {
    /// Publishes the present levels of products, and returns when the broker has acknowledged them
    /// and no product has changed since. The ids are sorted. Ignores unknown products.
    ///
    /// A product that changes again and again gets a note: a [`NotePublisher`] goes on with it.
    ///
    /// Fails if the store or the broker is unavailable. Some levels may have been published.
    pub async fn publish(&self, products: &[ProductId]) -> Result<(), LevelError> {
        for chunk in products.chunks(MAX_CHUNK_PRODUCTS) {
            let Publication { unsettled, .. } = self.publish_chunk(chunk).await?;
            if !unsettled.is_empty() {
                self.store.note_levels(&unsettled).await?;
            }
        }
        Ok(())
    }

    /// Publishes the levels of noted products, and deletes the notes of all products that have not
    /// changed since. The notes are sorted by product. Returns how many notes are done.
    ///
    /// Fails as [`Levels::publish`] does. Then the notes stay.
    pub(crate) async fn publish_noted(&self, notes: &[LevelNote]) -> Result<usize, LevelError> {
        let mut count = 0;
        for chunk in notes.chunks(MAX_CHUNK_PRODUCTS) {
            let products: Vec<_> = chunk.iter().map(|note| note.product_id.clone()).collect();
            let Publication { settled, .. } = self.publish_chunk(&products).await?;
            crash_point("levels.published");
            let done: Vec<_> =
                chunk.iter().filter(|note| settled.contains_key(&note.product_id)).collect();
            self.store.forget_level_notes(&done).await?;
            count += done.len();
        }
        Ok(count)
    }

    async fn publish_chunk(&self, products: &[ProductId]) -> Result<Publication, LevelError> {
        let mut publication = Publication::default();
        let mut newer = self.store.read_levels(products, Utc::now()).await?;
        for _ in 0..MAX_ROUNDS {
            if newer.is_empty() {
                return Ok(publication);
            }
            crash_point("levels.read");
            self.produce(&newer).await?;
            crash_point("levels.acknowledged");
            let ids: Vec<_> = newer.iter().map(|level| level.product_id.clone()).collect();
            let again = self.store.read_levels(&ids, Utc::now()).await?;
            let published = newer.into_iter().map(|level| (level.product_id, level.version));
            publication.settled.extend(published);
            newer = again;
            newer.retain(|level| publication.settled[&level.product_id] < level.version);
        }
        publication.unsettled = newer.into_iter().map(|level| level.product_id).collect();
        for id in &publication.unsettled {
            publication.settled.remove(id);
        }
        Ok(publication)
    }

    async fn produce(&self, levels: &[StockLevel]) -> Result<(), ProduceError> {
        let messages = levels.iter().map(|level| Message::of_level(&self.codec, level));
        self.producer.produce(&self.topic, messages.collect()).await?;
        self.metrics.levels_published.inc_by(levels.len() as u64);
        Ok(())
    }
}
