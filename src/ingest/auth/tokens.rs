//! Static tokens: a file with a line for each token, which has its digest and not the token.

use std::{fmt::Write as _, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    grant::{Grant, LimitChanges},
    scope::{Scope, Scopes},
};

const MAX_TOKENS: usize = 1_000;
const MAX_NAME_BYTES: usize = 60;
/// What [`is_name`] demands.
pub(crate) const NAME_RULE: &str =
    "expected a name: 1 to 60 ASCII letters, digits and any of .-_@, not beginning with jwt.";
/// The names of principals of a JWT begin with this.
pub(super) const JWT_PREFIX: &str = "jwt.";
const TOKEN_PREFIX: &str = "sl_";
const TOKEN_BYTES: usize = 32;

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    sha256: [u8; 32],
    grant: Grant,
}

/// Why a file of tokens cannot be used. It never shows a token: somebody may have written one
/// where the digest belongs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TokensError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("no token in the file")]
    Empty,
    #[error("more than {MAX_TOKENS} tokens in the file")]
    TooMany,
    #[error("the file is no UTF-8 text")]
    NoText,
}

impl Tokens {
    /// Parses lines `NAME SHA256 SCOPE,… [LIMIT=NUMBER …]`. Empty lines and those that begin with
    /// `#` say nothing. A name may have several tokens, with the same limits. Without a line, no
    /// token is good.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, TokensError> {
        let text = std::str::from_utf8(bytes).map_err(|_| TokensError::NoText)?;
        let mut tokens: Vec<Token> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| TokensError::Line { line: number + 1, what: what.to_owned() };
            let token = parse_line(line).map_err(|what| wrong(&what))?;
            if tokens.iter().any(|other| other.sha256 == token.sha256) {
                return Err(wrong("an earlier line has the same digest"));
            }
            // They share what the principal uses: the larger limit of one would free the other.
            let namesake = tokens.iter().find(|other| other.grant.name == token.grant.name);
            if namesake.is_some_and(|other| other.grant.limits != token.grant.limits) {
                return Err(wrong("an earlier line of the same name has other limits"));
            }
            if tokens.len() == MAX_TOKENS {
                return Err(TokensError::TooMany);
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// Fails if there is no token: a process that begins so was given the wrong file.
    pub(super) fn require_some(self) -> Result<Self, TokensError> {
        if self.0.is_empty() { Err(TokensError::Empty) } else { Ok(self) }
    }

    /// What a token grants. Takes the same time whichever token matches, or none.
    pub(super) fn find(&self, token: &str) -> Option<&Grant> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.sha256.ct_eq(&digest)) {
                found = Some(&token.grant);
            }
        }
        found
    }
}

fn parse_line(line: &str) -> Result<Token, String> {
    let mut fields = line.split_whitespace();
    let name = fields.next().filter(|name| is_name(name)).ok_or(NAME_RULE)?;
    let sha256 = fields
        .next()
        .and_then(digest_of)
        .ok_or("expected the SHA-256 of a token, as 64 hexadecimal digits")?;
    let scopes = fields.next().unwrap_or_default().split(',').map(Scope::parse);
    let scopes: Option<Scopes> = scopes.collect();
    let scopes = scopes
        .filter(|scopes| !scopes.is_empty())
        .ok_or_else(|| format!("expected scopes, comma separated: {}", Scope::names()))?;
    let mut limits = LimitChanges::default();
    for field in fields {
        limits.set(field).ok_or(
            "expected requests_per_second=, connections=, waiters= or body_bytes=, once each and \
             with a number",
        )?;
    }
    Ok(Token { sha256, grant: Grant { name: Arc::from(name), scopes, limits } })
}

/// Whether a principal of the file may have this name. It is the caller of idempotency keys.
pub(crate) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !name.starts_with(JWT_PREFIX)
}

fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    // The parser of the library takes a sign for a digit.
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// A new token, and the line of the file that belongs to it.
pub(crate) struct NewToken {
    pub(crate) token: String,
    pub(crate) line: String,
}

/// Makes a token of 256 random bits for a principal with these scopes.
pub(crate) fn new_token(name: &str, scopes: &[Scope]) -> Result<NewToken, getrandom::Error> {
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random)?;
    let token = format!("{TOKEN_PREFIX}{}", hex(&random));
    let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    let line = format!("{name} {} {}", hex(&Sha256::digest(&token)), scopes.join(","));
    Ok(NewToken { token, line })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _always_fits = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn error(text: &str) -> TokensError {
        Tokens::parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_token_is_found_by_its_digest_alone() {
        let made = new_token("shop", &[Scope::OrdersWrite, Scope::OrdersRead]).unwrap();
        let file = format!("# a comment\n\n{}\nstock {DIGEST} stock:write\n", made.line);

        let tokens = Tokens::parse(file.as_bytes()).unwrap();

        let grant = tokens.find(&made.token).unwrap();
        assert_eq!(&*grant.name, "shop");
        assert!(grant.scopes.has_any(&[Scope::OrdersRead]));
        assert!(!grant.scopes.has_any(&[Scope::StockWrite]));
        assert_eq!(tokens.find("test").map(|grant| &*grant.name), Some("stock"));
        assert!(tokens.find(DIGEST).is_none());
        assert!(!made.line.contains(&made.token));
        assert_ne!(new_token("shop", &[]).unwrap().token, made.token);
    }

    #[test]
    fn limits_of_a_line_stand_behind_its_scopes() {
        let line = format!("shop {DIGEST} orders:read requests_per_second=5 body_bytes=0");

        let tokens = Tokens::parse(line.as_bytes()).unwrap();

        let limits = tokens.find("test").unwrap().limits;
        assert_eq!((limits.requests_per_second, limits.body_bytes), (Some(5), Some(0)));
        assert_eq!((limits.connections, limits.waiters), (None, None));
    }

    #[test]
    fn lines_of_one_name_have_the_same_limits() {
        let line = |name: &str, token: &str, limits: &str| {
            format!("{name} {} orders:read {limits}\n", hex(&Sha256::digest(token)))
        };
        let first = line("shop", "old", "waiters=3 connections=0");
        let good = line("shop", "new", "connections=0 waiters=3") + &line("stock", "x", "");
        let what = "an earlier line of the same name has other limits";

        assert!(Tokens::parse((first.clone() + &good).as_bytes()).is_ok());
        for limits in ["", "waiters=3", "waiters=3 connections=1"] {
            let file = format!("{first}{}", line("shop", "new", limits));
            assert_eq!(error(&file), TokensError::Line { line: 2, what: what.into() }, "{limits}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_and_not_shown() {
        let good = format!("shop {DIGEST} orders:read");
        for bad in [
            "shop".to_owned(),
            format!("a:b {DIGEST} orders:read"),
            format!("jwt.x {DIGEST} orders:read"),
            format!("{} {DIGEST} orders:read", "x".repeat(61)),
            "shop sl_secret orders:read".to_owned(),
            format!("shop {DIGEST}"),
            format!("shop {DIGEST} orders:read,"),
            format!("shop {DIGEST} orders:delete"),
            format!("shop {DIGEST} orders:read speed=9"),
            format!("shop {DIGEST} orders:read waiters=-1"),
            format!("shop {DIGEST} orders:read waiters=1 waiters=2"),
            format!("shop {} orders:read", "é".repeat(32)),
            format!("shop {} orders:read", "+f".repeat(32)),
            good.clone(),
        ] {
            let error = error(&format!("{good}\n{bad}\n"));

            assert!(matches!(error, TokensError::Line { line: 2, .. }), "{bad}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_process_needs_a_token_and_a_file_needs_text() {
        let none = Tokens::parse(b"# nothing\n").unwrap();
        assert!(none.find("test").is_none());
        assert_eq!(none.require_some().unwrap_err(), TokensError::Empty);
        assert_eq!(Tokens::parse(b"\xff\xfe").unwrap_err(), TokensError::NoText);
    }
}
