use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    http::StatusCode,
};
use futures::StreamExt;

use super::{MAX_BODY_BYTES, problem::Problem};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read on, and for how long.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Reads a body of at most [`MAX_BODY_BYTES`]. A larger one is read on for a while and thrown away: a client that is cut off
/// while it sends sees a broken connection, not the answer.
pub async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    let too_slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive; nothing was saved");
    tokio::time::timeout(TIMEOUT, read_all(body)).await.map_err(too_slow)?
}

async fn read_all(body: Body) -> Result<Vec<u8>, Problem> {
    let (mut chunks, mut bytes) = (body.into_data_stream(), Vec::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("the body breaks off: {e}")))?;
        if bytes.len() + chunk.len() > MAX_BODY_BYTES {
            let _too_long = tokio::time::timeout(DISCARD_TIME, discard(chunks)).await;
            let detail = format!("a body has at most {MAX_BODY_BYTES} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn discard(mut chunks: BodyDataStream) {
    let mut discarded = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        discarded += chunk.len();
        if discarded > DISCARD_BYTES {
            return;
        }
    }
}
