//! Certificates that a test makes: an authority, and what it signs.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// How many authorities there are. Each has a name of its own, by which OpenSSL finds an issuer.
static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// An authority. Its certificate is a file.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The names of a certificate, and whether it is still valid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) is_expired: bool,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name = named(&format!("authority {number}"));
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate") }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes the authority's certificate.
    pub(crate) fn write(&self, file: &Path) -> PathBuf {
        std::fs::write(file, self.pem()).expect("written");
        file.to_owned()
    }

    /// Writes the certificates of several authorities into one file.
    pub(crate) fn write_all(authorities: &[&Self], file: &Path) {
        let texts: Vec<_> = authorities.iter().map(|authority| authority.pem()).collect();
        std::fs::write(file, texts.concat()).expect("written");
    }

    /// A certificate and its private key, as PEM texts.
    pub(crate) fn sign(&self, subject: Subject) -> (String, String) {
        let mut params = CertificateParams::new(vec![subject.name.to_owned()]).expect("a name");
        params.distinguished_name = named("ingest");
        if subject.is_expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// The same of a certificate that expires after a time.
    pub(crate) fn write_expiring(&self, folder: &Path, name: &str, after: Duration) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name = named("ingest");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        params.not_after = date_time_ymd(1970, 1, 1) + (now + after);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(folder.join("tls.crt"), certificate.pem()).expect("written");
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).expect("written");
    }

    /// Writes a certificate and its key beside each other, and replaces what was there.
    pub(crate) fn write_signed(&self, folder: &Path, subject: Subject) {
        let (certificate, key) = self.sign(subject);
        std::fs::write(folder.join("tls.crt"), certificate).expect("written");
        std::fs::write(folder.join("tls.key"), key).expect("written");
    }
}

/// A certificate whose name is that of its authority would look self-signed.
fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
