use chrono::SecondsFormat;
use serde_json::{Value, json};

use super::{Answer, Output, print::complaint};
use crate::{
    domain::ProductId,
    store::{StockStore, StoredMovement},
};

/// Movements that one statement reads.
const PAGE_ROWS: u32 = 1_000;

/// Prints a line for each movement after `after`. The answer is no if there is no such product.
///
/// Fails with the error of the store.
pub(super) async fn run(
    store: &StockStore,
    id: &ProductId,
    mut after: i64,
    output: Output,
) -> anyhow::Result<Answer> {
    if store.find_product(id).await?.is_none() {
        complaint(&format!("no product {id}"), output);
        return Ok(Answer::No);
    }
    let mut rows = Vec::new();
    loop {
        let page = store.list_movements(id, after, PAGE_ROWS).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        match output {
            Output::Json => rows.extend(page.iter().map(shown)),
            Output::Text => page.iter().for_each(print),
        }
    }
    if output == Output::Json {
        println!("{}", json!(rows));
    }
    Ok(Answer::Done)
}

fn shown(movement: &StoredMovement) -> Value {
    json!({
        "movement_id": movement.id,
        "kind": movement.kind,
        "quantity": movement.quantity,
        "reason": movement.reason,
        "reference": movement.reference,
        "request_id": movement.request_id,
        "created_at": time(movement),
    })
}

fn print(movement: &StoredMovement) {
    let StoredMovement { id, kind, quantity, reason, reference, request_id, .. } = movement;
    let texts = [reason, reference, request_id].into_iter().flatten();
    let texts = texts.map(String::as_str).collect::<Vec<_>>().join("  ");
    let line = format!("{id:>10}  {}  {kind:8} {quantity:>+16}  {texts}", time(movement));
    println!("{}", line.trim_end());
}

/// RFC 3339, UTC, with milliseconds.
fn time(movement: &StoredMovement) -> String {
    movement.created_at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
