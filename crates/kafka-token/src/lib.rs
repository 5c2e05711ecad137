//! Gives a token for OAUTHBEARER to a Kafka client.
//!
//! librdkafka asks for a token on the main queue of a client. rdkafka 0.39 polls that queue for
//! consumers and producers, and never for an `AdminClient`, so an `AdminClient` never gets a token.
//! rdkafka has no safe function for it either. This crate has the one call of C that is needed;
//! the product itself has no `unsafe`.

use std::{
    ffi::{CString, c_char},
    ptr,
};

use rdkafka::{
    bindings::{rd_kafka_oauthbearer_set_token, rd_kafka_resp_err_t},
    client::{Client, ClientContext},
};

const MAX_ERROR_BYTES: usize = 512;

/// A token of a token endpoint.
#[derive(Clone)]
pub struct Token {
    pub value: String,
    /// Whom the token is about.
    pub principal: String,
    /// When it ends, milliseconds since 1970.
    pub ends_at_ms: i64,
}

/// Gives the client a token. Does not wait for a broker.
///
/// Fails if the mechanism of the client is not OAUTHBEARER, if the token has ended, or if it has
/// characters that a token never has. The error does not contain the token.
#[expect(unsafe_code, reason = "rdkafka 0.39 has no safe function that sets a token")]
pub fn set_token<C: ClientContext>(client: &Client<C>, token: &Token) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "a token has a zero byte".to_owned());
    let (value, principal) = (text(&token.value)?, text(&token.principal)?);
    let mut error = [0; MAX_ERROR_BYTES];
    let buffer: *mut c_char = error.as_mut_ptr().cast();
    // SAFETY: `client` keeps its handle alive during the call. The texts end with a zero byte, and
    // librdkafka copies them. There are no extensions, so their pointer may be null. The buffer of
    // the error has the length that is passed, and librdkafka ends its text with a zero byte.
    let code = unsafe {
        rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.ends_at_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            buffer,
            error.len(),
        )
    };
    if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    // librdkafka's text may quote a part of the token, so it is shown to nobody.
    Err(match code {
        rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__STATE => {
            "the mechanism of the client is not OAUTHBEARER".to_owned()
        }
        _ => "the token has ended, or it has characters that no token has".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::{ClientConfig, admin::AdminClient, client::DefaultClientContext};

    use super::*;

    fn client(mechanism: &str) -> AdminClient<DefaultClientContext> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", "127.0.0.1:9")
            .set("security.protocol", "sasl_plaintext")
            .set("sasl.username", "user")
            .set("sasl.password", "password")
            .set("sasl.mechanism", mechanism);
        config.create().unwrap()
    }

    fn token(value: &str, ends_at_ms: i64) -> Token {
        Token { value: value.to_owned(), principal: "stocklock".to_owned(), ends_at_ms }
    }

    #[test]
    fn a_client_takes_a_token_that_lives_and_no_other() {
        let client = client("OAUTHBEARER");

        assert_eq!(set_token(client.inner(), &token("a.b.c", i64::MAX / 2_000)), Ok(()));
        let ended = set_token(client.inner(), &token("hush", 1_000)).unwrap_err();
        assert!(ended.contains("has ended") && !ended.contains("hush"), "{ended}");
        let zero = set_token(client.inner(), &token("a\0b", i64::MAX / 2_000)).unwrap_err();
        assert!(zero.contains("zero byte"), "{zero}");
        let strange =
            set_token(client.inner(), &token("hush\u{7f}", i64::MAX / 2_000)).unwrap_err();
        assert!(!strange.contains("hush"), "{strange}");
        // librdkafka cuts its text off within such a token.
        let long = format!("hush\u{7f}{}", "x".repeat(2 * MAX_ERROR_BYTES));
        let long = set_token(client.inner(), &token(&long, i64::MAX / 2_000)).unwrap_err();
        assert!(!long.contains("hush"), "{long}");
    }

    #[test]
    fn a_client_of_another_mechanism_takes_no_token() {
        let client = client("PLAIN");

        let refused = set_token(client.inner(), &token("a.b.c", i64::MAX / 2_000)).unwrap_err();

        assert!(refused.contains("OAUTHBEARER"), "{refused}");
    }
}
