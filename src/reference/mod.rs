//! The pages of `docs/reference/`. Tests write them from the lists in the code, and fail if a page
//! is stale. Nothing of this module is in the binary.
//!
//! `STOCKLOCK_WRITE_DOCS=1 cargo test --lib reference` writes the pages anew.

mod dead_letters;
mod metrics;
mod settings;
mod tables;
mod topics;

use std::{fmt::Write as _, path::Path};

/// Asserts that a page of `docs/reference/` is `body` below its heading, or writes the page.
/// `source` is the file that has the list.
fn check_page(name: &str, title: &str, source: &str, body: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(root.join(source).exists(), "{source}, the source of {name}, does not exist");
    let page = format!(
        "# {title}\n\nThis page is generated from `{source}`.\nAfter a change there, write it \
         anew: `STOCKLOCK_WRITE_DOCS=1 cargo test --lib reference`\n\n{body}"
    );
    let path = root.join("docs/reference").join(name);
    if std::env::var_os("STOCKLOCK_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/reference/{name} differs from {source}; write it anew: \
         STOCKLOCK_WRITE_DOCS=1 cargo test --lib reference"
    );
}

/// A Markdown table. The cells' own bars are escaped.
fn table<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), " --- |".repeat(COLUMNS));
    for row in rows {
        let cells = row.map(|cell| cell.replace('|', "\\|"));
        writeln!(text, "| {} |", cells.join(" | ")).unwrap();
    }
    text
}

/// A text as code, or nothing for the empty text.
fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}
