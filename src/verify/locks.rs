//! Invariant 6: no lock and no transaction outlives its owner by more than the TTL.

use std::time::Duration;

use super::{Checks, Report, Violation};
use crate::{
    config::LockStrategy,
    error_text,
    lock::{OverlongKey, overlong_keys},
    store::{SilentTransactions, StoreError, StoreName},
};

/// Fails with the error of a store. What Redis does not show is `unchecked`.
pub(super) async fn check(checks: &Checks<'_>, report: &mut Report) -> Result<(), StoreError> {
    if checks.is_without(6) {
        report.left_out.push("invariant 6, the locks and the transactions: --without 6".to_owned());
        return Ok(());
    }
    check_keys(checks, report).await;
    let ttl = checks.config.lock.ttl;
    let limit = silence_limit_seconds(ttl);
    add_transactions(
        StoreName::StockStore,
        checks.stock.silent_transactions(limit).await?,
        ttl,
        report,
    );
    if checks.config.order_store.url != checks.config.stock_store.url {
        add_transactions(
            StoreName::OrderStore,
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

/// The server counts in whole seconds, and ends a silent session up to 2 s late.
fn silence_limit_seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(2).saturating_add(2)
}

/// A session of a role ends after it was silent for the TTL, so none keeps rows locked for longer.
fn add_transactions(
    store: StoreName,
    silent: SilentTransactions,
    ttl: Duration,
    report: &mut Report,
) {
    let store = store.as_str();
    let silent = match silent {
        SilentTransactions::Listed(silent) => silent,
        SilentTransactions::Forbidden => {
            report.forbidden.push(format!(
                "invariant 6, open transactions in {store}: the user of {store}.url lacks the \
                 privilege PROCESS (--without 6 leaves it out)"
            ));
            return;
        }
    };
    report.violations.extend(silent.into_iter().map(|open| {
        let detail = format!(
            "has been silent for {} s in a transaction of {store}, and lock.ttl is {ttl:?}",
            open.silent_seconds
        );
        Violation { invariant: 6, subject: format!("session {}", open.session), detail }
    }));
}

fn overlong_key(found: OverlongKey, ttl: Duration) -> Violation {
    let OverlongKey { key, master, expires_in } = found;
    let lives =
        expires_in.map_or_else(|| "for ever".to_owned(), |left| format!("for {left:?} more"));
    let detail = format!("lives {lives} on master {master}, and lock.ttl is {ttl:?}");
    Violation { invariant: 6, subject: format!("key {key}"), detail }
}
