//! Reads the body of a request, with bounds on its type, size, time and memory.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody as _},
    http::{HeaderMap, StatusCode, header},
};
use futures::StreamExt;
use tokio::time::timeout;

use super::{MAX_BODY_BYTES, problem::Problem};
use crate::http::{Connection, HeldMemory, NoMemory};

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may send nothing of a body.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The least memory that a body, or a line of a batch, is read into.
const MIN_BUFFER_BYTES: usize = 1 << 10;

/// Fails with a 415 if the content type is given and is not JSON, or if a web page gives none.
///
/// This keeps out most web pages of another origin: a browser lets them send forms, texts and bytes
/// without a type unasked, but no JSON. It keeps out no page whose name was made to resolve to the
/// address of ingest (DNS rebinding): to the browser, that page has the origin of ingest.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    if is_of_type(headers, is_json) {
        return Ok(());
    }
    let detail = "the content type is not application/json; nothing was saved";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        .header(header::ACCEPT, "application/json"))
}

/// Whether the content type is right. It may be missing, unless a web page sends the request:
/// `Origin` says so.
fn is_of_type(headers: &HeaderMap, is_right: impl Fn(&str) -> bool) -> bool {
    let given = headers.get_all(header::CONTENT_TYPE);
    let is_missing = given.iter().next().is_none();
    let is_allowed = !(is_missing && headers.contains_key(header::ORIGIN));
    is_allowed && given.iter().all(|value| value.to_str().is_ok_and(&is_right))
}

/// Fails with a 415 if the content type is given and is not `application/x-ndjson`, or if a web
/// page gives none.
pub(super) fn check_lines_type(headers: &HeaderMap) -> Result<(), Problem> {
    let is_ndjson = |essence: &str| {
        ["application/x-ndjson", "application/ndjson", "application/jsonl"].contains(&essence)
    };
    if is_of_type(headers, |value| is_ndjson(&essence(value))) {
        return Ok(());
    }
    let detail = "the content type is not application/x-ndjson; nothing was saved";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        .header(header::ACCEPT, "application/x-ndjson"))
}

/// A content type in lower case, without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a content type is `application/json`, or ends in `+json` (RFC 6839). Parameters are
/// ignored.
fn is_json(content_type: &str) -> bool {
    match essence(content_type).strip_prefix("application/") {
        Some(subtype) => {
            subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty())
        }
        None => false,
    }
}

/// The bytes of a body, and the memory that they hold.
pub(super) struct ReadBody {
    pub(super) bytes: Vec<u8>,
    _held: HeldMemory,
}

/// Reads a body of at most [`MAX_BODY_BYTES`].
///
/// Fails with
/// - 400 if the body breaks off,
/// - 408 if it takes longer than 30 s, or nothing arrives for 10 s,
/// - 413 if it is too large,
/// - 503 if all bodies together hold too much memory.
pub(super) async fn read(body: Body, connection: &Connection) -> Result<ReadBody, Problem> {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let reading = timeout(BODY_TIMEOUT, read_all(body.into_data_stream(), connection));
    let read = reading.await.unwrap_or_else(|_| Err(too_slow()))?;
    connection.request_read();
    Ok(read)
}

async fn read_all(
    mut chunks: BodyDataStream,
    connection: &Connection,
) -> Result<ReadBody, Problem> {
    let (mut bytes, mut held) = (Vec::new(), HeldMemory::default());
    while let Some(chunk) = timeout(SILENCE_TIMEOUT, chunks.next()).await.map_err(|_| too_slow())? {
        let chunk = chunk.map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, format!("the body breaks off: {e}"))
        })?;
        let length = bytes.len() + chunk.len();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        grow(&mut bytes, &mut held, length, connection).map_err(no_memory)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(ReadBody { bytes, _held: held })
}

/// Makes room for `length` bytes, [`MAX_BODY_BYTES`] at most. `held` holds the capacity then.
///
/// The capacity doubles at least: a body in many small parts is not copied for each of them.
fn grow(
    bytes: &mut Vec<u8>,
    held: &mut HeldMemory,
    length: usize,
    connection: &Connection,
) -> Result<(), NoMemory> {
    if length <= bytes.capacity() {
        return Ok(());
    }
    let capacity = length.max(2 * bytes.capacity()).clamp(MIN_BUFFER_BYTES, MAX_BODY_BYTES);
    connection.hold_body(held, capacity)?;
    bytes.reserve_exact(capacity - bytes.len());
    Ok(())
}

/// Reads the lines of a body one by one, each at most [`MAX_BODY_BYTES`]. Passes over empty lines.
pub(super) struct LineReader {
    chunks: BodyDataStream,
    connection: Connection,
    /// What was received behind the last line.
    chunk: Bytes,
    /// The beginning of a line whose end was not received yet.
    partial: Vec<u8>,
    held: HeldMemory,
    /// Why the line in `partial` is not read. Its bytes are discarded.
    refusal: Option<Problem>,
    has_ended: bool,
}

impl LineReader {
    pub(super) fn new(body: Body, connection: Connection) -> Self {
        Self {
            chunks: body.into_data_stream(),
            connection,
            chunk: Bytes::new(),
            partial: Vec::new(),
            held: HeldMemory::default(),
            refusal: None,
            has_ended: false,
        }
    }

    /// Returns the next line without its end. `None` after the last. May be cancelled: no bytes are
    /// lost.
    ///
    /// A line fails with
    /// - 413 if it is too large, and 503 if all bodies together hold too much memory,
    /// - 400 if the body breaks off, and 408 if nothing arrives for 10 s. It is the last then.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Problem>> {
        loop {
            if let Some(at) = self.chunk.iter().position(|byte| *byte == b'\n') {
                let end = self.chunk.split_to(at + 1);
                let line = self.complete(end.slice(..at));
                if let Some(line) = line {
                    return Some(line);
                }
                continue;
            }
            let received = std::mem::take(&mut self.chunk);
            self.keep(&received);
            if self.has_ended {
                return self.complete(Bytes::new());
            }
            match timeout(SILENCE_TIMEOUT, self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => self.chunk = chunk,
                Ok(None) => self.has_ended = true,
                Ok(Some(Err(error))) => {
                    let detail = format!("the body breaks off: {error}");
                    return self.end_with(Problem::new(StatusCode::BAD_REQUEST, detail));
                }
                Err(_) => return self.end_with(too_slow()),
            }
        }
    }

    /// Ends the lines with a problem. `None` if they have ended before.
    fn end_with(&mut self, problem: Problem) -> Option<Result<Bytes, Problem>> {
        self.partial = Vec::new();
        self.refusal = None;
        let is_first = !std::mem::replace(&mut self.has_ended, true);
        is_first.then_some(Err(problem))
    }

    /// The line that ends with `end`. `None` if it is empty.
    fn complete(&mut self, end: Bytes) -> Option<Result<Bytes, Problem>> {
        if !self.partial.is_empty() {
            self.keep(&end);
        }
        let partial = std::mem::take(&mut self.partial);
        self.held = HeldMemory::default();
        if let Some(refusal) = self.refusal.take() {
            return Some(Err(refusal));
        }
        let line = if partial.is_empty() { end } else { partial.into() };
        (!line.trim_ascii().is_empty()).then_some(Ok(line))
    }

    /// Adds to the beginning of a line, or refuses the line.
    fn keep(&mut self, bytes: &[u8]) {
        if self.refusal.is_some() || bytes.is_empty() {
            return;
        }
        let length = self.partial.len() + bytes.len();
        let grown = if length > MAX_BODY_BYTES {
            Err(too_large())
        } else {
            grow(&mut self.partial, &mut self.held, length, &self.connection).map_err(no_memory)
        };
        match grown {
            Ok(()) => self.partial.extend_from_slice(bytes),
            Err(refusal) => {
                self.partial = Vec::new();
                self.refusal = Some(refusal);
            }
        }
    }
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a body has at most {MAX_BODY_BYTES} bytes"),
    )
}

fn no_memory(why: NoMemory) -> Problem {
    match why {
        NoMemory::OfAll => {
            Problem::unavailable("the bodies of all requests are too large; nothing was saved")
        }
        NoMemory::OfClient => Problem::too_many(
            "the bodies of this principal's requests are too large; nothing was saved",
        ),
    }
}

fn too_slow() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive; nothing was saved")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_in_small_parts_holds_its_capacity_and_is_seldom_copied() {
        let (connection, mut held) = (Connection::of_test().await, HeldMemory::default());
        let (mut bytes, mut growths) = (Vec::new(), 0);

        for length in 1..=MAX_BODY_BYTES {
            let before = bytes.capacity();
            assert!(grow(&mut bytes, &mut held, length, &connection).is_ok());
            bytes.push(b'x');
            growths += usize::from(bytes.capacity() != before);
        }

        assert_eq!(bytes.capacity(), MAX_BODY_BYTES);
        assert_eq!(growths, 11, "1 KiB doubles ten times to 1 MiB");
        assert!(connection.hold_body(&mut HeldMemory::default(), 16 << 20).is_err());
    }

    #[tokio::test]
    async fn a_line_in_two_parts_holds_the_capacity_of_its_buffer() {
        let connection = Connection::of_test().await;
        let mut lines = LineReader::new(Body::empty(), connection);

        lines.keep(&vec![b'x'; 600 << 10]);
        lines.keep(b"x");

        assert_eq!(lines.held.bytes(), lines.partial.capacity());
    }

    #[test]
    fn json_is_accepted_and_what_a_web_page_may_send_is_not() {
        for json in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/vnd.shop.order+json",
        ] {
            assert!(is_json(json), "{json}");
        }
        for other in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "json",
        ] {
            assert!(!is_json(other), "{other}");
        }
        for other in
            ["text/json", "application/+json", "application/jsonp", "application/json, text/plain"]
        {
            assert!(!is_json(other), "{other}");
        }
    }
}
