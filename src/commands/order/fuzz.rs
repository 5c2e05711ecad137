//! Fuzzes the readers of the answers of ingest.

use super::{batch, events::EventParser};
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

#[test]
fn answers_to_lines_are_read_or_refused() {
    fuzz("line_answer", |bytes| match batch::parsed(bytes) {
        Ok(answer) => format!("{} {}", answer.reason(), answer.detail()),
        Err(error) => error.to_string(),
    });
}
