//! Finds out why a broker's certificate is refused. librdkafka only says that it is.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpStream, ToSocketAddrs as _},
    path::Path,
    time::Duration,
};

use openssl::{
    ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode},
    x509::{
        X509, X509VerifyResult,
        store::{X509Lookup, X509Store, X509StoreBuilder},
    },
};

use super::identity::security_setting;
use crate::config::KafkaConfig;

/// How long a broker may take to connect, and for each answer of the handshake.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The text of OpenSSL that this module explains.
const REFUSED: &str = "certificate verify failed";
/// The most names of a certificate that are shown.
const MAX_NAMES: usize = 5;

/// Why the certificate of the broker in librdkafka's line is refused, in OpenSSL's words, with the
/// names that it has. Connects to the broker. `None` if the line is about something else, or if
/// the certificate is fine by now.
pub(super) fn explain(kafka: &KafkaConfig, line: &str) -> Option<String> {
    let (host, port) = broker_of(line.contains(REFUSED).then_some(line)?)?;
    let address = (host, port).to_socket_addrs().ok()?.next()?;
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    let mut connector = SslConnector::builder(SslMethod::tls_client()).ok()?;
    let pem = security_setting(kafka, "ssl.ca.pem");
    match (pem, security_setting(kafka, "ssl.ca.location")) {
        (Some(pem), _) => connector.set_cert_store(of_pem(pem.as_bytes())?),
        // The authorities of the system, as librdkafka finds them.
        (None, None | Some("probe")) => {}
        (None, Some(location)) => connector.set_cert_store(of_location(Path::new(location))?),
    }
    // The handshake goes on after a failed check, whose result is kept. Nothing is sent after it.
    connector.set_verify(SslVerifyMode::NONE);
    let connected = connector.build().connect(host, stream).ok()?;
    let result = connected.ssl().verify_result();
    if result == X509VerifyResult::OK {
        return None;
    }
    let names = connected.ssl().peer_certificate().map(|certificate| names(&certificate));
    let names = names.filter(|names| !names.is_empty());
    let names = names.map_or(String::new(), |names| format!(", its names are {names}"));
    Some(format!("{}{names}", result.error_string()))
}

/// The broker in `ssl://HOST:PORT/ID: …` or `sasl_ssl://HOST:PORT/ID: …`.
fn broker_of(line: &str) -> Option<(&str, u16)> {
    let (_, rest) = line.split_once("ssl://")?;
    let (host, port) = rest.split('/').next()?.rsplit_once(':')?;
    Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
}

fn of_pem(pem: &[u8]) -> Option<X509Store> {
    let mut store = X509StoreBuilder::new().ok()?;
    for authority in X509::stack_from_pem(pem).ok()? {
        store.add_cert(authority).ok()?;
    }
    Some(store.build())
}

/// The authorities of a file, or of a folder whose files have names by `openssl rehash`. `None` if
/// the location cannot be read: those of the system would give another answer than librdkafka's.
fn of_location(location: &Path) -> Option<X509Store> {
    if !location.is_dir() {
        return of_pem(&fs::read(location).ok()?);
    }
    let mut store = X509StoreBuilder::new().ok()?;
    let folder = store.add_lookup(X509Lookup::hash_dir()).ok()?;
    folder.add_dir(location.to_str()?, SslFiletype::PEM).ok()?;
    Some(store.build())
}

fn names(certificate: &X509) -> String {
    let names = certificate.subject_alt_names().into_iter().flatten().take(MAX_NAMES);
    let names = names.filter_map(|name| {
        let address = || match name.ipaddress()? {
            [a, b, c, d] => Some(Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        };
        name.dnsname().map(str::to_owned).or_else(address)
    });
    names.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use openssl::{
        stack::Stack,
        x509::{X509StoreContext, X509StoreContextRef},
    };

    use super::*;

    #[test]
    fn authorities_are_those_of_the_file_or_the_folder_and_no_others() {
        let own = rcgen::generate_simple_self_signed(["b".to_owned()]).unwrap().cert.pem();
        let own = X509::from_pem(own.as_bytes()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("{:08x}.0", own.subject_name_hash()));
        fs::write(&file, own.to_pem().unwrap()).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let trusts = |store: X509Store| {
            let (mut context, chain) = (X509StoreContext::new().unwrap(), Stack::new().unwrap());
            context.init(&store, &own, &chain, X509StoreContextRef::verify_cert).unwrap()
        };

        assert!(of_location(&file).is_some_and(trusts));
        assert!(of_location(folder.path()).is_some_and(trusts));
        assert!(!of_location(empty.path()).is_some_and(trusts));
        assert!(of_location(&folder.path().join("none")).is_none());
    }

    #[test]
    fn the_broker_is_found_in_a_line_of_librdkafka() {
        for (line, broker) in [
            ("[thrd:ssl://b:9093/bootstrap]: ssl://b:9093/bootstrap: SSL …", Some(("b", 9093))),
            ("sasl_ssl://127.0.0.1:1/1: SSL handshake failed", Some(("127.0.0.1", 1))),
            ("ssl://[::1]:9093/bootstrap: failed", Some(("::1", 9093))),
            ("plaintext://b:9092/1: Disconnected", None),
        ] {
            assert_eq!(broker_of(line), broker, "{line}");
        }
    }
}
