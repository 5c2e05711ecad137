//! The headers `traceparent` and `tracestate` of messages (W3C Trace Context).

use rdkafka::{
    Message as _,
    message::{Header, Headers as _, OwnedMessage},
};

use super::Message;
use crate::domain::{TraceContext, TraceParent};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// The trace of the message's producer. `None` without a valid one.
pub(crate) fn trace_parent(message: &OwnedMessage) -> Option<TraceParent> {
    let headers = message.headers()?;
    let value = |name| headers.iter().find(|header| header.key == name)?.value;
    TraceParent::parse(value(PARENT)?, value(STATE))
}

impl Message {
    /// The message with the headers of its trace, if it has one.
    #[must_use]
    pub(crate) fn traced(mut self, context: Option<&TraceContext>) -> Self {
        let Some(context) = context else { return self };
        let parent = context.parent();
        let mut headers = self.headers.take().unwrap_or_default();
        headers = headers.insert(Header { key: PARENT, value: Some(&parent) });
        if let Some(state) = &context.state {
            headers = headers.insert(Header { key: STATE, value: Some(&**state) });
        }
        self.headers = Some(headers);
        self
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;
    use crate::domain::OrderId;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn received(message: Message) -> OwnedMessage {
        let Message { key, payload, headers } = message;
        OwnedMessage::new(payload, key, "t".into(), Timestamp::NotAvailable, 0, 0, headers)
    }

    #[test]
    fn a_context_is_read_as_it_was_written() {
        let message = || Message::of_order(OrderId::first_of(chrono::DateTime::UNIX_EPOCH), vec![]);
        for state in [None, Some(&b"a=1"[..])] {
            let parent = TraceParent::parse(TEXT.as_bytes(), state);
            let context = parent.as_ref().map(|parent| &parent.context);

            assert_eq!(trace_parent(&received(message().traced(context))), parent);
        }
        assert!(message().traced(None).headers.is_none());
        assert_eq!(trace_parent(&received(message())), None);
    }
}
