use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream, HttpBody as _},
    http::{HeaderMap, StatusCode, header},
};
use futures::StreamExt;
use tokio::time::timeout;

use super::{MAX_BODY_BYTES, problem::Problem};
use crate::http::{Connection, HeldMemory};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may send nothing of a body.
const SILENCE: Duration = Duration::from_secs(10);
const FIRST_BYTES: usize = 1 << 10;

/// Fails with 415 where the content type is given and is not JSON. A web page of another origin may
/// send forms and texts, but no JSON.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    if given.all(|value| value.to_str().is_ok_and(is_json)) {
        return Ok(());
    }
    let detail = "the content type is not application/json; nothing was saved";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        .header(header::ACCEPT, "application/json"))
}

/// `application/json` or a type of the suffix `+json` (RFC 6839), whatever its parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.strip_prefix("application/") {
        Some(subtype) => {
            subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty())
        }
        None => false,
    }
}

/// A body that was read, and the memory that it holds.
pub(super) struct Read {
    pub(crate) bytes: Vec<u8>,
    _held: HeldMemory,
}

/// Reads a body of at most [`MAX_BODY_BYTES`].
///
/// Fails with 408 for a body that arrives too slowly, 413 for one that is too large, and 503 where
/// all bodies together hold too much memory.
pub(super) async fn read(body: Body, connection: &Connection) -> Result<Read, Problem> {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let reading = timeout(TIMEOUT, read_all(body.into_data_stream(), connection));
    let read = reading.await.unwrap_or_else(|_| Err(too_slow()))?;
    connection.request_read();
    Ok(read)
}

async fn read_all(mut chunks: BodyDataStream, connection: &Connection) -> Result<Read, Problem> {
    let (mut bytes, mut held) = (Vec::new(), HeldMemory::default());
    while let Some(chunk) = timeout(SILENCE, chunks.next()).await.map_err(|_| too_slow())? {
        let chunk = chunk.map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, format!("the body breaks off: {e}"))
        })?;
        let length = bytes.len() + chunk.len();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if length > bytes.capacity() {
            let room = length.max(2 * bytes.capacity()).clamp(FIRST_BYTES, MAX_BODY_BYTES);
            if !connection.memory().hold_body(&mut held, room) {
                return Err(Problem::unavailable(
                    "the bodies of all requests are too large; nothing was saved",
                ));
            }
            bytes.reserve_exact(room - bytes.len());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Read { bytes, _held: held })
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a body has at most {MAX_BODY_BYTES} bytes"),
    )
}

fn too_slow() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive; nothing was saved")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_what_a_web_page_may_send() {
        for json in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/vnd.shop.order+json",
        ] {
            assert!(is_json(json), "{json}");
        }
        for other in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "json",
        ] {
            assert!(!is_json(other), "{other}");
        }
        for other in
            ["text/json", "application/+json", "application/jsonp", "application/json, text/plain"]
        {
            assert!(!is_json(other), "{other}");
        }
    }
}
