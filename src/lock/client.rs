use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates, io::tcp::TcpSettings,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    config::{ClientFiles, RedisConfig, SecretUrl},
    error_text::with_causes,
    pem, trust,
};

/// A connection counts as broken after this time: without the answer to a request, or without the
/// acknowledgement of data that was sent.
pub(super) const BROKEN_AFTER: Duration = Duration::from_secs(2);

/// Why the masters cannot be used as `redis.*` says, or why one did not answer.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    #[error("redis.urls: {url} cannot be used")]
    Url { url: SecretUrl, source: RedisError },
    #[error("{key}: {} cannot be read", file.display())]
    Certificate { key: &'static str, file: PathBuf, source: io::Error },
    #[error("{key}: {} is no PEM file: it lacks the text -----BEGIN", file.display())]
    NoPem { key: &'static str, file: PathBuf },
    #[error("a Redis master does not answer: {url} failed: {text}")]
    Failed { url: SecretUrl, text: String, source: RedisError },
    #[error("a Redis master does not answer: {url} was not done within {limit:?}")]
    Silent { url: SecretUrl, limit: Duration },
}

/// A client of one master. Cheap to clone.
///
/// The client is opened anew once the files of its certificates have changed, so that renewed
/// files need no restart.
#[derive(Debug, Clone)]
pub(super) struct MasterClient {
    url: SecretUrl,
    redis: Arc<RedisConfig>,
    opened: Arc<Mutex<Opened>>,
}

#[derive(Debug)]
struct Opened {
    client: Client,
    files: TlsFiles,
}

impl MasterClient {
    /// The client with the certificates that the files have now.
    pub(super) fn current(&self) -> Client {
        self.renew();
        self.last().client.clone()
    }

    /// The settings of TLS, as far as they are in files. `None` if the client trusts the
    /// authorities of the system, or if a file cannot be used.
    pub(super) fn tls(&self) -> Option<ClientConfig> {
        let TlsFiles { authorities, own } = self.last().files.clone();
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&authorities?) {
            roots.add(authority.ok()?).ok()?;
        }
        let builder = tls_builder()?.with_root_certificates(roots);
        let Some(OwnFiles { certificate, key }) = own else {
            return Some(builder.with_no_client_auth());
        };
        let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>().ok()?;
        builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key).ok()?).ok()
    }

    pub(super) fn address(&self) -> ConnectionAddr {
        self.last().client.get_connection_info().addr().clone()
    }

    /// Opens the client anew if the files have changed, and says whether they have. Files that
    /// cannot be used are passed over: perhaps somebody is writing them.
    pub(super) fn renew(&self) -> bool {
        let renewed = TlsFiles::read(&self.redis).and_then(|files| {
            if files == self.last().files {
                return Ok(None);
            }
            let client = open(&self.url, &files)?;
            Ok(Some(Opened { client, files }))
        });
        match renewed {
            Ok(Some(opened)) => {
                *self.last() = opened;
                tracing::info!(master = %self.address(), "certificates for a Redis master renewed");
                true
            }
            Ok(None) => false,
            Err(error) => {
                let error = with_causes(&error);
                tracing::debug!(error, "certificates for a Redis master not renewed");
                false
            }
        }
    }

    fn last(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins settings of TLS, as the client of Redis does.
pub(super) fn tls_builder() -> Option<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()
}

/// A client of each master, in the order of `redis.urls`. Connects to nothing yet.
///
/// Fails with
///
/// - [`MasterError::Url`] if a URL is not valid or its certificates do not parse,
/// - [`MasterError::Certificate`] if a file cannot be read,
/// - [`MasterError::NoPem`] if a file is no PEM file.
pub(super) fn clients(redis: &RedisConfig) -> Result<Vec<MasterClient>, MasterError> {
    trust::install_cryptography();
    let files = TlsFiles::read(redis)?;
    let redis = Arc::new(redis.clone());
    let opened = redis.urls.iter().map(|url| {
        let opened = Opened { client: open(url, &files)?, files: files.clone() };
        let (redis, opened) = (Arc::clone(&redis), Arc::new(Mutex::new(opened)));
        Ok(MasterClient { url: url.clone(), redis, opened })
    });
    opened.collect()
}

fn open(url: &SecretUrl, files: &TlsFiles) -> Result<Client, MasterError> {
    let opened = open_with(url, files.certificates());
    opened.map_err(|source| MasterError::Url { url: url.clone(), source })
}

fn open_with(url: &SecretUrl, tls: Option<TlsCertificates>) -> RedisResult<Client> {
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
        (ConnectionAddr::TcpTls { .. }, Some(tls)) => Client::build_with_tls(master, tls),
        _ => Client::open(master),
    }
}

/// The contents of the files of certificates and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TlsFiles {
    authorities: Option<Vec<u8>>,
    own: Option<OwnFiles>,
}

/// The contents of the client's own certificate and of its private key.
#[derive(Clone, PartialEq, Eq)]
struct OwnFiles {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for OwnFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl TlsFiles {
    fn read(redis: &RedisConfig) -> Result<Self, MasterError> {
        let authorities = redis
            .ssl_ca
            .as_ref()
            .map(|file| read_pem("redis.ssl_ca_location", file))
            .transpose()?;
        let own = match &redis.ssl_client {
            Some(ClientFiles { certificate, key }) => Some(OwnFiles {
                certificate: read_pem("redis.ssl_certificate_location", certificate)?,
                key: read_pem("redis.ssl_key_location", key)?,
            }),
            None => None,
        };
        Ok(Self { authorities, own })
    }

    /// `None` if the system's authorities are trusted and there is no client certificate.
    fn certificates(&self) -> Option<TlsCertificates> {
        let Self { authorities, own } = self;
        let client_tls = own.clone().map(|OwnFiles { certificate, key }| ClientTlsConfig {
            client_cert: certificate,
            client_key: key,
        });
        (authorities.is_some() || client_tls.is_some())
            .then(|| TlsCertificates { client_tls, root_cert: authorities.clone() })
    }
}

/// Reads the file that the setting `key` names.
fn read_pem(key: &'static str, file: &Path) -> Result<Vec<u8>, MasterError> {
    let content = fs::read(file).map_err(|source| MasterError::Certificate {
        key,
        file: file.to_owned(),
        source,
    })?;
    if pem::has_section(&content) {
        Ok(content)
    } else {
        Err(MasterError::NoPem { key, file: file.to_owned() })
    }
}

/// Whether the Redis user has no right to a command, a key or a channel.
pub(super) fn lacks_a_right(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
}
