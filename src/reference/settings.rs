use std::fmt::Write as _;

use super::{check_page, code, table};
use crate::config::{KEYS, Key};

#[test]
fn the_page_of_settings_is_the_list_of_keys() {
    let mut body =
        "A setting comes from the defaults, then from the TOML file of `--config`, then \
from the\nenvironment, then from `--set`. The last one wins. An empty default means: not set.\n"
            .to_owned();
    let mut sections: Vec<_> = KEYS.iter().map(section).collect();
    sections.dedup();
    for name in sections {
        let keys = KEYS.iter().filter(|key| section(key) == name);
        let rows = keys.map(|key| {
            [
                code(key.name),
                code(&key.environment_name()),
                code(key.default),
                bounds(key),
                key.help.to_owned(),
            ]
        });
        let head = ["setting", "environment variable", "default", "values", "meaning"];
        write!(body, "\n## {name}\n\n{}", table(head, rows)).unwrap();
    }

    check_page("settings.md", "Settings", "src/config/keys/list.rs", &body);
}

/// The values that a key takes, and its relation to other keys.
fn bounds(key: &Key) -> String {
    if key.rule.is_empty() {
        key.allowed.to_string()
    } else {
        format!("{}; {}", key.allowed, key.rule)
    }
}

fn section(key: &Key) -> &'static str {
    key.name.split('.').next().unwrap_or(key.name)
}
