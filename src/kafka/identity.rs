//! Checks certificates, keys and authorities of the settings, as librdkafka would use them later.

use std::{fs, path::Path};

use openssl::{
    asn1::Asn1Time,
    pkey::{PKey, Private},
    x509::X509,
};

use crate::config::KafkaConfig;

/// A PEM text of a setting, or of the file that a setting names.
struct Pem {
    /// The setting.
    key: &'static str,
    bytes: Vec<u8>,
}

/// The value of a security setting, by librdkafka's name.
pub(super) fn security_setting<'k>(kafka: &'k KafkaConfig, name: &str) -> Option<&'k str> {
    let found = kafka.security.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value.as_str())
}

/// What is wrong with the certificates and the key of the settings: one sentence for each, which
/// begins with the key. Reads files, and connects to no server.
pub(crate) fn check_identity(kafka: &KafkaConfig) -> Vec<String> {
    let checks = [check_authorities(kafka), check_client(kafka), check_token_authorities(kafka)];
    checks.into_iter().filter_map(Result::err).collect()
}

fn check_authorities(kafka: &KafkaConfig) -> Result<(), String> {
    let location = security_setting(kafka, "ssl.ca.location");
    // librdkafka then looks for the authorities of the system, or reads a folder.
    if location.is_some_and(|name| name == "probe" || Path::new(name).is_dir()) {
        return Ok(());
    }
    match read(kafka, "kafka.ssl_ca_location", "kafka.ssl_ca_pem")? {
        Some(pem) => certificates(&pem).map(drop),
        None => Ok(()),
    }
}

fn check_token_authorities(kafka: &KafkaConfig) -> Result<(), String> {
    let Some(file) = kafka.oauth.as_ref().and_then(|oauth| oauth.ca.as_deref()) else {
        return Ok(());
    };
    certificates(&read_file("kafka.oauth_ca_location", file)?).map(drop)
}

fn check_client(kafka: &KafkaConfig) -> Result<(), String> {
    const CERTIFICATE: [&str; 2] = ["kafka.ssl_certificate_location", "kafka.ssl_certificate_pem"];
    const KEY: [&str; 2] = ["kafka.ssl_key_location", "kafka.ssl_key_pem"];
    let [certificate, key] = [CERTIFICATE, KEY].map(|[location, text]| read(kafka, location, text));
    let (Some(certificate), Some(key)) = (certificate?, key?) else { return Ok(()) };
    let (own, private) = (first(certificates(&certificate)?)?, private_key(kafka, &key)?);
    let is_pair = own.public_key().is_ok_and(|public| public.public_eq(&private));
    if !is_pair {
        let (key, certificate) = (key.key, certificate.key);
        return Err(format!("{key}: the private key does not belong to {certificate}"));
    }
    let now = Asn1Time::days_from_now(0).map_err(|error| error.to_string())?;
    if own.not_after() < now {
        let (key, ended) = (certificate.key, own.not_after());
        return Err(format!("{key}: the certificate has expired at {ended}: renew it"));
    }
    Ok(())
}

/// The text of a setting, or that of the file that another setting names. `None`: neither is set.
fn read(
    kafka: &KafkaConfig,
    location: &'static str,
    text: &'static str,
) -> Result<Option<Pem>, String> {
    let theirs = |name: &str| name.trim_start_matches("kafka.").replace('_', ".");
    if let Some(pem) = security_setting(kafka, &theirs(text)) {
        return Ok(Some(Pem { key: text, bytes: pem.as_bytes().to_vec() }));
    }
    let Some(file) = security_setting(kafka, &theirs(location)) else { return Ok(None) };
    read_file(location, Path::new(file)).map(Some)
}

fn read_file(key: &'static str, file: &Path) -> Result<Pem, String> {
    let bytes = fs::read(file);
    let bytes = bytes.map_err(|error| format!("{key}: cannot open {}: {error}", file.display()))?;
    if bytes.is_empty() {
        return Err(format!("{key}: {} is empty", file.display()));
    }
    Ok(Pem { key, bytes })
}

/// Fails unless the text has a certificate, and no broken one.
fn certificates(pem: &Pem) -> Result<Vec<X509>, String> {
    let found = X509::stack_from_pem(&pem.bytes).unwrap_or_default();
    if found.is_empty() {
        return Err(format!(
            "{}: no PEM of a certificate: expected -----BEGIN CERTIFICATE",
            pem.key
        ));
    }
    Ok(found)
}

fn first(certificates: Vec<X509>) -> Result<X509, String> {
    certificates.into_iter().next().ok_or_else(|| "no certificate".to_owned())
}

fn private_key(kafka: &KafkaConfig, pem: &Pem) -> Result<PKey<Private>, String> {
    let password = security_setting(kafka, "ssl.key.password").unwrap_or_default().as_bytes();
    // Without this callback, OpenSSL would ask the terminal for the password.
    let parsed = PKey::private_key_from_pem_callback(&pem.bytes, |buffer| {
        let length = password.len().min(buffer.len());
        buffer[..length].copy_from_slice(&password[..length]);
        Ok(length)
    });
    parsed.map_err(|_| {
        let text = String::from_utf8_lossy(&pem.bytes);
        let is_encrypted = text.contains("ENCRYPTED");
        let problem = match (is_encrypted, password.is_empty()) {
            (true, true) => "the private key is encrypted: set kafka.ssl_key_password",
            (true, false) => "the private key has another password than kafka.ssl_key_password",
            (false, _) => "no PEM of a private key: expected -----BEGIN PRIVATE KEY or the like",
        };
        format!("{}: {problem}", pem.key)
    })
}
