//! Forms of values that a type alone does not describe. Each parser fails with what it expected
//! and what it found. The error never contains the whole value, which may hold a password.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use super::{
    Allowed, ListenConfig, SecretUrl,
    insecure::{is_local, mysql_ssl_mode},
};
use crate::pem;

const MAX_TOPIC_BYTES: usize = 249;
pub(super) const REDIS_PORT: u16 = 6379;
const MYSQL_PARAMETERS: &str = "ssl-mode, ssl-ca, ssl-cert, ssl-key, charset, collation, \
                                statement-cache-capacity, socket, timezone";

const SSL_MODES: [&str; 5] = ["DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"];
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Parses `HOST:PORT` entries, comma separated, and drops empty ones. The default port is 9092.
pub(super) fn brokers(text: &str) -> Result<String, String> {
    let brokers: Vec<_> =
        text.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
    if brokers.is_empty() {
        return Err("expected HOST:PORT, found no broker".to_owned());
    }
    for &broker in &brokers {
        // librdkafka accepts a protocol in front, such as SASL_SSL://.
        let address = broker.split_once("://").map_or(broker, |(_, address)| address);
        let is_bare_ipv6 = address.ends_with(']');
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !is_bare_ipv6 => (host, port),
            _ => (address, "9092"),
        };
        if Host::parse(host).is_err() || !port.parse().is_ok_and(|port: u16| port > 0) {
            return Err(format!("expected HOST:PORT, found {broker:?}"));
        }
    }
    Ok(brokers.join(","))
}

/// Parses a topic's name by the rules of Kafka.
pub(super) fn topic(text: &str) -> Result<String, String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=MAX_TOPIC_BYTES).contains(&text.len())
        && text.bytes().all(is_legal)
        && ![".", ".."].contains(&text)
    {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected a topic's name: \
         1 to {MAX_TOPIC_BYTES} ASCII letters, digits, dots, underscores and hyphens"
    ))
}

/// Parses one of `words`, however it is capitalised. Returns it as `words` has it.
pub(super) fn one_of(text: &str, words: &'static [&'static str]) -> Result<&'static str, String> {
    let found = words.iter().find(|word| word.eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| format!("expected {}", Allowed::Word(words)))
}

/// Parses the URL of an HTTP API, and drops a slash at its end.
pub(super) fn http_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("expected a URL: {error}"))?;
    if !["http", "https"].contains(&url.scheme())
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("expected a URL such as http://127.0.0.1:8080".to_owned());
    }
    Ok(plain_scheme(text, &url).trim_end_matches('/').to_owned())
}

/// The URL, beginning with its scheme in lower case and `://`: users of it look for `http://`.
/// A text that begins so stays as it was written.
fn plain_scheme(text: &str, url: &Url) -> String {
    let is_plain = text.starts_with(&format!("{}://", url.scheme()));
    if is_plain { text.to_owned() } else { url.to_string() }
}

/// Parses a URL from which keys or tokens come. Refuses a connection that others could change or
/// read on its way.
pub(super) fn protected_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("expected a URL: {error}"))?;
    // Logs show the URL.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without credentials".to_owned());
    }
    match url.scheme() {
        "https" => Ok(plain_scheme(text, &url)),
        "http" if is_local(&url) => Ok(plain_scheme(text, &url)),
        _ => Err("expected an https:// URL, or an http:// URL of a loopback address".to_owned()),
    }
}

/// The URL of a token endpoint.
pub(super) fn token_url(text: &str) -> Result<String, String> {
    let url = protected_url(text)?;
    if url.contains('#') { Err("expected a URL without #".to_owned()) } else { Ok(url) }
}

/// Parses `mysql://USER:PASSWORD@HOST:PORT/DATABASE?ssl-mode=…`. Fails on a parameter that the
/// client would ignore.
pub(super) fn mysql_url(text: &str) -> Result<SecretUrl, String> {
    if !text.starts_with("mysql://") {
        return Err("expected a mysql:// URL".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("expected a URL: {error}"))?;
    let has = |parameter: &str| url.query_pairs().any(|(name, _)| name == parameter);
    if url.host_str().is_none_or(str::is_empty) && !has("socket") {
        return Err("expected a host in the URL, or the parameter socket".to_owned());
    }
    if url.port() == Some(0) {
        return Err("expected a port from 1 to 65535, found 0".to_owned());
    }
    let database = url.path().trim_start_matches('/');
    if database.is_empty() || database.contains('/') {
        return Err("expected one database: mysql://USER:PASSWORD@HOST:PORT/DATABASE".to_owned());
    }
    if (has("ssl-cert") || has("sslcert")) != (has("ssl-key") || has("sslkey")) {
        return Err("expected ssl-cert and ssl-key together, or neither".to_owned());
    }
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" | "ssl-mode" => {
                one_of(&value, &SSL_MODES).map_err(|error| format!("ssl-mode: {error}"))?;
            }
            "sslca" | "ssl-ca" | "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" | "charset"
            | "collation" | "socket" | "timezone" | "time-zone" => {}
            "statement-cache-capacity" if value.parse::<usize>().is_ok() => {}
            // The client ignores an unknown parameter: ssl_mode=REQUIRED would not encrypt.
            _ => {
                return Err(format!(
                    "unknown parameter {name:?}; expected one of {MYSQL_PARAMETERS}"
                ));
            }
        }
    }
    Ok(SecretUrl::new(text))
}

/// The files of certificates and keys that the client of this URL reads when it connects.
pub(super) fn mysql_files(url: &SecretUrl) -> Vec<PathBuf> {
    let Ok(url) = Url::parse(url.expose()) else { return Vec::new() };
    let pairs: Vec<_> = url.query_pairs().collect();
    if mysql_ssl_mode(&url).as_deref() == Some("DISABLED") {
        return Vec::new();
    }
    let names = ["sslca", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];
    // The client accepts PEM text in the place of a file.
    let files = pairs
        .iter()
        .filter(|(name, value)| names.contains(&&**name) && !pem::has_section(value.as_bytes()));
    files.map(|(_, file)| PathBuf::from(&**file)).collect()
}

/// Parses URLs of 1, 3 or 5 different Redis masters, comma separated.
pub(super) fn redis_urls(text: &str) -> Result<Vec<SecretUrl>, String> {
    let urls: Vec<_> = text.split(',').map(str::trim).collect();
    let mut servers = BTreeSet::new();
    for url in &urls {
        let server = redis_server(url)?;
        if servers.contains(&server) {
            return Err(format!("expected independent masters, but {server} is listed twice"));
        }
        servers.insert(server);
    }
    match urls.len() {
        1 | 3 | 5 => Ok(urls.into_iter().map(SecretUrl::new).collect()),
        n => Err(format!("expected 1, 3 or 5 masters, found {n}")),
    }
}

/// The server of a Redis URL in one canonical form. Names are not resolved, so two names of one
/// server look like two servers.
fn redis_server(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("expected a list of URLs: {error}"))?;
    if url.fragment().is_some() {
        return Err("expected a URL without #: TLS always verifies the certificate".to_owned());
    }
    if ["unix", "redis+unix", "valkey+unix"].contains(&url.scheme()) {
        return Ok(url.path().to_owned());
    }
    if !["redis", "rediss", "valkey", "valkeys"].contains(&url.scheme()) {
        return Err("expected a redis:// or rediss:// URL".to_owned());
    }
    let host = url.host_str().unwrap_or_default().to_lowercase();
    let database = url.path().trim_start_matches('/');
    if host.is_empty()
        || url.port() == Some(0)
        || !(database.is_empty() || database.parse::<u32>().is_ok())
    {
        return Err("expected redis://USER:PASSWORD@HOST:PORT/NUMBER".to_owned());
    }
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    // Other loopback addresses, such as 127.0.0.2, may belong to other servers.
    let is_localhost = host == "localhost"
        || address.is_some_and(|address| {
            [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address)
        });
    let host = if is_localhost {
        "localhost".to_owned()
    } else {
        address.map_or(host, |address| address.to_string())
    };
    Ok(format!("{host}:{}", url.port().unwrap_or(REDIS_PORT)))
}

/// Parses a level, or directives such as `info,stocklock=debug`. Fails with the directive that is
/// wrong.
pub(crate) fn log_level(text: &str) -> Result<String, String> {
    for directive in text.split(',').map(str::trim) {
        let named = |error: String| format!("directive {directive:?}: {error}");
        // `EnvFilter` reads a misspelt level as a target's name, and then logs no other target.
        if !directive.contains(['=', '[']) {
            one_of(directive, &LEVELS).map_err(named)?;
        }
        EnvFilter::try_new(directive).map_err(|error| named(error.to_string()))?;
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Parses `IP:PORT`.
pub(super) fn address(text: &str) -> Result<ListenConfig, String> {
    let listen = text.parse().map_err(|_| "expected an address such as 127.0.0.1:8080")?;
    Ok(ListenConfig { listen })
}

/// Writes a duration in the largest unit that divides it, as a user writes it: `90s`, `7d`.
pub(super) fn short_duration(duration: Duration) -> String {
    const UNITS: [(u128, &str); 4] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let millis = duration.as_millis();
    let fits = |(unit, _): &(u128, &str)| millis >= *unit && millis.is_multiple_of(*unit);
    match UNITS.into_iter().find(fits) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_begins_with_its_scheme_in_lower_case() {
        for (written, read) in [
            ("http://localhost/k", "http://localhost/k"),
            ("https://ID.example.com/k/?a=1", "https://ID.example.com/k/?a=1"),
            ("HTTP://localhost/k", "http://localhost/k"),
            (" http://127.0.0.1:1/k", "http://127.0.0.1:1/k"),
            ("http:localhost/k", "http://localhost/k"),
        ] {
            assert_eq!(protected_url(written), Ok(read.to_owned()), "{written}");
        }
        assert_eq!(http_url("HTTP://Registry:8081/"), Ok("http://registry:8081".to_owned()));
        assert_eq!(http_url("http://Registry:8081/"), Ok("http://Registry:8081".to_owned()));
        assert!(protected_url("HTTP://id.example.com/k").is_err());
    }
}
