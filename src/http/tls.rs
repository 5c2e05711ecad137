//! TLS between clients and a listener. The certificates are read again when their files change.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use crate::{config::TlsFiles, watched_files};

/// The only protocol that the server speaks, by its name in ALPN (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// Why certificates cannot be used. The names are those of the settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{key}: {} cannot be read", file.display())]
    Unreadable { key: &'static str, file: PathBuf, source: std::io::Error },
    #[error("{key}: no PEM of the expected kind")]
    NoPem { key: &'static str, source: pem::Error },
    #[error("{0}: no certificate in the file")]
    Empty(&'static str),
    #[error("http.tls_certificate_location and http.tls_key_location cannot be used together")]
    Unusable(#[source] rustls::Error),
    #[error("http.tls_client_ca_location: a certificate cannot be used")]
    Authority(#[source] rustls::Error),
    #[error("http.tls_client_ca_location: no authority in the file")]
    NoAuthority(#[source] VerifierBuilderError),
}

/// The certificates of a listener. Each handshake uses those that were read last.
#[derive(Debug)]
pub(crate) struct ListenerTls {
    config: RwLock<Arc<ServerConfig>>,
}

const CERTIFICATE: &str = "http.tls_certificate_location";
const KEY: &str = "http.tls_key_location";
const CLIENT_CA: &str = "http.tls_client_ca_location";

/// The files that a listener reads, in the order in which [`ListenerTls::replace`] takes them.
pub(crate) fn listener_files(files: &TlsFiles) -> Vec<PathBuf> {
    let TlsFiles { certificate, key, client_ca } = files;
    [certificate, key].into_iter().chain(client_ca).cloned().collect()
}

impl ListenerTls {
    /// Reads the files. Blocks for a moment, as a process does at its start.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let settings = [CERTIFICATE, KEY, CLIENT_CA];
        let read = listener_files(files).into_iter().zip(settings).map(|(file, key)| {
            watched_files::read(&file).map_err(|source| TlsError::Unreadable { key, file, source })
        });
        let config = server_config(&read.collect::<Result<Vec<_>, _>>()?)?;
        Ok(Self { config: RwLock::new(config) })
    }

    /// Uses the contents of the files from the next handshake on. Keeps what it has if they cannot
    /// be used.
    pub(crate) fn replace(&self, contents: &[Vec<u8>]) -> Result<(), TlsError> {
        let config = server_config(contents)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

/// `contents`: the certificate, the key and, if clients need certificates, their authorities.
fn server_config(contents: &[Vec<u8>]) -> Result<Arc<ServerConfig>, TlsError> {
    let text = |number: usize| contents.get(number).map_or(&[][..], Vec::as_slice);
    let chain = certificates(CERTIFICATE, text(0))?;
    let key = PrivateKeyDer::from_pem_slice(text(1))
        .map_err(|source| TlsError::NoPem { key: KEY, source })?;
    // Named, since the process may have no default: other crates turn features of rustls on.
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(authorities) => builder.with_client_cert_verifier(client_verifier(authorities)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}

fn client_verifier(authorities: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(CLIENT_CA, authorities)? {
        roots.add(authority).map_err(TlsError::Authority)?;
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(TlsError::NoAuthority)
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|source| TlsError::NoPem { key, source })?;
    if read.is_empty() { Err(TlsError::Empty(key)) } else { Ok(read) }
}
