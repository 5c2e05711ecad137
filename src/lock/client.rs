use std::{fs, path::Path, time::Duration};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates, io::tcp::TcpSettings,
};

use super::LockError;
use crate::config::{self, ClientFiles, SecretUrl};

/// How long a request is waited for before the connection counts as broken, and data without
/// acknowledgement before it is.
pub(super) const BROKEN_AFTER: Duration = Duration::from_secs(2);

/// What a PEM file has in it.
const BEGIN: &[u8] = b"-----BEGIN ";

/// A client of each master, in the order of `redis.urls`. Connects to nothing yet. Fails where a
/// URL does not parse, or where a file of certificates is missing or is none.
pub(super) fn clients(redis: &config::RedisConfig) -> Result<Vec<Client>, LockError> {
    // The cryptography of rustls is the process's. Without this line it would depend on the
    // features that other crates give it.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    let tls = certificates(redis)?;
    let opened = redis.urls.iter().map(|url| {
        open(url, tls.as_ref()).map_err(|error| LockError::BadUrl(format!("{url}: {error}")))
    });
    opened.collect()
}

fn open(url: &SecretUrl, tls: Option<&TlsCertificates>) -> RedisResult<Client> {
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(BROKEN_AFTER);
    let master = url.expose().into_connection_info()?.set_tcp_settings(tcp);
    // The client's name for itself would need a right to CLIENT SETINFO.
    let settings = master.redis_settings().clone().set_skip_set_lib_name();
    let master = master.set_redis_settings(settings);
    match (master.addr(), tls) {
        (ConnectionAddr::TcpTls { insecure: true, .. }, _) => Err((
            ErrorKind::InvalidClientConfig,
            "a connection by TLS always checks the certificate",
        )
            .into()),
        (ConnectionAddr::TcpTls { .. }, Some(tls)) => Client::build_with_tls(master, tls.clone()),
        _ => Client::open(master),
    }
}

/// `None` where the system's authorities do, and no master asks for a certificate.
fn certificates(redis: &config::RedisConfig) -> Result<Option<TlsCertificates>, LockError> {
    let read = |key: &str, file: &Path| {
        let bad = |why: String| LockError::BadTls(format!("{key}: {}: {why}", file.display()));
        let pem = fs::read(file).map_err(|error| bad(error.to_string()))?;
        if pem.windows(BEGIN.len()).any(|text| text == BEGIN) {
            Ok(pem)
        } else {
            Err(bad("is no PEM file".to_owned()))
        }
    };
    let root_cert =
        redis.ssl_ca.as_ref().map(|file| read("redis.ssl_ca_location", file)).transpose()?;
    let client_tls = match &redis.ssl_client {
        Some(ClientFiles { certificate, key }) => Some(ClientTlsConfig {
            client_cert: read("redis.ssl_certificate_location", certificate)?,
            client_key: read("redis.ssl_key_location", key)?,
        }),
        None => None,
    };
    Ok((root_cert.is_some() || client_tls.is_some())
        .then_some(TlsCertificates { client_tls, root_cert }))
}

/// Whether the master's user may not do what was asked.
pub(super) fn lacks_a_right(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}
