//! Keys of authentication, of limits, and of TLS between clients and ingest.

use std::time::Duration;

use super::{ANY_TEXT, BOTH_FILES, DAY, FILE, SECOND, key, number, time};
use crate::config::keys::{Allowed, BOOLEANS, Key};

const WITH_JWKS: &str = "auth.jwks_url, auth.issuer and auth.audience are set together";
const MAX_PER_SECOND: i64 = 1_000_000;
const MAX_COUNT: i64 = 1_000_000;
const MAX_BYTES: i64 = 1 << 30;

pub(super) const KEYS: &[Key] = &[
    key(
        "auth.anonymous_stock",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether clients without authentication may adjust stock where http.listen is not a \
         loopback address",
    ),
    key(
        "auth.tokens_file",
        "",
        Allowed::Form(FILE),
        "digests of the tokens that clients present, with their scopes; ingest reads the file \
         again when it changes",
    ),
    key(
        "auth.jwks_url",
        "",
        Allowed::Form("an https:// URL, or an http:// URL of a loopback address"),
        "keys (JWKS) of the provider that signs the clients' JWTs",
    )
    .with_rule(WITH_JWKS),
    key(
        "auth.jwks_ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities that sign the provider's certificate; not set: the system's",
    ),
    key(
        "auth.jwks_refresh",
        "5m",
        time(SECOND, DAY),
        "ingest reads the provider's keys again after this time",
    ),
    key("auth.issuer", "", Allowed::Form(ANY_TEXT), "issuer that a JWT must have (iss)")
        .with_rule(WITH_JWKS),
    key("auth.audience", "", Allowed::Form(ANY_TEXT), "audience that a JWT must have (aud)")
        .with_rule(WITH_JWKS),
    key(
        "auth.clock_leeway",
        "30s",
        time(Duration::ZERO, Duration::from_secs(300)),
        "the provider's clock may differ by this time from that of ingest (exp, nbf)",
    ),
    key(
        "http.tls_certificate_location",
        "",
        Allowed::Form(FILE),
        "certificate of the HTTP API and those of its authorities; not set: no TLS",
    )
    .with_rule(BOTH_FILES),
    key("http.tls_key_location", "", Allowed::Form(FILE), "private key of that certificate")
        .with_rule(BOTH_FILES),
    key(
        "http.tls_client_ca_location",
        "",
        Allowed::Form(FILE),
        "each client must have a certificate that one of these authorities has signed",
    )
    .with_rule("needs http.tls_certificate_location"),
    key(
        "limits.requests_per_second",
        "0",
        number(0, MAX_PER_SECOND, "requests"),
        "requests that ingest takes in a second, a line of a batch counts as one; 0: no limit",
    ),
    key(
        "limits.connections",
        "0",
        number(0, MAX_COUNT, "connections"),
        "most connections of the HTTP API; 0: as many as the limit of open files allows",
    ),
    key(
        "limits.principal_requests_per_second",
        "0",
        number(0, MAX_PER_SECOND, "requests"),
        "the same for each principal; 0: no limit",
    ),
    key(
        "limits.principal_connections",
        "0",
        number(0, MAX_COUNT, "connections"),
        "most connections of a principal; 0: no limit",
    ),
    key(
        "limits.principal_waiters",
        "0",
        number(0, MAX_COUNT, "requests"),
        "most requests of a principal that wait for an outcome, or watch an order; 0: no limit",
    ),
    key(
        "limits.principal_body_bytes",
        "0",
        number(0, MAX_BYTES, "bytes"),
        "most bytes that the bodies of a principal hold at a time; 0: no limit",
    ),
    key("client.token", "", Allowed::Form(ANY_TEXT), "token that the order commands present"),
    key("client.token_file", "", Allowed::Form(FILE), "file with that token")
        .with_rule("not together with client.token"),
    key(
        "client.ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities that sign the certificate of the HTTP API; not set: the system's",
    ),
];
