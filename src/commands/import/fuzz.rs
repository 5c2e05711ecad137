//! Fuzzes the reader of files of orders.

use std::io::Write as _;

use serde_json::Value;

use super::lines::{FileLines, digest, with_identity};
use crate::reader_fuzz::fuzz;

const PREFIX: &str = "p";

/// What the line says beside the fields that name it.
fn order(line: &[u8]) -> Option<Value> {
    let mut order: Value = serde_json::from_slice(line).ok()?;
    let fields = order.as_object_mut()?;
    fields.retain(|name, _| !["order_id", "idempotency_key"].contains(&name.as_str()));
    Some(order)
}

#[test]
fn lines_of_a_file_keep_their_content() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    fuzz("import_lines", |bytes| {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        let digested = digest(named.path()).unwrap();
        let (mut lines, mut last, mut shown) = (FileLines::new(digested.file), 0, String::new());
        while let Some(line) = runtime.block_on(lines.next()).unwrap() {
            assert!(line.number > last && line.number <= digested.lines);
            last = line.number;
            let Some(content) = line.content else { continue };
            let sent = with_identity(&content, line.number, PREFIX);
            assert!(!sent.contains(&b'\n'), "a line of its own");
            assert_eq!(order(&sent), order(&content));
            let is_same = *sent == *content.trim_ascii();
            shown.push_str(if is_same { "as it was, " } else { "with a key, " });
        }
        shown
    });
}
