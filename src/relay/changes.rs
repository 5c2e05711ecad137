//! What changes of orders owe: releases, and announcements.

use super::{Announcer, Relay};
use crate::{
    domain::{OrderId, TracedOrders},
    store::Changed,
};

/// Publishes in the background the releases and the announcements that a transaction has just
/// committed. If that fails, later passes publish them when their lease ends.
///
/// A worker would dead-letter the release of an order below `decidable_from`, so it is left out.
/// The watch of owed releases counts it as expired.
///
/// `traced` are the orders whose changes are traced. A later pass publishes without traces.
pub(crate) fn publish_changes(
    relay: &Relay,
    announcer: &Announcer,
    changed: Changed,
    decidable_from: OrderId,
    traced: TracedOrders,
) {
    let Changed { mut releases, announcements, .. } = changed;
    releases.retain(|event| event.order_id >= decidable_from);
    relay.release_in_background(releases, traced.clone());
    announcer.announce_in_background(announcements, traced);
}
