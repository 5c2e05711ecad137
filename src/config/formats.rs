//! What the text of a value may be, where its type alone does not say it. Each fails with what is
//! wrong, without the value.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use super::SecretUrl;

const MAX_TOPIC_BYTES: usize = 249;
const REDIS_PORT: u16 = 6379;
const MYSQL_PARAMETERS: &str = "ssl-mode, ssl-ca, ssl-cert, ssl-key, charset, collation, statement-cache-capacity, socket, timezone";

/// `host:port`, comma separated. Without a port it is Kafka's own, 9092. Empty entries are dropped.
pub(super) fn brokers(text: &str) -> Result<String, String> {
    let brokers: Vec<_> =
        text.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
    if brokers.is_empty() {
        return Err("names no broker; one reads host:port".to_owned());
    }
    for &broker in &brokers {
        // librdkafka takes a protocol before each.
        let address = broker.split_once("://").map_or(broker, |(_, address)| address);
        let is_bare_ipv6 = address.ends_with(']');
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !is_bare_ipv6 => (host, port),
            _ => (address, "9092"),
        };
        if Host::parse(host).is_err() || !port.parse().is_ok_and(|port: u16| port > 0) {
            return Err(format!("{broker:?} is no broker; one reads host:port"));
        }
    }
    Ok(brokers.join(","))
}

/// What Kafka takes as a topic's name.
pub(super) fn topic(text: &str) -> Result<String, String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=MAX_TOPIC_BYTES).contains(&text.len())
        && text.bytes().all(is_legal)
        && ![".", ".."].contains(&text)
    {
        return Ok(text.to_owned());
    }
    Err(format!(
        "is no topic's name: 1 to {MAX_TOPIC_BYTES} letters, digits, dots, underscores and hyphens"
    ))
}

/// One of some words, however it is capitalised. Answers it as it is listed.
pub(super) fn one_of(text: &str, words: &[&'static str]) -> Result<&'static str, String> {
    let found = words.iter().find(|word| word.eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| format!("is none of {}", words.join(", ")))
}

/// The address of an HTTP API, without a slash at its end.
pub(super) fn http_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if !["http", "https"].contains(&url.scheme())
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("is no URL such as http://127.0.0.1:8080".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// `mysql://USER:PASSWORD@HOST:PORT/DATABASE?ssl-mode=…`
pub(super) fn mysql_url(text: &str) -> Result<SecretUrl, String> {
    if !text.starts_with("mysql://") {
        return Err("is not a mysql:// URL".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let has = |parameter: &str| url.query_pairs().any(|(name, _)| name == parameter);
    if url.host_str().is_none_or(str::is_empty) && !has("socket") {
        return Err("names no host".to_owned());
    }
    if url.port() == Some(0) {
        return Err("names port 0".to_owned());
    }
    let database = url.path().trim_start_matches('/');
    if database.is_empty() || database.contains('/') {
        return Err("names no database: mysql://USER:PASSWORD@HOST:PORT/DATABASE".to_owned());
    }
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" | "ssl-mode" => {
                one_of(
                    &value,
                    &["DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"],
                )
                .map_err(|error| format!("ssl-mode {error}"))?;
            }
            "sslca" | "ssl-ca" | "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" | "charset"
            | "collation" | "socket" | "timezone" | "time-zone" => {}
            "statement-cache-capacity" if value.parse::<usize>().is_ok() => {}
            // An unknown one would be ignored: ssl_mode=REQUIRED would not encrypt.
            _ => {
                return Err(format!(
                    "has a parameter that is not known, {name:?}; known are {MYSQL_PARAMETERS}"
                ));
            }
        }
    }
    Ok(SecretUrl::new(text))
}

/// The files of certificates and keys that the client reads for this URL when it connects.
pub(super) fn mysql_files(url: &SecretUrl) -> Vec<PathBuf> {
    let Ok(url) = Url::parse(url.expose()) else { return Vec::new() };
    let pairs: Vec<_> = url.query_pairs().collect();
    let is = |name: &str, names: &[&str]| names.contains(&name);
    let mode = pairs.iter().rfind(|(name, _)| is(name, &["sslmode", "ssl-mode"]));
    if mode.is_some_and(|(_, mode)| mode.eq_ignore_ascii_case("DISABLED")) {
        return Vec::new();
    }
    let names = ["sslca", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];
    // The client takes a text in PEM instead of a file.
    let files = pairs
        .iter()
        .filter(|(name, value)| is(name, &names) && !value.trim().starts_with("-----BEGIN"));
    files.map(|(_, file)| PathBuf::from(&**file)).collect()
}

/// URLs of masters that are 1, 3 or 5 different servers.
pub(super) fn redis_urls(text: &str) -> Result<Vec<SecretUrl>, String> {
    let urls: Vec<_> = text.split(',').map(str::trim).collect();
    let mut servers = BTreeSet::new();
    for url in &urls {
        let server = redis_server(url)?;
        if servers.contains(&server) {
            return Err(format!("names {server} twice; masters are independent servers"));
        }
        servers.insert(server);
    }
    match urls.len() {
        1 | 3 | 5 => Ok(urls.into_iter().map(SecretUrl::new).collect()),
        n => Err(format!("names {n} masters; 1, 3 or 5 make a majority that is worth having")),
    }
}

/// The server that a URL names, written the same way however the URL writes it. A name that
/// resolves to another's address is not seen.
fn redis_server(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is no list of URLs: {error}"))?;
    if url.fragment().is_some() {
        return Err("has a URL with a #; TLS always checks the certificate".to_owned());
    }
    if ["unix", "redis+unix", "valkey+unix"].contains(&url.scheme()) {
        return Ok(url.path().to_owned());
    }
    if !["redis", "rediss", "valkey", "valkeys"].contains(&url.scheme()) {
        return Err("has a URL that is neither redis:// nor rediss://".to_owned());
    }
    let host = url.host_str().unwrap_or_default().to_lowercase();
    let database = url.path().trim_start_matches('/');
    if host.is_empty()
        || url.port() == Some(0)
        || !(database.is_empty() || database.parse::<u32>().is_ok())
    {
        return Err("has a URL that is not redis://USER:PASSWORD@HOST:PORT/NUMBER".to_owned());
    }
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    // Other loopback addresses, such as 127.0.0.2, may be servers of their own.
    let is_here = host == "localhost"
        || address.is_some_and(|address| {
            [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address)
        });
    let host = if is_here {
        "localhost".to_owned()
    } else {
        address.map_or(host, |address| address.to_string())
    };
    Ok(format!("{host}:{}", url.port().unwrap_or(REDIS_PORT)))
}

/// A level, or directives such as `info,stocklock=debug`.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A word alone that is no level would be the name of a target, and all else would be silent.
    for directive in
        text.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '[']))
    {
        one_of(directive, &LEVELS).map_err(|error| format!("{directive:?} {error}"))?;
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
