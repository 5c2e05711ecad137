//! Connections that others on the network could read or divert.

use std::{fmt, net::IpAddr};

use url::Url;

use super::{Config, LockStrategy, RedisConfig, SecretUrl, StoreConfig, formats::REDIS_PORT};

/// A server beyond this machine whose certificate nobody checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InsecureConnection {
    /// The section of the settings, which is also the name of the dependency.
    pub(crate) section: &'static str,
    /// The key with the URL.
    pub(crate) key: &'static str,
    /// `HOST:PORT`, as configured.
    pub(crate) server: String,
    pub(crate) risk: &'static str,
    /// The setting that removes the risk.
    pub(crate) remedy: &'static str,
}

/// One sentence for a log or a warning.
impl fmt::Display for InsecureConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, key, server, risk, remedy } = self;
        write!(
            f,
            "{key} ({server}): {risk}: {remedy}, or set {section}.insecure_tls = true if the \
             network is trusted"
        )
    }
}

const MYSQL_REMEDY: &str = "add ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE to the URL";

impl Config {
    /// The connections beyond the loopback that are not protected, and whose `insecure_tls` does
    /// not say that this is meant. Those to Redis only count if the lock strategy uses it.
    pub(crate) fn insecure_connections(&self) -> Vec<InsecureConnection> {
        let orders = (&self.order_store, "order_store", "order_store.url");
        let stock = (&self.stock_store, "stock_store", "stock_store.url");
        let mut found = Vec::new();
        for ((store, section, key), migrate_key) in
            [(orders, "order_store.migrate_url"), (stock, "stock_store.migrate_url")]
        {
            found.extend(store.insecure(section, key, &store.url));
            if store.migrate_url != store.url {
                found.extend(store.insecure(section, migrate_key, &store.migrate_url));
            }
        }
        if self.lock.strategy == LockStrategy::Redlock && !self.redis.insecure_tls {
            found.extend(self.redis.insecure());
        }
        found
    }
}

impl StoreConfig {
    fn insecure(
        &self,
        section: &'static str,
        key: &'static str,
        url: &SecretUrl,
    ) -> Option<InsecureConnection> {
        let parsed = Url::parse(url.expose()).ok().filter(|_| !self.insecure_tls)?;
        if is_local(&parsed) || parsed.query_pairs().any(|(name, _)| name == "socket") {
            return None;
        }
        let risk = match mysql_ssl_mode(&parsed).as_deref() {
            Some("VERIFY_CA" | "VERIFY_IDENTITY") => return None,
            Some("DISABLED") => {
                "the connection is not encrypted, so others on the network can read and change \
                 orders and stock"
            }
            Some("REQUIRED") => {
                "nobody checks the server's certificate, so another machine can take its place \
                 (ssl-mode=REQUIRED does not use ssl-ca)"
            }
            _ => {
                "TLS is used only if the server offers it, and nobody checks its certificate, so \
                 another machine can take its place"
            }
        };
        Some(InsecureConnection {
            section,
            key,
            server: server(&parsed, 3306),
            risk,
            remedy: MYSQL_REMEDY,
        })
    }
}

impl RedisConfig {
    /// A password goes to a master as text. Without one there is nothing to steal but locks.
    fn insecure(&self) -> Option<InsecureConnection> {
        let masters = self.urls.iter().filter_map(|url| Url::parse(url.expose()).ok());
        let insecure = masters.filter(|url| {
            let is_plain = ["redis", "valkey"].contains(&url.scheme());
            is_plain && url.password().is_some() && !is_local(url)
        });
        let servers: Vec<_> = insecure.map(|url| server(&url, REDIS_PORT)).collect();
        (!servers.is_empty()).then(|| InsecureConnection {
            section: "redis",
            key: "redis.urls",
            server: servers.join(", "),
            risk: "the password crosses the network as text, so others can read it and take locks",
            remedy: "write rediss:// and set redis.ssl_ca_location",
        })
    }
}

/// The mode of a URL in capitals; the last one counts. `None` if the URL has none.
pub(super) fn mysql_ssl_mode(url: &Url) -> Option<String> {
    let modes = url.query_pairs().filter(|(name, _)| name == "ssl-mode" || name == "sslmode");
    modes.last().map(|(_, mode)| mode.to_ascii_uppercase())
}

/// Whether a URL leads to this machine itself. The clients take a missing host for it.
pub(crate) fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    host.is_empty()
        || host.eq_ignore_ascii_case("localhost")
        || address.is_some_and(|address| address.is_loopback())
}

fn server(url: &Url, default_port: u16) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(default_port))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Layers};

    /// The keys of which a configuration warns.
    fn warned_of(flags: &[&str]) -> Vec<&'static str> {
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let config = Config::resolve(&Layers::read(None, std::iter::empty(), &flags)).unwrap();
        config.insecure_connections().into_iter().map(|insecure| insecure.key).collect()
    }

    #[test]
    fn a_store_beyond_the_loopback_is_insecure_unless_it_is_verified() {
        for (url, is_insecure) in [
            ("mysql://u:p@db/shop", true),
            ("mysql://u:p@db/shop?ssl-mode=PREFERRED", true),
            ("mysql://u:p@db/shop?ssl-mode=disabled", true),
            ("mysql://u:p@10.0.0.7/shop?sslmode=required&ssl-ca=/ca.crt", true),
            ("mysql://u:p@db/shop?ssl-mode=VERIFY_CA&ssl-mode=REQUIRED", true),
            ("mysql://u:p@db/shop?ssl-mode=REQUIRED&sslmode=verify_ca", false),
            ("mysql://u:p@db/shop?ssl-mode=VERIFY_IDENTITY", false),
            ("mysql://u:p@localhost/shop", false),
            ("mysql://u:p@127.0.0.9/shop?ssl-mode=DISABLED", false),
            ("mysql://u:p@[::1]/shop", false),
            ("mysql://u:p@[::ffff:127.0.0.1]/shop", false),
            ("mysql://u:p@db/shop?socket=/run/mysqld.sock", false),
        ] {
            let set = format!("order_store.url={url}");
            let expected = if is_insecure { &["order_store.url"][..] } else { &[] };

            assert_eq!(warned_of(&[&set]), expected, "{url}");
            assert!(warned_of(&[&set, "order_store.insecure_tls=true"]).is_empty(), "{url}");
        }
    }

    #[test]
    fn the_two_urls_of_a_store_are_warned_of_apart() {
        let both = ["stock_store.url=mysql://db/shop", "stock_store.migrate_url=mysql://db2/shop"];

        assert_eq!(warned_of(&both), ["stock_store.url", "stock_store.migrate_url"]);
        assert_eq!(warned_of(&both[..1]), ["stock_store.url"]);
    }

    #[test]
    fn a_password_for_redis_is_insecure_without_tls_beyond_the_loopback() {
        for (url, is_insecure) in [
            ("redis://:p@cache", true),
            ("redis://u:p@cache:6379", true),
            ("valkey://u:p@[fd00::1]", true),
            ("redis://cache", false),
            ("rediss://u:p@cache", false),
            ("redis://u:p@127.0.0.1", false),
            ("redis://u:p@a,redis://u:p@b,redis://u:p@localhost", true),
        ] {
            let set = format!("redis.urls={url}");
            let expected = if is_insecure { &["redis.urls"][..] } else { &[] };

            assert_eq!(warned_of(&[&set, "lock.strategy=redlock"]), expected, "{url}");
            assert!(warned_of(&[&set]).is_empty(), "row locks need no Redis");
            let silenced = [&set, "lock.strategy=redlock", "redis.insecure_tls=true"];
            assert!(warned_of(&silenced).is_empty(), "{url}");
        }
    }
}
