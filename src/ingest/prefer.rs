//! The `Prefer` header (RFC 7240).

use std::time::Duration;

use axum::http::HeaderMap;

/// The longest wait for an outcome. A client that prefers more waits this long.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How long the client prefers to wait for the outcome (`wait`, RFC 7240, section 4.3), 60 s at
/// most. `None` if the header has no such preference, or a malformed one.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut named = preferences.flat_map(|value| value.split(',')).filter_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().to_owned())
    });
    let value = named.next()?;
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = quoted.unwrap_or(&value);
    // `parse` would take a sign.
    let seconds: u64 = digits.parse().ok().filter(|_| !digits.starts_with('+'))?;
    Some(Duration::from_secs(seconds).min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert("prefer", value.parse().unwrap());
        wait(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_wait_is_read_among_other_preferences_and_bounded() {
        assert_eq!(parse("wait=5"), Some(5));
        assert_eq!(parse("respond-async, WAIT = 10; x=y"), Some(10));
        assert_eq!(parse("wait=3600"), Some(60));
        assert_eq!(parse("wait=0"), Some(0));
    }

    #[test]
    fn a_malformed_preference_is_ignored() {
        for bad in [
            "wait",
            "wait=",
            "wait=soon",
            "wait=-1",
            "wait=1.5",
            "waiting=5",
            ";;,,==",
            "wait=+5",
            "wait=\"5",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
