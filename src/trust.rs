//! With what the TLS of this process encrypts, and which authorities its HTTP clients trust.

use std::path::Path;

use anyhow::Context as _;
use reqwest::{Certificate, ClientBuilder};

/// Sets the cryptography of rustls for the whole process. Without it, no HTTP client can be made,
/// and the client of Redis would use what other crates turn on.
pub(crate) fn install_cryptography() {
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
}

/// Begins a client of servers without TLS. It trusts no authority.
pub fn client_without_tls() -> ClientBuilder {
    install_cryptography();
    reqwest::Client::builder().tls_certs_only([])
}

/// The authorities that a client of `url` trusts instead of the system's. `None`: the system's.
///
/// Without a file, a client without TLS trusts none: it takes some ms to read those of the system.
///
/// `file` has authorities as PEM, and `setting` is its name in errors. Fails if the file cannot be
/// used.
pub(crate) fn authorities(
    url: &str,
    file: Option<&Path>,
    setting: &str,
) -> anyhow::Result<Option<Vec<Certificate>>> {
    install_cryptography();
    let Some(file) = file else { return Ok(url.starts_with("http://").then(Vec::new)) };
    let named = || format!("{setting}: {}", file.display());
    let pem = std::fs::read(file).with_context(named)?;
    Ok(Some(Certificate::from_pem_bundle(&pem).with_context(named)?))
}
