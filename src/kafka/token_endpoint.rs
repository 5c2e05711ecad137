//! Asks a token endpoint for a token (RFC 6749, section 4.4: client credentials).

use std::{
    io::Read as _,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use reqwest::{
    StatusCode,
    blocking::{Client, Response},
    header::{ACCEPT, CONTENT_TYPE},
};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::token::IssuedToken;
use crate::{config::OAuthConfig, trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most time for a whole answer. It is less than a client waits for its first token.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_ANSWER_BYTES: u64 = 256 << 10;
/// The longest token that is accepted. Brokers take requests of 512 KiB before the authentication.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// The shortest life of a token. A shorter one would end before it is used.
const MIN_LIFE: Duration = Duration::from_secs(2);
/// A longer life counts as this.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Asks for a token. Blocks for 8 s at most: for 4 s, and as long for the part of the answer that
/// has begun by then.
///
/// Fails if the endpoint does not answer in that time, if it refuses, or if its answer is no token
/// with an end. The error has no secret.
pub(super) fn ask(oauth: &OAuthConfig) -> anyhow::Result<IssuedToken> {
    let begun = Instant::now();
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    if let Some(scope) = &oauth.scope {
        form.append_pair("scope", scope);
    }
    // Section 2.3.1: both are encoded before they become the user and the password.
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let request = client(oauth)?
        .post(&oauth.token_url)
        .basic_auth(encoded(&oauth.client_id), Some(encoded(&oauth.client_secret)))
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form.finish());
    // The error of the library would name the URL again.
    let response = request.send().map_err(reqwest::Error::without_url)?;
    let status = response.status();
    let body = read(response, begun)?;
    if !status.is_success() {
        bail!("status {}{}", status.as_u16(), reason(status, &body));
    }
    let answer: Value = serde_json::from_slice(&body).context("the answer is no JSON")?;
    token(&answer, &oauth.client_id, SystemTime::now())
}

/// The endpoint as logs show it: without a query.
pub(super) fn shown(oauth: &OAuthConfig) -> String {
    let Ok(mut url) = Url::parse(&oauth.token_url) else { return String::new() };
    url.set_query(None);
    url.into()
}

/// What to do about a failure of [`ask`].
pub(super) fn advice(why: &str) -> &'static str {
    let has = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
    if has(&["invalid_client", "unauthorized_client", "status 401", "status 403"]) {
        "check kafka.oauth_client_id and kafka.oauth_client_secret"
    } else if has(&["invalid_scope"]) {
        "check kafka.oauth_scope"
    } else if has(&["certificate", "oauth_ca_location"]) {
        "name the authority of the endpoint's certificate in kafka.oauth_ca_location"
    } else {
        "check kafka.oauth_token_url, and that the token endpoint answers"
    }
}

/// A new client for each token: the authorities may have been renewed meanwhile.
fn client(oauth: &OAuthConfig) -> anyhow::Result<Client> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        // Another server would get the secret.
        .redirect(reqwest::redirect::Policy::none());
    if oauth.token_url.starts_with("http://") {
        // The endpoint is on this machine. A proxy would get the secret.
        builder = builder.no_proxy();
    }
    let OAuthConfig { token_url, ca, .. } = oauth;
    let trusted = trust::authorities(token_url, ca.as_deref(), "kafka.oauth_ca_location")?;
    if let Some(authorities) = trusted {
        builder = builder.tls_certs_only(authorities);
    }
    Ok(builder.build()?)
}

/// Reads the body. The timeout of the library counts for each part of it, this one for all.
fn read(mut response: Response, begun: Instant) -> anyhow::Result<Vec<u8>> {
    let (mut body, mut part) = (Vec::new(), [0; 8192]);
    loop {
        let length = response.read(&mut part).context("the answer breaks off")?;
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&part[..length]);
        ensure!(
            body.len() as u64 <= MAX_ANSWER_BYTES,
            "the answer has more than {MAX_ANSWER_BYTES} bytes"
        );
        ensure!(begun.elapsed() < ANSWER_TIMEOUT, "the answer takes more than {ANSWER_TIMEOUT:?}");
    }
}

/// The error code of section 5.2. Other texts of a refusal may repeat what was sent.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let is_code = |text: &&str| {
        text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    match answer["error"].as_str().filter(is_code) {
        Some(code) => format!(", {code}"),
        None => status.canonical_reason().map_or(String::new(), |reason| format!(", {reason}")),
    }
}

/// The token of an answer (section 5.1). Its end is `expires_in`, or else what the JWT says.
fn token(answer: &Value, client_id: &str, now: SystemTime) -> anyhow::Result<IssuedToken> {
    let value = answer["access_token"].as_str().context("the answer has no access_token")?;
    let is_sendable = value.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    ensure!(
        is_sendable && (1..=MAX_TOKEN_BYTES).contains(&value.len()),
        "the access_token is empty, too long or no plain text"
    );
    let claims = claims(value).unwrap_or_default();
    let expires_in = &answer["expires_in"];
    let seconds = expires_in.as_u64().or_else(|| expires_in.as_str()?.parse().ok());
    let life = if let Some(seconds) = seconds {
        Duration::from_secs(seconds)
    } else {
        let end = claims["exp"].as_u64().context("the answer has no expires_in")?;
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
        end.and_then(|end| end.duration_since(now).ok()).unwrap_or_default()
    };
    ensure!(life >= MIN_LIFE, "the token ends within {} s", MIN_LIFE.as_secs());
    let principal = claims["sub"].as_str().filter(|sub| !sub.is_empty() && !sub.contains('\0'));
    Ok(IssuedToken {
        value: value.to_owned(),
        principal: principal.unwrap_or(client_id).to_owned(),
        ends_at: now + life.min(MAX_LIFE),
    })
}

/// The claims of a JWT, which the broker verifies. `None` if the token is another text.
fn claims(token: &str) -> Option<Value> {
    let part = token.split('.').nth(1)?;
    let mut base64 = part.replace('-', "+").replace('_', "/");
    while !base64.len().is_multiple_of(4) {
        base64.push('=');
    }
    serde_json::from_slice(&openssl::base64::decode_block(&base64).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn parsed(answer: &Value) -> anyhow::Result<IssuedToken> {
        token(answer, "client", SystemTime::UNIX_EPOCH + NOW)
    }

    fn jwt(claims: &Value) -> String {
        let text = openssl::base64::encode_block(claims.to_string().as_bytes());
        format!("e30.{}.", text.trim_end_matches('=').replace('+', "-").replace('/', "_"))
    }

    #[test]
    fn a_token_has_the_principal_and_the_end_of_its_answer() {
        let opaque = parsed(&json!({"access_token": "x", "expires_in": 60})).unwrap();
        assert_eq!((opaque.value.as_str(), opaque.principal.as_str()), ("x", "client"));
        assert_eq!(opaque.ends_at, SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(60));

        let jwt = jwt(&json!({"sub": "stocklock?>", "exp": 1_090}));
        let signed = parsed(&json!({"access_token": jwt})).unwrap();
        assert_eq!(signed.principal, "stocklock?>");
        assert_eq!(signed.ends_at, SystemTime::UNIX_EPOCH + Duration::from_secs(1_090));

        let text = parsed(&json!({"access_token": "x", "expires_in": "9999999999"})).unwrap();
        assert_eq!(text.ends_at, SystemTime::UNIX_EPOCH + NOW + MAX_LIFE);
    }

    #[test]
    fn an_answer_that_is_no_token_with_an_end_is_refused() {
        let past = jwt(&json!({"sub": "a", "exp": 900}));
        for answer in [
            json!({}),
            json!([]),
            json!({"access_token": 7, "expires_in": 60}),
            json!({"access_token": "", "expires_in": 60}),
            json!({"access_token": "a b", "expires_in": 60}),
            json!({"access_token": "a\u{0}", "expires_in": 60}),
            json!({"access_token": "x".repeat(MAX_TOKEN_BYTES + 1), "expires_in": 60}),
            json!({"access_token": "x"}),
            json!({"access_token": "x", "expires_in": 1}),
            json!({"access_token": "x", "expires_in": -60}),
            json!({"access_token": past}),
        ] {
            assert!(parsed(&answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn a_refusal_shows_its_code_and_no_other_text() {
        let body = json!({"error": "invalid_client", "error_description": "hush"}).to_string();
        assert_eq!(reason(StatusCode::UNAUTHORIZED, body.as_bytes()), ", invalid_client");

        let echo = json!({"error": "secret hush-1"}).to_string();
        assert_eq!(reason(StatusCode::UNAUTHORIZED, echo.as_bytes()), ", Unauthorized");
        assert_eq!(reason(StatusCode::BAD_GATEWAY, b"<html>"), ", Bad Gateway");
    }
}
