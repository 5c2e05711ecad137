//! The names in a query of Prometheus.

use std::collections::BTreeSet;

/// The keywords that are followed by a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const KEYWORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// The names in a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Each metric with its matchers, such as `up{job="a"}`.
    pub selectors: BTreeSet<String>,
    /// The labels by which results are grouped or joined.
    pub labels: BTreeSet<String>,
}

/// Finds the names in a query that Prometheus can parse.
pub(super) fn names_in(query: &str) -> Names {
    let (mut names, mut rest) = (Names::default(), query);
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            rest = after_string(rest);
        } else if first == '[' {
            rest = rest.split_once(']').map_or("", |(_, after)| after);
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if is_of_name(first) {
            rest = after_word(rest, &mut names);
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// What follows the string with which a text begins. The queries have no quotation marks in
/// strings.
fn after_string(text: &str) -> &str {
    let quote = &text[..1];
    text[1..].split_once(quote).map_or("", |(_, after)| after)
}

/// Notes the names of the word with which a text begins, and returns what follows.
fn after_word<'a>(text: &'a str, names: &mut Names) -> &'a str {
    let (word, rest) = text.split_at(text.find(|c| !is_of_name(c)).unwrap_or(text.len()));
    let follows = rest.trim_start();
    if BEFORE_LABELS.contains(&word) {
        let (labels, rest) =
            follows.strip_prefix('(').and_then(|list| list.split_once(')')).unwrap_or(("", rest));
        let labels = labels.split(',').map(|label| label.trim().to_owned());
        names.labels.extend(labels.filter(|label| !label.is_empty()));
        return rest;
    }
    // Anything else before a bracket is a function or an aggregation, such as `sum by (a) (b)`.
    let is_call = follows.starts_with('(') || BEFORE_LABELS.contains(&first_word(follows));
    if is_call || KEYWORDS.contains(&word.to_lowercase().as_str()) {
        return rest;
    }
    let matchers = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'));
    let (matchers, rest) = matchers
        .map_or_else(|| (String::new(), rest), |(own, after)| (format!("{{{own}}}"), after));
    names.selectors.insert(format!("{word}{matchers}"));
    rest
}

fn first_word(text: &str) -> &str {
    text.split(|c| !is_of_name(c)).next().unwrap_or_default()
}

#[test]
fn the_names_of_a_query_are_found() {
    let query = "label_replace(absent(a), \"x\", \"b\", \"\", \"\")\n\
                 or sum by (c, le) (rate(d{e=~\"f.*\"}[5m])) / on (g) h:i > 1.5e3 and j";

    let names = names_in(query);

    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let selectors = texts(&["a", "d{e=~\"f.*\"}", "h:i", "j"]);
    assert_eq!(names, Names { selectors, labels: texts(&["c", "le", "g"]) });
}
