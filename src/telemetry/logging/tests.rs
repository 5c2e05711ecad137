use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use serde_json::json;

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum Kind {
    Alpha,
    Beta,
}

/// The fields of a log line without its time.
fn logged(log: impl FnOnce()) -> Value {
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .event_format(JsonLines)
        .with_writer(move || written.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, log);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let mut line: Value = serde_json::from_str(&text).unwrap();
    let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(time.as_str().unwrap()).is_ok(), "{time}");
    line
}

#[test]
fn lists_are_arrays_in_json() {
    let line = logged(|| {
        let (partitions, none): (Vec<i32>, [u8; 0]) = (vec![1, 2], []);
        let (names, kinds) = (["a,\n b", "[c]"], [Kind::Alpha, Kind::Beta]);
        tracing::info!(?partitions, ?none, ?names, ?kinds, "assigned");
    });

    let expected = json!({
        "level": "INFO", "message": "assigned", "partitions": [1, 2], "none": [],
        "names": ["a,\n b", "[c]"], "kinds": ["Alpha", "Beta"], "target": line["target"],
    });
    assert_eq!(line, expected);
}

#[test]
fn other_values_than_lists_are_unchanged() {
    let line = logged(|| {
        let nested = vec![vec![1], vec![2]];
        let address = "[::1]";
        let text = "[1, 2]";
        let (number, count, yes, kind) = (1.5, 3, true, Kind::Beta);
        tracing::warn!(?nested, %address, text, number, count, yes, ?kind, "[x] y");
    });

    let expected = json!({
        "level": "WARN", "message": "[x] y", "nested": "[[1], [2]]", "address": "[::1]",
        "text": "[1, 2]", "number": 1.5, "count": 3, "yes": true, "kind": "Beta",
        "target": line["target"],
    });
    assert_eq!(line, expected);
}
