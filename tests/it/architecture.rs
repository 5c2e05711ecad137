//! The house rules that a machine can check: which room may use which, and how large a room may be.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The floors of the house, from the ground up. A room uses rooms of its own floor or of a lower
/// one.
const FLOORS: [&[&str]; 5] = [
    &["domain"],
    // `reader_fuzz` is part of the unit tests alone.
    &[
        "reader_fuzz",
        "backoff",
        "config",
        "crash_point",
        "error_text",
        "finding",
        "http",
        "lifecycle",
        "log_limiter",
        "new_ids",
        "pem",
        "tls_advice",
        "trust",
        "watched_files",
    ],
    &["kafka", "lock", "registry", "store", "telemetry", "wire"],
    &["compensate", "deduct", "ingest", "letters", "levels", "relay", "retention", "verify"],
    // `reference` is part of the unit tests alone.
    &["commands", "reference"],
];

/// What only the rooms named may use; a path within `src`, or the beginning of one.
const RESERVED: [(&str, &[&str]); 7] = [
    ("sqlx", &["store/"]),
    ("rslock", &["lock/"]),
    ("redis::", &["lock/"]),
    ("rustls::", &["lock/", "http/", "tls_advice.rs", "trust.rs"]),
    ("opentelemetry", &["telemetry/traces/"]),
    ("axum", &["ingest/", "telemetry/", "http/"]),
    (
        "std::env",
        &["config/", "commands/", "main.rs", "crash_point.rs", "reference/", "reader_fuzz/"],
    ),
];

/// A source file: its path within `src`, and its text without comments.
struct Source {
    path: String,
    lines: usize,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let (lines, code) = (text.lines().count(), code.collect::<Vec<_>>().join("\n"));
                let path = path.strip_prefix(&root).expect("within src").display().to_string();
                found.push(Source { path, lines, code });
            }
        }
    }
    assert!(found.len() > 40, "the sources are not where they were");
    found
}

impl Source {
    /// The room that a file belongs to: its folder, or itself.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// The rooms that it names as `crate::room` or within `crate::{…}`.
    fn uses(&self) -> BTreeSet<String> {
        let mut rooms = BTreeSet::new();
        for rest in self.code.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(group) => rooms.extend(heads(group)),
                None => rooms.extend(name(rest)),
            }
        }
        rooms
    }
}

/// The first name of each item of a group `a::{b, c}, d}`, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut at_head, mut heads) = (0, true, Vec::new());
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            character if at_head && !character.is_whitespace() => {
                heads.extend(name(&group[index..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn rooms_use_rooms_of_their_own_floor_or_of_a_lower_one() {
    for source in sources().iter().filter(|source| !["main", "lib"].contains(&source.room())) {
        let own = floor(source.room())
            .unwrap_or_else(|| panic!("src/{} is a room without a floor", source.path));
        for used in source.uses() {
            let Some(theirs) = floor(&used) else {
                panic!("src/{} uses {used}, a room without a floor", source.path)
            };
            assert!(
                theirs <= own,
                "src/{}, on floor {own}, uses {used}, on floor {theirs}",
                source.path
            );
        }
    }
}

#[test]
fn the_reader_of_imports_sees_every_form_of_them() {
    let code = "use crate::{config, domain::{A, b::C},\n    wire::D,\n};\n\
                use crate::store::E;\ncrate::lock::f();";
    let source = Source { path: "relay/mod.rs".into(), lines: 5, code: code.into() };

    let uses: Vec<_> = source.uses().into_iter().collect();

    assert_eq!(uses, ["config", "domain", "lock", "store", "wire"]);
    assert_eq!(source.room(), "relay");
}

#[test]
fn the_domain_is_pure() {
    for source in sources().iter().filter(|source| source.room() == "domain") {
        for impure in [
            "tokio",
            "sqlx",
            "rdkafka",
            "redis",
            "rslock",
            "axum",
            "reqwest",
            "async ",
            ".await",
            "std::fs",
            "std::net",
            "Utc::now",
            "Instant::now",
            "fastrand",
            "now_v7",
        ] {
            assert!(!source.code.contains(impure), "src/{} has {impure}", source.path);
        }
    }
}

#[test]
fn each_outside_thing_has_one_home() {
    for source in sources() {
        for (thing, homes) in RESERVED {
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            assert!(
                at_home || !source.code.contains(thing),
                "src/{} uses {thing}, whose home is {homes:?}",
                source.path
            );
        }
    }

    for (thing, homes) in RESERVED {
        let used = sources().iter().any(|source| source.code.contains(thing));
        assert!(used, "nobody uses {thing} any more, not even {homes:?}");
    }
}

#[test]
fn no_source_file_has_400_lines() {
    for source in sources() {
        assert!(source.lines < 400, "src/{} has {} lines", source.path, source.lines);
    }
}
