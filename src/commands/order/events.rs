//! Parses server-sent events ("HTML", WHATWG, section 9.2.6).

use std::mem;

/// Most bytes of a line, and of an event's data.
const MAX_BYTES: usize = 1 << 16;

/// One event. Its type is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// The newest id of the stream, empty without one.
    pub(super) id: String,
    pub(super) data: String,
}

#[derive(Debug, thiserror::Error)]
#[error("an event of the server has more than {MAX_BYTES} bytes")]
pub(super) struct EventTooLong;

/// Turns the bytes of one stream into events, however the bytes are cut into pieces.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The line that has not ended.
    line: Vec<u8>,
    /// Whether the last byte was a CR: then a LF belongs to it.
    is_after_cr: bool,
    has_line: bool,
    id: String,
    data: String,
    has_data: bool,
}

impl EventParser {
    /// Returns the events that end in `bytes`. Fails if a line or an event is too long.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, EventTooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let is_second_half = mem::take(&mut self.is_after_cr) && byte == b'\n';
            match byte {
                b'\n' if is_second_half => {}
                b'\r' | b'\n' => {
                    self.is_after_cr = byte == b'\r';
                    let line = mem::take(&mut self.line);
                    events.extend(self.end_line(&String::from_utf8_lossy(&line))?);
                }
                _ if self.line.len() == MAX_BYTES => return Err(EventTooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Result<Option<Event>, EventTooLong> {
        // A stream may begin with a byte order mark.
        let is_first = !mem::replace(&mut self.has_line, true);
        let line = line.strip_prefix('\u{feff}').filter(|_| is_first).unwrap_or(line);
        if line.is_empty() {
            let data = mem::take(&mut self.data);
            let event = Event { id: self.id.clone(), data };
            return Ok(mem::take(&mut self.has_data).then_some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                if self.data.len() + value.len() > MAX_BYTES {
                    return Err(EventTooLong);
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments have an empty name. Other fields mean nothing to this client.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(id: &str, data: &str) -> Event {
        Event { id: id.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn an_event_is_its_data_and_the_newest_id() {
        let stream = "\u{feff}: comment\nevent: status\nid: 1\ndata: a\ndata:b\n\n\
                      data: c\r\n\r\nid\rdata:  d \r\rid:2\n\ndata\n\ndata: unfinished\n";

        let events = EventParser::default().push(stream.as_bytes()).expect("short");

        let expected = [event("1", "a\nb"), event("1", "c"), event("", " d "), event("2", "")];
        assert_eq!(events, expected);
    }

    #[test]
    fn a_line_or_an_event_without_end_is_an_error() {
        let line = vec![b'x'; MAX_BYTES + 1];
        let data = "data: 0123456789\n".repeat(MAX_BYTES / 10);

        for endless in [line, data.into_bytes()] {
            assert!(EventParser::default().push(&endless).is_err());
        }
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_the_stream_is_cut(
            pieces in proptest::collection::vec("(data|id|x)?[: \r\na]{0,3}\r?\n?", 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let stream = pieces.concat().into_bytes();
            let (head, tail) = stream.split_at(cut.index(stream.len() + 1));
            let mut cut = EventParser::default();

            let mut events = cut.push(head).expect("short");
            events.extend(cut.push(tail).expect("short"));

            prop_assert_eq!(events, EventParser::default().push(&stream).expect("short"));
        }
    }
}
