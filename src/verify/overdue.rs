//! Invariant 3 of time: releases, holds and announcements that take too long.

use std::time::Instant;

use chrono::{TimeDelta, Utc};

use super::{Checks, OpenOrder, Report, SETTLE_INTERVAL};
use crate::{
    domain::OrderId,
    kafka::has_members,
    store::{LateAnnouncement, StoreError},
};

/// The longest time for which an announcement may be unpublished.
const MAX_UNPUBLISHED: TimeDelta = TimeDelta::minutes(10);
/// Most late announcements that are read.
const MAX_LATE: u32 = 10_000;

/// What roles of one kind have not done in time.
pub(super) struct Overdue {
    pub(crate) orders: Vec<OrderId>,
    /// What is wrong with each order.
    pub(crate) fact: &'static str,
    /// Those who have to do it, as in "while workers run", and one of them.
    pub(crate) roles: &'static str,
    pub(crate) role: &'static str,
}

impl Overdue {
    pub(super) fn releases() -> Self {
        Self {
            orders: Vec::new(),
            fact: "its release has been owed for more than ten minutes",
            roles: "workers run",
            role: "worker",
        }
    }

    pub(super) fn holds() -> Self {
        Self {
            orders: Vec::new(),
            fact: "its hold has been due for more than a minute",
            roles: "a compensator runs",
            role: "compensator",
        }
    }

    /// Reports the orders: as violations if the group has a member, and else as not settled.
    pub(super) async fn report(self, checks: &Checks<'_>, group_id: &str, report: &mut Report) {
        if self.orders.is_empty() {
            return;
        }
        let Self { orders, fact, roles, role } = self;
        let (kafka, group_id) = (checks.config.kafka.clone(), group_id.to_owned());
        let asked = tokio::task::spawn_blocking(move || has_members(&kafka, &group_id)).await;
        let why = match asked {
            Ok(Ok(true)) => {
                for id in orders {
                    report.violated(3, id, format!("{fact} while {roles}"));
                }
                return;
            }
            Ok(Ok(false)) => format!("{fact}, and no {role} runs"),
            Ok(Err(error)) => format!("{fact}, and Kafka does not say whether {roles}: {error}"),
            Err(error) => format!("{fact}, and Kafka was not asked: {error}"),
        };
        let open = |id: OrderId| OpenOrder { order_id: id.to_string(), why: why.clone() };
        report.unsettled.extend(orders.into_iter().map(open));
    }
}

/// Waits until no announcement is late, at most until `deadline`. Reports the late ones as not
/// settled.
///
/// Fails with the error of the order store.
pub(super) async fn report_announcements(
    checks: &Checks<'_>,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), StoreError> {
    let late = loop {
        let before = Utc::now() - MAX_UNPUBLISHED;
        let late = checks.orders.late_announcements(before, checks.first_order(), MAX_LATE).await?;
        if late.is_empty() || Instant::now() >= deadline {
            break late;
        }
        checks.progress.say(format!("waiting for {} announcements", late.len()));
        tokio::time::sleep(SETTLE_INTERVAL).await;
    };
    report.unsettled.extend(late.into_iter().map(|LateAnnouncement { order_id, status }| {
        let why = format!("its {status} has not been announced for more than ten minutes");
        OpenOrder { order_id: order_id.to_string(), why }
    }));
    Ok(())
}
