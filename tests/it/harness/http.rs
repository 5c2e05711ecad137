//! HTTP clients of the tests.

use reqwest::{Client, ClientBuilder, IntoUrl, Response};

/// Begins a client that trusts no authority, unless a test names one.
pub(crate) fn http_client_builder() -> ClientBuilder {
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    Client::builder().tls_certs_only([])
}

pub(crate) fn http_client() -> Client {
    http_client_builder().build().expect("a client")
}

pub(crate) async fn http_get(url: impl IntoUrl) -> reqwest::Result<Response> {
    http_client().get(url).send().await
}
