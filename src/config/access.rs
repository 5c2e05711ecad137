//! Sections of the configuration that say who may use the HTTP API, and how much.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{formats, values::Values};

/// How clients prove who they are. Authentication is off unless one of the two ways is set.
#[derive(Debug, Clone)]
pub(crate) struct AuthConfig {
    /// Whether clients without authentication may change stock, wherever ingest listens.
    pub(crate) anonymous_stock: bool,
    pub(crate) tokens_file: Option<PathBuf>,
    pub(crate) jwks: Option<JwksConfig>,
}

impl AuthConfig {
    pub(crate) fn is_on(&self) -> bool {
        self.tokens_file.is_some() || self.jwks.is_some()
    }
}

/// The provider of JWTs.
#[derive(Debug, Clone)]
pub(crate) struct JwksConfig {
    pub(crate) url: String,
    /// The authorities that sign the provider's certificate; `None`: those of the system.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) refresh: Duration,
    pub(crate) leeway: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct HttpConfig {
    pub(crate) listen: SocketAddr,
    /// `None`: no TLS.
    pub(crate) tls: Option<TlsFiles>,
}

/// The files of a listener's certificates and key.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// The authorities of the clients' certificates; `None`: clients need no certificate.
    pub(crate) client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub(crate) struct LimitsConfig {
    /// 0: no limit.
    pub(crate) requests_per_second: u32,
    /// 0: as many as the limit of open files allows.
    pub(crate) connections: usize,
    pub(crate) principal: PrincipalLimits,
}

/// What one principal may use. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PrincipalLimits {
    pub(crate) requests_per_second: u32,
    pub(crate) connections: usize,
    /// Requests that wait for an outcome, and streams of events.
    pub(crate) waiters: usize,
    pub(crate) body_bytes: usize,
}

/// How the commands reach the HTTP API.
#[derive(Debug, Clone)]
pub(crate) struct ClientConfig {
    pub(crate) url: String,
    pub(crate) token: Option<ClientToken>,
    /// The authorities that sign the API's certificate; `None`: those of the system.
    pub(crate) ca: Option<PathBuf>,
}

/// Where the token of the commands is.
#[derive(Clone)]
pub(crate) enum ClientToken {
    Text(String),
    File(PathBuf),
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("***"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Values<'_> {
    /// Refuses a provider without an issuer or an audience: any JWT of it would be accepted.
    pub(super) fn auth(&mut self) -> AuthConfig {
        const URL: &str = "auth.jwks_url";
        let url = self.read(URL, |text| match text {
            "" => Ok(None),
            text => formats::protected_url(text).map(Some),
        });
        let [issuer, audience] = ["auth.issuer", "auth.audience"].map(|name| {
            self.go_together(URL, name);
            self.optional(name)
        });
        let ca = self.optional("auth.jwks_ca_location").map(PathBuf::from);
        let (refresh, leeway) =
            (self.duration("auth.jwks_refresh"), self.duration("auth.clock_leeway"));
        let jwks = url.zip(issuer.zip(audience));
        AuthConfig {
            anonymous_stock: self.flag("auth.anonymous_stock"),
            tokens_file: self.optional("auth.tokens_file").map(PathBuf::from),
            jwks: jwks.map(|(url, (issuer, audience))| JwksConfig {
                url,
                ca,
                issuer,
                audience,
                refresh,
                leeway,
            }),
        }
    }

    pub(super) fn http(&mut self) -> HttpConfig {
        const CERTIFICATE: &str = "http.tls_certificate_location";
        const KEY: &str = "http.tls_key_location";
        const CLIENT_CA: &str = "http.tls_client_ca_location";
        let listen = self.read("http.listen", formats::address).listen;
        let files = self.optional(CERTIFICATE).zip(self.optional(KEY));
        let client_ca = self.optional(CLIENT_CA).map(PathBuf::from);
        self.go_together(CERTIFICATE, KEY);
        if client_ca.is_some() && files.is_none() {
            self.refuse(CLIENT_CA, &format!("expected {CERTIFICATE} too, because it is TLS"));
        }
        let tls = files.map(|(certificate, key)| TlsFiles {
            certificate: certificate.into(),
            key: key.into(),
            client_ca,
        });
        HttpConfig { listen, tls }
    }

    pub(super) fn limits(&mut self) -> LimitsConfig {
        LimitsConfig {
            requests_per_second: self.number("limits.requests_per_second"),
            connections: self.number("limits.connections"),
            principal: PrincipalLimits {
                requests_per_second: self.number("limits.principal_requests_per_second"),
                connections: self.number("limits.principal_connections"),
                waiters: self.number("limits.principal_waiters"),
                body_bytes: self.number("limits.principal_body_bytes"),
            },
        }
    }

    pub(super) fn client(&mut self) -> ClientConfig {
        let (token, file) = (self.optional("client.token"), self.optional("client.token_file"));
        if token.is_some() && file.is_some() {
            self.refuse("client.token_file", "expected no file, because client.token is set");
        }
        let file = file.map(|file| ClientToken::File(file.into()));
        ClientConfig {
            url: self.read("client.url", formats::http_url),
            token: token.map(ClientToken::Text).or(file),
            ca: self.optional("client.ca_location").map(PathBuf::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, Layers};

    fn errors(flags: &[&str]) -> Vec<String> {
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        match Config::resolve(&Layers::read(None, std::iter::empty(), &flags)) {
            Ok(_) => Vec::new(),
            Err(ConfigError(errors)) => errors,
        }
    }

    #[test]
    fn a_provider_of_jwts_needs_an_issuer_and_an_audience() {
        let url = "auth.jwks_url=https://id.example.com/keys";
        let [issuer, audience] = ["auth.issuer=https://id.example.com", "auth.audience=stocklock"];

        assert!(errors(&[url, issuer, audience]).is_empty());
        assert!(errors(&[url, issuer])[0].starts_with("auth.audience"));
        assert!(errors(&[url, audience])[0].starts_with("auth.issuer"));
        assert!(errors(&[issuer, audience])[0].starts_with("auth.jwks_url"));
    }

    #[test]
    fn keys_are_read_over_tls_or_from_this_machine_alone() {
        let with = |url: &str| {
            errors(&[&format!("auth.jwks_url={url}"), "auth.issuer=i", "auth.audience=a"])
        };

        for url in ["https://a/k?x=1", "http://127.0.0.1:1/k", "http://[::1]/k", "http://localhost"]
        {
            assert!(with(url).is_empty(), "{url}");
        }
        for url in [
            "http://id.example.com/keys",
            "http://10.0.0.1/k",
            "ftp://a/k",
            "keys",
            "https://u:p@a/k",
        ] {
            assert!(!with(url).is_empty(), "{url}");
        }
    }

    #[test]
    fn settings_that_belong_together_are_refused_alone() {
        assert!(errors(&["http.tls_key_location=k"])[0].starts_with("http.tls_certificate"));
        assert!(errors(&["http.tls_certificate_location=c"])[0].starts_with("http.tls_key"));
        assert!(errors(&["http.tls_client_ca_location=c"])[0].starts_with("http.tls_client_ca"));
        assert!(errors(&["client.token=t", "client.token_file=f"])[0].contains("token_file"));
    }

    #[test]
    fn the_token_of_the_client_is_never_shown() {
        let secret = "sl_very-secret";
        let flags = [format!("client.token={secret}"), "client.token_file=f".to_owned()];
        let layers = Layers::read(None, std::iter::empty(), &flags[..1]);

        let shown = format!("{:?}", Config::resolve(&layers).unwrap().client);

        assert!(!shown.contains(secret), "{shown}");
        let both = errors(&[&flags[0], &flags[1]]);
        assert!(!both.join("\n").contains(secret), "{both:?}");
    }
}
