//! Values of arguments. Each parser fails with what it expected.

use std::time::Duration;

use crate::domain::{Line, ProductId};

/// Most time that the API waits for an outcome.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The API has a bound of its own, which is lower: `orders.hold_max`.
const MAX_HOLD_SECONDS: u64 = i32::MAX as u64;
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;
/// Leaves room for the number and the digest of a line.
const MAX_KEY_PREFIX_BYTES: usize = 200;

/// Parses `PRODUCT=QUANTITY`. The product's id may contain the sign too.
pub(super) fn line(text: &str) -> Result<Line, String> {
    let (id, quantity) = text.rsplit_once('=').ok_or("expected ID=QUANTITY")?;
    let quantity =
        quantity.parse().map_err(|_| format!("expected a whole number, found {quantity:?}"))?;
    let id = ProductId::parse(id).map_err(|e| e.to_string())?;
    Line::new(id, quantity).map_err(|e| e.to_string())
}

/// Parses the time of a hold, in whole seconds: 1 s at least.
pub(super) fn hold(text: &str) -> Result<Duration, String> {
    let hold = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if hold.subsec_nanos() == 0 && (1..=MAX_HOLD_SECONDS).contains(&hold.as_secs()) {
        return Ok(hold);
    }
    Err("expected whole seconds, at least 1s, such as 15m".to_owned())
}

/// Parses a time to wait for an outcome, in whole seconds. A number without a unit is seconds.
pub(in crate::commands) fn wait(text: &str) -> Result<Duration, String> {
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if wait.subsec_nanos() == 0 && wait <= MAX_WAIT {
        return Ok(wait);
    }
    Err("expected whole seconds, at most 60s".to_owned())
}

/// Parses a key as the header `Idempotency-Key` takes it.
pub(super) fn idempotency_key(text: &str) -> Result<String, String> {
    visible_ascii(text, MAX_IDEMPOTENCY_KEY_BYTES)
}

/// Parses the begin of the keys of an import.
pub(in crate::commands) fn key_prefix(text: &str) -> Result<String, String> {
    visible_ascii(text, MAX_KEY_PREFIX_BYTES)
}

fn visible_ascii(text: &str, max_bytes: usize) -> Result<String, String> {
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_visible && (1..=max_bytes).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("expected 1 to {max_bytes} printable ASCII characters without spaces"))
}
