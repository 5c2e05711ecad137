//! Invariant 6: no lock and no transaction outlives its owner by more than the TTL.

use std::time::Duration;

use super::{Checks, Report, Violation};
use crate::{
    config::LockStrategy,
    error_text,
    lock::{OverlongKey, overlong_keys},
    store::{Role, StoreError},
};

pub(super) async fn check(checks: &Checks<'_>, report: &mut Report) -> Result<(), StoreError> {
    if checks.is_without(6) {
        report.left_out.push("invariant 6, the locks and the transactions: --without 6".to_owned());
        return Ok(());
    }
    check_keys(checks, report).await;
    let ttl = checks.config.lock.ttl;
    let limit = silence_limit_seconds(ttl);
    add_transactions(Role::StockStore, checks.stock.silent_transactions(limit).await?, ttl, report);
    if checks.config.order_store.url != checks.config.stock_store.url {
        add_transactions(
            Role::OrderStore,
            checks.orders.silent_transactions(limit).await?,
            ttl,
            report,
        );
    }
    Ok(())
}

async fn check_keys(checks: &Checks<'_>, report: &mut Report) {
    let lock = &checks.config.lock;
    match lock.strategy {
        LockStrategy::Row => {
            report.left_out.push("the locks in Redis: lock.strategy is row".to_owned());
            return;
        }
        LockStrategy::Redlock => {}
    }
    match overlong_keys(lock, &checks.config.redis).await {
        Ok(overlong) => {
            report.violations.extend(overlong.into_iter().map(|key| overlong_key(key, lock.ttl)));
        }
        Err(error) => {
            let why = error_text::with_causes(&error);
            report.unchecked.push(format!("invariant 6, the locks in Redis: {why}"));
        }
    }
}

fn overlong_key(found: OverlongKey, ttl: Duration) -> Violation {
    let OverlongKey { key, master, expires_in } = found;
    let lives =
        expires_in.map_or_else(|| "for ever".to_owned(), |left| format!("for {left:?} more"));
    let detail = format!("lives {lives} on master {master}, and lock.ttl is {ttl:?}");
    Violation { invariant: 6, subject: format!("key {key}"), detail }
}

/// The server counts in whole seconds, and ends a silent session up to two seconds late.
fn silence_limit_seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(2).saturating_add(2)
}

/// Sessions of roles end when they have been silent for the TTL, so that none keeps rows locked for
/// longer.
fn add_transactions(
    store: Role,
    silent: Option<Vec<(u64, i64)>>,
    ttl: Duration,
    report: &mut Report,
) {
    let store = store.as_str();
    let Some(silent) = silent else {
        let privilege = format!(
            "the user of {store}.url lacks the privilege PROCESS (or run it with --without 6)"
        );
        report
            .forbidden
            .push(format!("invariant 6, transactions left open in {store}: {privilege}"));
        return;
    };
    report.violations.extend(silent.into_iter().map(|(session, seconds)| {
        let detail = format!(
            "has been silent for {seconds} s in a transaction of {store}, and lock.ttl is {ttl:?}"
        );
        Violation { invariant: 6, subject: format!("session {session}"), detail }
    }));
}
