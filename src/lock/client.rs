use std::{fs, io, path::Path, path::PathBuf, time::Duration};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates, io::tcp::TcpSettings,
};

use crate::config::{ClientFiles, RedisConfig, SecretUrl};

/// A connection counts as broken after this time: without the answer to a request, or without the
/// acknowledgement of data that was sent.
pub(super) const BROKEN_AFTER: Duration = Duration::from_secs(2);

/// Every section of a PEM file begins with this text.
const PEM_BEGIN: &[u8] = b"-----BEGIN ";

/// Why the masters cannot be used as `redis.*` says, or why one did not answer.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    #[error("redis.urls: {url} cannot be used")]
    Url { url: SecretUrl, source: RedisError },
    #[error("{key}: {} cannot be read", file.display())]
    Certificate { key: &'static str, file: PathBuf, source: io::Error },
    #[error("{key}: {} is no PEM file: it lacks the text -----BEGIN", file.display())]
    NoPem { key: &'static str, file: PathBuf },
    #[error("a Redis master does not answer: {url} failed")]
    Failed { url: SecretUrl, source: RedisError },
    #[error("a Redis master does not answer: {url} was not done within {limit:?}")]
    Silent { url: SecretUrl, limit: Duration },
}

/// A client of each master, in the order of `redis.urls`. Connects to nothing yet.
///
/// Fails with
///
/// - [`MasterError::Url`] if a URL is not valid or its certificates do not parse,
/// - [`MasterError::Certificate`] if a file cannot be read,
/// - [`MasterError::NoPem`] if a file is no PEM file.
pub(super) fn clients(redis: &RedisConfig) -> Result<Vec<Client>, MasterError> {
    // The cryptography of rustls is set for the whole process. Without this line it would depend
    // on the features that other crates turn on.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    let tls = certificates(redis)?;
    let opened = redis.urls.iter().map(|url| {
        open(url, tls.as_ref()).map_err(|source| MasterError::Url { url: url.clone(), source })
    });
    opened.collect()
}

fn open(url: &SecretUrl, tls: Option<&TlsCertificates>) -> RedisResult<Client> {
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(BROKEN_AFTER);
    let master = url.expose().into_connection_info()?.set_tcp_settings(tcp);
    // The client would send its name at each connection. That needs the right to CLIENT SETINFO.
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

/// `None` if the system's authorities are trusted and there is no client certificate.
fn certificates(redis: &RedisConfig) -> Result<Option<TlsCertificates>, MasterError> {
    let root_cert =
        redis.ssl_ca.as_ref().map(|file| read_pem("redis.ssl_ca_location", file)).transpose()?;
    let client_tls = match &redis.ssl_client {
        Some(ClientFiles { certificate, key }) => Some(ClientTlsConfig {
            client_cert: read_pem("redis.ssl_certificate_location", certificate)?,
            client_key: read_pem("redis.ssl_key_location", key)?,
        }),
        None => None,
    };
    Ok((root_cert.is_some() || client_tls.is_some())
        .then_some(TlsCertificates { client_tls, root_cert }))
}

/// Reads the file that the setting `key` names.
fn read_pem(key: &'static str, file: &Path) -> Result<Vec<u8>, MasterError> {
    let pem = fs::read(file).map_err(|source| MasterError::Certificate {
        key,
        file: file.to_owned(),
        source,
    })?;
    if pem.windows(PEM_BEGIN.len()).any(|text| text == PEM_BEGIN) {
        Ok(pem)
    } else {
        Err(MasterError::NoPem { key, file: file.to_owned() })
    }
}

/// Whether the Redis user has no right to a command, a key or a channel.
pub(super) fn lacks_a_right(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}
