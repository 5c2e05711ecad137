//! The docs name files, pages and headings that exist. Needs no server.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The folders whose files the docs name by their path from the project's root.
const FOLDERS: [&str; 8] =
    ["src/", "docs/", "tests/", "dev/", "schemas/", "migrations/", "examples/", "helm/"];

/// The recipes of `docs/architecture.md`.
const RECIPES: [&str; 10] = [
    "an endpoint",
    "a topic",
    "a part of a value",
    "a setting",
    "a metric",
    "an alert",
    "a lock strategy",
    "an order state",
    "a role",
    "a class of dead letters",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files in a folder and below it whose name ends so.
fn files_in(folder: &str, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

/// All pages, and the map in `src/lib.rs`. The change log speaks of files of the past.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    pages.push(root().join("src/lib.rs"));
    for folder in ["docs", "examples", "helm"] {
        pages.extend(files_in(folder, ".md"));
    }
    pages
}

/// The paths within [`FOLDERS`] that a text names. Paths of other projects end in `.ts`.
fn paths_in(text: &str) -> Vec<&str> {
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || "_-./*".contains(c);
    text.split(|c: char| !is_of_path(c))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)))
        .filter(|word| Path::new(word).extension() != Some("ts".as_ref()))
        .collect()
}

/// Whether a path exists; a `*` stands for any name.
fn exists(path: &str) -> bool {
    match path.split_once('*') {
        Some((folder, ending)) if !ending.contains('*') => !files_in(folder, ending).is_empty(),
        Some(_) => false,
        None => root().join(path).exists(),
    }
}

/// The targets of a page's links.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|heading| heading.chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// The files that a recipe names.
fn recipe<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let heading = format!("\n### To add {name}\n");
    let (_, rest) = page.split_once(&heading).unwrap_or_else(|| panic!("no recipe {heading:?}"));
    paths_in(rest.split("\n#").next().unwrap_or(rest))
}

#[test]
fn every_path_that_a_page_names_exists() {
    for page in pages() {
        let text = read(&page);
        for path in paths_in(&text) {
            assert!(exists(path), "{} names {path}, which does not exist", page.display());
        }
    }
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    for page in pages().iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let text = read(page);
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = page.parent().expect("a folder");
            let target = if file.is_empty() { page.clone() } else { folder.join(file) };
            assert!(target.exists(), "{} links to {link}: no such file", page.display());
            let found = anchor.is_empty() || anchors(&read(&target)).iter().any(|a| a == anchor);
            assert!(found, "{} links to {link}: no such heading", page.display());
        }
    }
}

#[test]
fn every_recipe_names_the_files_to_change() {
    let page = read(&root().join("docs/architecture.md"));

    for name in RECIPES {
        let files = recipe(&page, name);
        assert!(files.len() >= 3, "the recipe for {name} names {files:?} alone");
        for file in files {
            assert!(exists(file), "the recipe for {name} names {file}, which does not exist");
        }
    }
}

/// The names of the alerts of the chart.
fn alerts() -> BTreeSet<String> {
    let rules: Vec<_> = files_in("helm/stocklock/rules", ".yaml").iter().map(|f| read(f)).collect();
    let names = rules.iter().flat_map(|text| text.lines());
    names.filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn each_alert_has_a_section_of_the_run_book_and_each_section_an_alert() {
    let page = read(&root().join("docs/runbook.md"));

    let headings = page.lines().filter_map(|line| line.strip_prefix("### "));

    assert!(alerts().len() > 20, "only {:?}", alerts());
    assert_eq!(headings.map(str::to_owned).collect::<BTreeSet<_>>(), alerts());
}

#[test]
fn each_alert_links_to_its_own_section_of_the_run_book() {
    let rules: String =
        files_in("helm/stocklock/rules", ".yaml").iter().map(|file| read(file)).collect();

    for alert in alerts() {
        let (_, rest) = rules.split_once(&format!("- alert: {alert}\n")).expect("the alert");
        let (_, url) = rest.split_once("runbook_url: ").expect("a link");
        let anchor = format!("/docs/runbook.md#{}", alert.to_lowercase());
        let url = url.lines().next().expect("a URL");
        assert!(url.ends_with(&anchor), "{alert} links to {url}");
    }
}

#[test]
fn paths_and_anchors_are_found_in_a_text() {
    let text =
        "see `src/lib.rs`, [a](docs/a.md#b) and schemas/*.avsc. Not resources/x.\n## A, b: c\n";

    assert_eq!(paths_in(text), ["src/lib.rs", "docs/a.md", "schemas/*.avsc"]);
    assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md#b"]);
    assert_eq!(anchors(text), ["a-b-c"]);
}
