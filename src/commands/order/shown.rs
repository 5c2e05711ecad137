//! Prints an answer of the API.

use serde_json::{Map, Value};

use crate::commands::Output;

/// Members that are printed first, in this order.
const FIRST: [&str; 5] = ["order_id", "order_status", "status", "reason", "expires_at"];

/// Prints one line per member of an object, or the JSON itself.
pub(super) fn print(body: &Value, output: Output) {
    match (output, body) {
        (Output::Text, Value::Object(members)) => print_members(members),
        _ => println!("{body}"),
    }
}

fn print_members(members: &Map<String, Value>) {
    let first = FIRST.into_iter().filter_map(|name| members.get_key_value(name));
    let others = members.iter().filter(|(name, _)| !FIRST.contains(&name.as_str()));
    for (name, value) in first.chain(others) {
        // The type of a problem document without one of its own.
        if value != "about:blank" {
            println!("{name:12} {}", text(value));
        }
    }
}

/// A list of lines as `order place` takes them, a list of errors with their places, or the value.
fn text(value: &Value) -> String {
    let Value::Array(items) = value else { return plain(value) };
    let pairs = |left: &str, right: &str, between: &str| {
        let pair = |item: &Value| {
            Some(format!("{}{between}{}", plain(item.get(left)?), plain(item.get(right)?)))
        };
        items.iter().map(pair).collect::<Option<Vec<_>>>()
    };
    if let Some(lines) = pairs("product_id", "quantity", "=") {
        return lines.join(" ");
    }
    match pairs("pointer", "detail", ": ") {
        Some(errors) => errors.join("; "),
        None => value.to_string(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
