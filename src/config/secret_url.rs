use std::{borrow::Cow, fmt};

/// A URL whose password is hidden in `Display` and `Debug`, and a private key in its query too.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A password may contain `@`, so the last one ends it.
        let parts = self
            .0
            .split_once("://")
            .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
        match parts {
            Some((scheme, (user, host))) => match user.split_once(':') {
                Some((name, _)) => write!(f, "{scheme}://{name}:***@{}", without_key(host)),
                None => write!(f, "{scheme}://{user}@{}", without_key(host)),
            },
            None => f.write_str(&without_key(&self.0)),
        }
    }
}

/// Hides the text of a private key, which MySQL's client accepts in the place of a file.
fn without_key(url: &str) -> Cow<'_, str> {
    let Some((address, query)) = url.split_once('?') else { return url.into() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name @ ("ssl-key" | "sslkey"), value)) if value.contains("BEGIN") => {
            format!("{name}=***").into()
        }
        _ => Cow::Borrowed(pair),
    });
    format!("{address}?{}", shown.collect::<Vec<_>>().join("&")).into()
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_within_a_url_is_hidden() {
        let url = "mysql://u:p@h/d?ssl-key=-----BEGIN%20PRIVATE%20KEY-----hush&ssl-cert=/c";

        assert_eq!(SecretUrl::new(url).to_string(), "mysql://u:***@h/d?ssl-key=***&ssl-cert=/c");
        let file = "mysql://h/d?ssl-key=/tls.key";
        assert_eq!(SecretUrl::new(file).to_string(), file);
    }
}
