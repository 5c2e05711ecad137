//! Which authorities the HTTP clients of this process trust.

use std::path::Path;

use anyhow::Context as _;
use reqwest::Certificate;

/// The authorities that a client of `url` trusts instead of the system's. `None`: the system's.
///
/// Without a file, a client without TLS trusts none: it takes some 40 ms to read those of the
/// system.
///
/// `file` has authorities as PEM, and `setting` is its name in errors. Fails if the file cannot be
/// used.
pub(crate) fn authorities(
    url: &str,
    file: Option<&Path>,
    setting: &str,
) -> anyhow::Result<Option<Vec<Certificate>>> {
    let Some(file) = file else { return Ok(url.starts_with("http://").then(Vec::new)) };
    let named = || format!("{setting}: {}", file.display());
    let pem = std::fs::read(file).with_context(named)?;
    Ok(Some(Certificate::from_pem_bundle(&pem).with_context(named)?))
}
