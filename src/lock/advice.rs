//! What a person does about a Redis master that does not let a client in, in one sentence.

use std::{fmt, io, sync::Arc, time::Duration};

use redis::{ConnectionAddr, ErrorKind, RedisError};
use rustls::{ClientConnection, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::client::{MasterClient, tls_builder};
use crate::tls_advice::{self, TlsTerms};

const TERMS: TlsTerms = TlsTerms {
    authority: "redis.ssl_ca_location",
    own_certificate: "redis.ssl_certificate_location and redis.ssl_key_location",
    without_tls: "write redis:// in redis.urls",
};

/// How long a port may take to show what it speaks.
const PORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first bytes of an alert and of a handshake of TLS.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// What a person does about an error of the login or of TLS. `None` for any other error.
fn advice(error: &RedisError) -> Option<String> {
    if let Some(failure) = tls_advice::find(error) {
        return Some(tls_advice::advice(failure, &TERMS));
    }
    let advice = match (error.kind(), error.code()) {
        (_, Some("NOAUTH")) => {
            "the master wants a password: write redis://USER:PASSWORD@HOST:PORT in redis.urls"
        }
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            "correct the user and the password in redis.urls, or leave them out if the master \
             wants none"
        }
        _ => return None,
    };
    Some(advice.to_owned())
}

/// Why a master did not answer: the text of the error, and what a person does about it.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) text: String,
    pub(super) advice: Option<String>,
    /// The master answers, and the settings do not fit it. Waiting does not help.
    pub(super) is_refusal: bool,
}

/// The same as one sentence.
impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.advice {
            Some(advice) => write!(f, "{} ({advice})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Explains an error. A connection that hangs or breaks does not tell why, so this asks the port,
/// for some seconds at most. The question contains no secret.
pub(super) async fn explain(client: &MasterClient, error: &RedisError) -> Explained {
    let text = error.to_string();
    if let Some(advice) = advice(error) {
        return Explained { text, advice: Some(advice), is_refusal: true };
    }
    let is_refusal = error.code().is_some();
    let advice = if is_refusal { None } else { advice_of_port(client).await };
    Explained { text, is_refusal: is_refusal || advice.is_some(), advice }
}

/// The same without an error: the master was silent for too long.
pub(super) async fn explain_silence(client: &MasterClient, text: String) -> Explained {
    let advice = advice_of_port(client).await;
    Explained { text, is_refusal: advice.is_some(), advice }
}

/// Whether the port speaks TLS and the URL does not, or the other way round, or whether it refuses
/// the client after the handshake.
async fn advice_of_port(client: &MasterClient) -> Option<String> {
    match client.address() {
        ConnectionAddr::TcpTls { host, port, .. } => {
            // A simple answer, or an error such as NOAUTH.
            if first_byte(&host, port, b"PING\r\n").await.is_some_and(|it| b"+-".contains(&it)) {
                let advice = "the port speaks Redis without TLS: name the port for TLS in \
                              redis.urls, or write redis:// on a trusted network";
                return Some(advice.to_owned());
            }
            let failed = timeout(PORT_TIMEOUT, refusal_of(client, &host, port)).await.ok()??;
            tls_advice::find(&failed).map(|failure| tls_advice::advice(failure, &TERMS))
        }
        ConnectionAddr::Tcp(host, port) => {
            let first = first_byte(&host, port, &client_hello(&host)?).await?;
            let advice = "the port speaks TLS: write rediss:// in redis.urls, and set \
                          redis.ssl_ca_location";
            TLS_RECORDS.contains(&first).then(|| advice.to_owned())
        }
        _ => None,
    }
}

/// Why a master ends a connection by TLS. Under TLS 1.3 it refuses a client's certificate after the
/// handshake. A client that writes meanwhile may lose the alert, so this one only reads.
async fn refusal_of(client: &MasterClient, host: &str, port: u16) -> Option<io::Error> {
    let connector = TlsConnector::from(Arc::new(client.tls()?));
    let stream = TcpStream::connect((host, port)).await.ok()?;
    let server = ServerName::try_from(host.to_owned()).ok()?;
    match connector.connect(server, stream).await {
        Ok(mut connected) => connected.read_u8().await.err(),
        Err(error) => Some(error),
    }
}

/// The first byte of the answer to a question. `None` if there is none within a second.
async fn first_byte(host: &str, port: u16, question: &[u8]) -> Option<u8> {
    let asking = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(question).await?;
        stream.read_u8().await
    };
    timeout(PORT_TIMEOUT, asking).await.ok()?.ok()
}

/// How a client begins TLS.
fn client_hello(host: &str) -> Option<Vec<u8>> {
    let config =
        tls_builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let server = ServerName::try_from(host.to_owned()).ok()?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), server).ok()?.write_tls(&mut hello).ok()?;
    Some(hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_or_of_the_login_brings_its_advice() {
        let untrusted = RedisError::from(tls_advice::untrusted());
        let refused = RedisError::from((ErrorKind::AuthenticationFailed, "authentication failed"));
        let gone = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));

        assert!(advice(&untrusted).unwrap().contains("redis.ssl_ca_location"));
        assert!(advice(&refused).unwrap().contains("correct the user"));
        assert_eq!(advice(&gone), None);
    }
}
