//! Fuzzes the reader of server-sent events.

use super::events::EventParser;
use crate::reader_fuzz::fuzz;

/// The events of a stream that arrives in pieces of so many bytes.
fn events(stream: &[u8], piece: usize) -> String {
    let (mut parser, mut events) = (EventParser::default(), Vec::new());
    for bytes in stream.chunks(piece) {
        match parser.push(bytes) {
            Ok(more) => events.extend(more),
            Err(error) => return error.to_string(),
        }
    }
    format!("{events:?}")
}

#[test]
fn events_are_read_the_same_however_the_stream_is_cut() {
    fuzz("events", |bytes| {
        let whole = events(bytes, bytes.len().max(1));
        assert_eq!(events(bytes, 3), whole);
        whole
    });
}
