//! Fuzzes the reader of a registry's answers.

use reqwest::StatusCode;

use super::client::{Compatibility, FoundSchema, Id, RegisteredSchema, RegistryError, read};
use crate::{error_text, reader_fuzz::fuzz, wire::WriterSchema};

/// The statuses that a registry answers with.
const STATUSES: [StatusCode; 5] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::NOT_FOUND,
    StatusCode::CONFLICT,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
];

fn shown<T>(result: Result<T, RegistryError>) -> String {
    result.map_or_else(|error| error_text::with_causes(&error), |_| "read".to_owned())
}

#[test]
fn answers_of_a_registry_are_read_or_refused() {
    fuzz("registry_answer", |body| {
        let found = read::<FoundSchema>(StatusCode::OK, body);
        let parsed = found.as_ref().ok().map(|found| {
            let parsed = WriterSchema::parse("id 7", Some(7), &found.schema);
            parsed.map_or_else(|error| error.to_string(), |_| "a schema".to_owned())
        });
        let mut results = vec![
            shown(found),
            shown(read::<RegisteredSchema>(StatusCode::OK, body)),
            shown(read::<Vec<u32>>(StatusCode::OK, body)),
            shown(read::<Id>(StatusCode::OK, body)),
            shown(read::<Compatibility>(StatusCode::OK, body)),
        ];
        results.extend(STATUSES.map(|status| {
            let refused = read::<Id>(status, body);
            assert!(refused.is_err());
            shown(refused)
        }));
        results.extend(parsed);
        results.concat()
    });
}
