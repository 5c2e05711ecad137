//! The lines of a file of orders, and what makes an order known again when its line is sent twice.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Seek as _},
    path::Path,
};

use hyper::body::Bytes;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::ingest::MAX_BODY_BYTES;

const BUFFER_BYTES: usize = 64 << 10;
/// Hexadecimal digits of a digest in a key: 128 bits of the file, 64 bits of a line.
const FILE_DIGITS: usize = 32;
const LINE_DIGITS: usize = 16;

/// A line that is not blank.
pub(super) struct FileLine {
    /// From 1. Blank lines count.
    pub(super) number: u64,
    /// Without its end. `None` if it has more than [`MAX_BODY_BYTES`].
    pub(super) content: Option<Vec<u8>>,
}

/// Reads the lines of a file one by one, in bounded memory.
pub(super) struct FileLines {
    input: BufReader<tokio::fs::File>,
    number: u64,
    /// The beginning of a line whose end was not read yet.
    partial: Vec<u8>,
    is_too_long: bool,
}

impl FileLines {
    pub(super) fn new(file: File) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(file)),
            number: 0,
            partial: Vec::new(),
            is_too_long: false,
        }
    }

    /// Returns the next line, `None` after the last. May be cancelled: no bytes are lost. Fails if
    /// the file cannot be read.
    pub(super) async fn next(&mut self) -> io::Result<Option<FileLine>> {
        loop {
            let buffer = self.input.fill_buf().await?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let is_end_of_file = buffer.is_empty();
            self.is_too_long |= self.partial.len() + part.len() > MAX_BODY_BYTES;
            if self.is_too_long {
                self.partial = Vec::new();
            } else {
                self.partial.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_none() && !is_end_of_file {
                continue;
            }
            self.number += 1;
            let content = std::mem::take(&mut self.partial);
            if std::mem::take(&mut self.is_too_long) {
                return Ok(Some(FileLine { number: self.number, content: None }));
            }
            if !content.trim_ascii().is_empty() {
                return Ok(Some(FileLine { number: self.number, content: Some(content) }));
            }
            if is_end_of_file {
                return Ok(None);
            }
        }
    }
}

/// A file that was read once, at its beginning again.
pub(super) struct DigestedFile {
    pub(super) file: File,
    /// Of its content, in hexadecimal digits.
    pub(super) digest: String,
    pub(super) lines: u64,
}

/// Reads a file to its end. Copies a pipe to a temporary file. Fails if it cannot be read.
pub(super) fn digest(path: &Path) -> io::Result<DigestedFile> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        let mut copy = tempfile::tempfile()?;
        io::copy(&mut file, &mut copy)?;
        copy.rewind()?;
        file = copy;
    }
    let (mut hash, mut lines, mut last) = (Sha256::new(), 0, b'\n');
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = &buffer[..read];
        hash.update(bytes);
        lines += bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        last = bytes[read - 1];
    }
    lines += u64::from(last != b'\n');
    file.rewind()?;
    Ok(DigestedFile { file, digest: digits(hash, FILE_DIGITS), lines })
}

/// What a line says about its identity.
#[derive(Deserialize)]
struct Identity {
    #[serde(default, deserialize_with = "field")]
    order_id: Field,
    #[serde(default, deserialize_with = "field")]
    idempotency_key: Field,
}

#[derive(Default, PartialEq, Eq)]
enum Field {
    #[default]
    Missing,
    Null,
    Given,
}

fn field<'de, D: Deserializer<'de>>(value: D) -> Result<Field, D::Error> {
    let given = Option::<IgnoredAny>::deserialize(value)?;
    Ok(given.map_or(Field::Null, |_| Field::Given))
}

/// Returns the line with an `idempotency_key`, unless it has an `order_id` or a key of its own. The
/// key consists of the prefix, the number of the line, and a digest of its content. Returns a line
/// that is no JSON object unchanged: ingest refuses it.
pub(super) fn with_identity(line: &[u8], number: u64, prefix: &str) -> Bytes {
    let line = line.trim_ascii();
    let unchanged = || Bytes::copy_from_slice(line);
    let Some(fields) = line.strip_prefix(b"{") else { return unchanged() };
    let Ok(identity) = serde_json::from_slice::<Identity>(line) else { return unchanged() };
    let found = [identity.order_id, identity.idempotency_key];
    if found.contains(&Field::Given) {
        return unchanged();
    }
    let key = format!("{prefix}.{number}.{}", digits(Sha256::new_with_prefix(line), LINE_DIGITS));
    if found.contains(&Field::Null) {
        let Ok(Value::Object(mut order)) = serde_json::from_slice(line) else { return unchanged() };
        order.remove("order_id");
        order.insert("idempotency_key".to_owned(), key.into());
        return Value::Object(order).to_string().into();
    }
    let separator = if fields.trim_ascii_start().starts_with(b"}") { "" } else { "," };
    let begin = format!("{{\"idempotency_key\":{}{separator}", Value::from(key));
    [begin.as_bytes(), fields].concat().into()
}

fn digits(hash: Sha256, count: usize) -> String {
    let mut text = String::new();
    for byte in hash.finalize() {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(count);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identified(line: &str, number: u64) -> String {
        let bytes = with_identity(line.as_bytes(), number, "p");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[test]
    fn a_line_without_an_identity_gets_a_key_of_its_place_and_content() {
        let first = identified(" {\"lines\":[]}\r", 7);
        let key = "\"idempotency_key\":\"p.7.";

        assert!(first.starts_with(&format!("{{{key}")), "{first}");
        assert!(first.ends_with("\",\"lines\":[]}"), "{first}");
        assert_eq!(first, identified("{\"lines\":[]}", 7));
        assert_ne!(first, identified("{\"lines\":[]}", 8));
        assert_ne!(first[..40], identified("{\"lines\":[ ]}", 7)[..40]);
        assert!(identified("{ }", 7).ends_with("\" }"));
        let of_null = identified("{\"order_id\":null,\"lines\":[]}", 7);
        assert!(of_null.contains(key) && !of_null.contains("order_id"), "{of_null}");
    }

    #[test]
    fn a_line_with_an_identity_or_without_an_object_is_sent_unchanged() {
        for line in [
            "{\"order_id\":\"x\",\"lines\":[]}",
            "{\"idempotency_key\":\"k\"}",
            "{\"order_id\":null,\"idempotency_key\":\"k\"}",
            "{",
            "[1]",
            "{\"a\":1} {}",
        ] {
            assert_eq!(identified(line, 1), line);
        }
    }

    #[tokio::test]
    async fn a_line_beyond_the_bound_is_counted_and_not_kept() {
        let named = tempfile::NamedTempFile::new().expect("a file");
        let long = "x".repeat(MAX_BODY_BYTES + 1);
        std::fs::write(named.path(), format!("a\n\n{long}\nb")).expect("written");
        let digested = digest(named.path()).expect("read");
        let mut lines = FileLines::new(digested.file);
        let mut found = Vec::new();

        while let Some(line) = lines.next().await.expect("a line") {
            found.push((line.number, line.content));
        }

        let expected = [(1, Some(b"a".to_vec())), (3, None), (4, Some(b"b".to_vec()))];
        assert_eq!((found, digested.lines), (expected.to_vec(), 4));
    }
}
