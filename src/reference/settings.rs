use super::{check_page, code, table};
use crate::config::KEYS;

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
            [code(key.name), code(&key.environment_name()), code(key.default), key.help.to_owned()]
        });
        let head = ["setting", "environment variable", "default", "meaning"];
        body += &format!("\n## {name}\n\n{}", table(head, rows));
    }

    check_page("settings.md", "Settings", "src/config/keys.rs", &body);
}

fn section(key: &crate::config::Key) -> &'static str {
    key.name.split('.').next().unwrap_or(key.name)
}
