//! Files of static tokens, as ingest reads them.

use std::{fmt::Write as _, path::PathBuf};

use reqwest::Method;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{Answer, Api, Role, lines};

/// The file of `auth.tokens_file`, in a folder of its own.
pub(crate) struct TokensFile(TempDir);

/// The line of a token: `rest` is its scopes, and limits behind them.
pub(crate) fn token_line(name: &str, token: &str, rest: &str) -> String {
    let digest = Sha256::digest(token).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes it");
        hex
    });
    format!("{name} {digest} {rest}\n")
}

impl TokensFile {
    pub(crate) fn with(lines: &[String]) -> Self {
        let file = Self(tempfile::tempdir().expect("a folder"));
        std::fs::write(file.path(), lines.concat()).expect("written");
        file
    }

    /// Replaces the file as Kubernetes does: a link to another file takes the place of the first.
    pub(crate) fn replace(&self, content: &str) {
        let data = tempfile::NamedTempFile::new_in(self.0.path()).expect("a file");
        let (_, data) = data.keep().expect("kept");
        std::fs::write(&data, content).expect("written");
        let link = self.0.path().join("new-link");
        std::os::unix::fs::symlink(data, &link).expect("linked");
        std::fs::rename(link, self.path()).expect("renamed");
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("tokens")
    }

    /// The setting that names it.
    pub(crate) fn setting(&self) -> (&'static str, String) {
        ("STOCKLOCK__AUTH__TOKENS_FILE", self.path().display().to_string())
    }
}

/// The header of a token.
pub(crate) fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

impl Api {
    /// Reads the product `a` with a token.
    pub(crate) async fn read_as(&self, token: &str) -> Answer {
        let (name, value) = bearer(token);
        self.send(Method::GET, "/v1/products/a", &[(name, &value)], "").await
    }

    /// Places an order of one unit of `a` with a token.
    pub(crate) async fn place_as(&self, token: &str) -> Answer {
        let (name, value) = bearer(token);
        self.post(&lines(&[("a", 1)]).to_string(), &[(name, &value)]).await
    }
}

impl Role {
    /// How many requests were refused for a reason.
    pub(crate) async fn refused(&self, reason: &str) -> u64 {
        self.count("stocklock_http_refusals_total", &format!("reason=\"{reason}\"")).await
    }
}
