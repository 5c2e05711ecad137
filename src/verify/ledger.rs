//! Invariants 1, 2, 4 and, as far as the ledger shows it, 5: the ledger explains the stock.

use std::collections::BTreeMap;

use super::{Report, Violation};
use crate::store::{CorruptOutcome, OutcomeFault, RepeatedAdjustment, StockSnapshot};

/// Checks the snapshot alone. The result is exact, also under load.
pub(super) fn check(snapshot: &StockSnapshot, report: &mut Report) {
    report.products = snapshot.available.len();
    report.outcomes = snapshot.outcomes;
    let mut violated = |invariant, subject, detail| {
        report.violations.add(Violation { invariant, subject, detail });
    };
    for (id, available) in &snapshot.available {
        let sum = |of: &BTreeMap<_, i64>| of.get(id).copied().unwrap_or(0);
        let (supplied, held) = (sum(&snapshot.supplied), sum(&snapshot.held));
        if *available < 0 {
            violated(1, format!("product {id}"), format!("{available} are available"));
        }
        if supplied.saturating_sub(held) != *available {
            let detail = format!(
                "{supplied} were supplied and {held} are held, but {available} are available"
            );
            violated(2, format!("product {id}"), detail);
        }
    }
    for id in snapshot
        .held
        .keys()
        .chain(snapshot.supplied.keys())
        .filter(|id| !snapshot.available.contains_key(id))
    {
        violated(2, format!("product {id}"), "the ledger has it, and products has not".to_owned());
    }
    for RepeatedAdjustment { request_id, product_id, movements } in &snapshot.repeated {
        let detail = format!("it adjusted product {product_id} {movements} times");
        violated(4, format!("request {request_id}"), detail);
    }
    for CorruptOutcome { order_id, fault } in &snapshot.corrupt {
        let (invariant, detail) = describe(fault);
        violated(invariant, format!("order {order_id}"), detail.to_owned());
    }
    let listed = snapshot.corrupt.len() as u64;
    report.violations.add_unlisted(snapshot.corrupt_count.saturating_sub(listed));
}

/// The invariant that a wrong outcome violates, and how.
fn describe(fault: &OutcomeFault) -> (u8, &str) {
    match fault {
        OutcomeFault::Unreadable(error) => (4, error),
        OutcomeFault::Purged => (4, "was decided although its outcome may have been purged before"),
        OutcomeFault::RefusedWithUnits => (5, "the worker refused it, and its outcome has units"),
        OutcomeFault::HeldAgain => (5, "its stock was released, and is held again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProductId;

    #[test]
    fn a_quantity_that_the_ledger_does_not_explain_names_its_product() {
        let id = ProductId::parse("sku-1").unwrap();
        let one = |n| BTreeMap::from([(id.clone(), n)]);
        let check = |available, supplied, held| {
            let (available, supplied, held) = (one(available), one(supplied), one(held));
            let mut report = Report::default();
            super::check(
                &StockSnapshot { available, supplied, held, ..StockSnapshot::default() },
                &mut report,
            );
            report
                .violations
                .first()
                .iter()
                .map(|v| (v.invariant, v.subject.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(check(3, 5, 2), []);
        assert_eq!(check(4, 5, 2), [(2, "product sku-1".to_owned())]);
        assert_eq!(check(-1, 5, 6), [(1, "product sku-1".to_owned())]);
    }
}
