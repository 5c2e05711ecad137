use std::time::Duration;

use super::*;
use crate::config::{Config, ConfigError, Layers, formats};

/// Whether the bounds of the list refuse a value of a key, whatever other keys say.
fn is_out_of_bounds(key: &Key, value: &str) -> bool {
    // With these, no relation to another key is narrower than the key's own bounds.
    let tested = format!("{}={value}", key.name);
    let flags = ["lock.ttl=10m", "topics.retention=1m", "retention.orders=3650d", &tested];
    let layers = Layers::read(None, std::iter::empty(), &flags.map(str::to_owned));
    let errors = match Config::resolve(&layers) {
        Ok(_) => return false,
        Err(ConfigError(errors)) => errors,
    };
    let begin = format!("{} = {value:?} (flag): expected ", key.name);
    errors.iter().any(|error| error.starts_with(&begin) && error.contains(&key.allowed.to_string()))
}

/// Values at the bounds of a key, and values just beyond them.
fn edges(key: &Key) -> (Vec<String>, Vec<String>) {
    let millis = Duration::from_millis(1);
    let texts = |times: Vec<Duration>| times.into_iter().map(formats::short_duration).collect();
    match key.allowed {
        Allowed::Number { min, max, .. } => (
            [min, max].map(|number| number.to_string()).to_vec(),
            [min - 1, max + 1].map(|number| number.to_string()).to_vec(),
        ),
        Allowed::Time { min, max } => {
            let below = min.checked_sub(millis);
            (texts(vec![min, max]), texts(below.into_iter().chain([max + millis]).collect()))
        }
        Allowed::Word(words) => {
            (words.iter().map(ToString::to_string).collect(), vec!["nonsense".to_owned()])
        }
        Allowed::Form(_) => (Vec::new(), Vec::new()),
    }
}

#[test]
fn every_bound_of_the_list_is_enforced() {
    for key in KEYS {
        let (inside, outside) = edges(key);

        for value in inside {
            assert!(!is_out_of_bounds(key, &value), "{} = {value}", key.name);
        }
        for value in outside {
            assert!(is_out_of_bounds(key, &value), "{} = {value}", key.name);
        }
    }
}
