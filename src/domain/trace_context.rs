//! The W3C trace context (level 1) of an order that is traced, and its text form.

use std::collections::BTreeMap;

use super::{Invalid, OrderId};

/// The only version of `traceparent` that this code writes.
const VERSION: &str = "00";
/// The bytes of a `traceparent` of version 00. Later versions may add fields behind these.
const PARENT_BYTES: usize = 55;
/// The flag of a sampled trace.
const SAMPLED: u8 = 1;
/// The most bytes of a `tracestate`. A longer one is left out, as W3C allows.
const MAX_STATE_BYTES: usize = 512;

/// A span of a sampled trace: the parent of the spans that follow. No context is made for a trace
/// that is not sampled, so such an order pays nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Not zero.
    pub(crate) trace_id: [u8; 16],
    /// Not zero.
    pub(crate) span_id: [u8; 8],
    /// The `tracestate` of the vendors, passed on as it came.
    pub(crate) state: Option<Box<str>>,
}

/// The trace context that a caller sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) context: TraceContext,
    pub(crate) is_sampled: bool,
}

impl TraceParent {
    /// Reads the two headers. `None` without a valid `traceparent`: the trace begins here. An
    /// invalid `tracestate` is left out.
    pub(crate) fn parse(parent: &[u8], state: Option<&[u8]>) -> Option<Self> {
        let text = std::str::from_utf8(parent).ok()?;
        let rest_is_valid = match text.as_bytes().get(PARENT_BYTES) {
            None => true,
            Some(next) => *next == b'-' && !text.starts_with(VERSION),
        };
        let mut fields = text.get(..PARENT_BYTES).filter(|_| rest_is_valid)?.split('-');
        let [version] = bytes(fields.next()?)?;
        let context = TraceContext {
            trace_id: bytes(fields.next()?).filter(|id| *id != [0; 16])?,
            span_id: bytes(fields.next()?).filter(|id| *id != [0; 8])?,
            state: state.and_then(valid_state),
        };
        let [flags] = bytes(fields.next()?)?;
        let is_complete = fields.next().is_none() && version != u8::MAX;
        is_complete.then_some(Self { context, is_sampled: flags & SAMPLED != 0 })
    }
}

impl TraceContext {
    /// The value of the header `traceparent`.
    pub(crate) fn parent(&self) -> String {
        let Self { trace_id, span_id, .. } = self;
        format!("{VERSION}-{}-{}-{SAMPLED:02x}", hex(trace_id), hex(span_id))
    }
}

/// The traced orders of a group or of a batch, each with its context. Empty costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TracedOrders(BTreeMap<OrderId, TraceContext>);

impl TracedOrders {
    pub(crate) fn insert(&mut self, order_id: OrderId, context: TraceContext) {
        self.0.insert(order_id, context);
    }

    pub(crate) fn get(&self, order_id: OrderId) -> Option<&TraceContext> {
        self.0.get(&order_id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (OrderId, &TraceContext)> {
        self.0.iter().map(|(order_id, context)| (*order_id, context))
    }

    /// A line for each order: its id, its `traceparent`, its `tracestate`. `None` without an order.
    pub(crate) fn to_text(&self) -> Option<String> {
        let line = |(order_id, context): (OrderId, &TraceContext)| {
            let state = context.state.as_deref().unwrap_or_default();
            format!("{order_id} {} {state}\n", context.parent())
        };
        (!self.0.is_empty()).then(|| self.iter().map(line).collect())
    }

    /// Reads [`TracedOrders::to_text`]. Fails if a line is none of it.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let entry = |line: &str| {
            let (order_id, context) = line.split_once(' ')?;
            let (parent, state) = context.split_once(' ')?;
            let state = Some(state).filter(|state| !state.is_empty()).map(str::as_bytes);
            let parent = TraceParent::parse(parent.as_bytes(), state)?;
            Some((order_id.parse().ok()?, parent.context))
        };
        let entry = |line| entry(line).ok_or_else(|| Invalid(format!("no trace: {line:?}")));
        text.lines().map(entry).collect::<Result<_, _>>().map(Self)
    }
}

fn valid_state(state: &[u8]) -> Option<Box<str>> {
    let is_valid = (1..=MAX_STATE_BYTES).contains(&state.len())
        && state.iter().all(|byte| (b' '..=b'~').contains(byte));
    let text = std::str::from_utf8(state).ok().filter(|_| is_valid)?.trim();
    (!text.is_empty()).then(|| text.into())
}

/// Reads lower-case hexadecimal digits, two a byte.
fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (mut bytes, pairs) = ([0; N], digits.as_bytes().chunks_exact(2));
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(parent: &str) -> Option<TraceParent> {
        TraceParent::parse(parent.as_bytes(), None)
    }

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let parent = parse(PARENT).unwrap();

        assert!(parent.is_sampled);
        assert_eq!(parent.context.parent(), PARENT);
        assert!(!parse(&PARENT.replace("-01", "-02")).unwrap().is_sampled);
        assert!(parse(&PARENT.replace("-01", "-03")).unwrap().is_sampled);
    }

    #[test]
    fn a_later_version_may_have_more_fields() {
        assert!(parse(&format!("{}-x", PARENT.replacen("00", "cc", 1))).is_some());
        assert!(parse(&format!("{}x", PARENT.replacen("00", "cc", 1))).is_none());
        assert!(parse(&format!("{PARENT}-x")).is_none());
        assert!(parse(&PARENT.replacen("00", "ff", 1)).is_none());
    }

    #[test]
    fn an_invalid_parent_is_no_parent() {
        let zeros = |from: &str| PARENT.replace(from, &"0".repeat(from.len()));
        for parent in [
            String::new(),
            PARENT[..54].to_owned(),
            PARENT.to_uppercase(),
            PARENT.replace('-', "_"),
            zeros("4bf92f3577b34da6a3ce929d0e0e4736"),
            zeros("00f067aa0ba902b7"),
            format!("é{}", &PARENT[2..]),
        ] {
            assert_eq!(parse(&parent), None, "{parent}");
        }
        assert_eq!(TraceParent::parse(b"\xff", None), None);
    }

    #[test]
    fn an_invalid_state_is_left_out() {
        let state = |state: &[u8]| {
            TraceParent::parse(PARENT.as_bytes(), Some(state)).unwrap().context.state
        };

        assert_eq!(state(b"a=1,b=2").as_deref(), Some("a=1,b=2"));
        for invalid in [&b""[..], b" ", b"a=1\n", b"\xff", &[b'a'; 513]] {
            assert_eq!(state(invalid), None);
        }
    }

    #[test]
    fn traced_orders_are_read_as_they_were_written() {
        let mut traced = TracedOrders::default();
        assert_eq!(traced.to_text(), None);
        for (id, state) in [(1, None), (2, Some(&b"a=1, b=2"[..]))] {
            let context = TraceParent::parse(PARENT.as_bytes(), state).unwrap().context;
            traced.insert(OrderId::new(chrono::DateTime::UNIX_EPOCH, &[id; 10]), context);
        }

        let text = traced.to_text().unwrap();

        assert_eq!(TracedOrders::parse(&text), Ok(traced));
        assert!(TracedOrders::parse("x").is_err());
        assert_eq!(TracedOrders::parse(""), Ok(TracedOrders::default()));
    }
}
