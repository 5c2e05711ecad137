//! What becomes of locks and stock when masters stop, lose their keys or have clocks that jump, and
//! when a holder is stopped or dies.

mod clocks;
mod grants;
mod outages;

use std::time::Duration;

use crate::harness::{Database, Masters, Strategy, World, order_lines};

/// How long work may take to go on once a majority of the masters is back.
const RESUMES_WITHIN: Duration = Duration::from_secs(10);

/// A world on masters of its own. They may be slow, unless a test is about late answers.
async fn world_on(masters: &Masters) -> World {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    masters.serve(&mut world);
    world.config.lock.node_timeout = Duration::from_secs(2);
    world.env.insert("STOCKLOCK__LOCK__NODE_TIMEOUT".to_owned(), "2s".to_owned());
    world
}

/// Produces orders of one unit of `a`.
async fn produce(world: &World, count: usize) {
    let events = world.save(&vec![order_lines(&[("a", 1)]); count]).await;
    world.produce_events(&events).await;
}
