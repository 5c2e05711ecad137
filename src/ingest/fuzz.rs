//! Fuzzes the readers of requests.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue},
};
use futures::stream;

use super::{
    api, body, body::LineReader, idempotency, prefer, problem::Problem, request::BatchOrder,
    request::ExtendRequest, request::OrderRequest, request::RecordOrder,
};
use crate::{
    domain::adjustment::AdjustmentRequest,
    http::Connection,
    reader_fuzz::fuzz,
    wire::{OrderRequestCodec, StockAdjustmentCodec, WriterSchema},
};

const HOLD_MAX_SECONDS: u32 = 86_400;

fn shown<T>(result: &Result<T, Problem>) -> String {
    match result {
        Ok(_) => "read".to_owned(),
        Err(problem) => problem.body().to_string(),
    }
}

#[test]
fn orders_are_read_or_refused() {
    fuzz("order_request", |bytes| {
        let order = OrderRequest::parse(bytes, HOLD_MAX_SECONDS);
        let of_batch = BatchOrder::parse(bytes, HOLD_MAX_SECONDS);
        if let Ok(order) = &order {
            assert_eq!(of_batch.as_ref().ok().map(|batch| &batch.request), Some(order));
        }
        let extension = ExtendRequest::parse(bytes, HOLD_MAX_SECONDS);
        shown(&order) + &shown(&of_batch) + &shown(&extension)
    });
}

#[test]
fn orders_of_the_topic_are_read_or_refused() {
    let schema = include_str!("../../tests/corpus/schema/extended_request.avsc");
    let writer = WriterSchema::parse("a test", Some(19), schema).unwrap();
    let codec = OrderRequestCodec::reading(&[writer]).unwrap();

    fuzz("intake_order", |bytes| match codec.json(bytes) {
        Ok(text) => shown(&RecordOrder::parse(&text, HOLD_MAX_SECONDS)),
        Err(error) => error.to_string(),
    });
}

#[test]
fn adjustments_are_read_or_refused() {
    let codec = StockAdjustmentCodec::reading(&[]).unwrap();

    fuzz("adjustment_request", |bytes| {
        let request = AdjustmentRequest::parse(bytes);
        // The topic takes no JSON that the API refuses.
        if bytes.trim_ascii_start().starts_with(b"{")
            && let Ok(of_topic) = codec.decode(bytes)
        {
            assert_eq!(request.as_ref().ok(), Some(&of_topic));
        }
        shown(&request)
    });
}

/// The lines of a body that arrives in these pieces.
async fn lines(pieces: Vec<Bytes>, connection: &Connection) -> Vec<String> {
    let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)));
    let (mut reader, mut lines) = (LineReader::new(body, connection.clone()), Vec::new());
    while let Some(line) = reader.next().await {
        lines.push(shown(&line.and_then(|line| BatchOrder::parse(&line, HOLD_MAX_SECONDS))));
    }
    lines
}

#[test]
fn lines_are_read_the_same_however_the_body_is_cut() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connection = runtime.block_on(Connection::of_test());

    fuzz("order_lines", |bytes| {
        let whole = Bytes::copy_from_slice(bytes);
        let pieces: Vec<_> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
        runtime.block_on(async {
            let expected = lines(vec![whole], &connection).await;
            assert_eq!(lines(pieces, &connection).await, expected);
            expected.concat()
        })
    });
}

/// Reads lines such as `prefer: wait=1`. Leaves out what HTTP itself does not allow.
fn headers(bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.try_append(name, value).unwrap();
        }
    }
    headers
}

#[test]
fn headers_are_read_or_refused() {
    fuzz("headers", |bytes| {
        let headers = headers(bytes);
        let wait = prefer::wait(&headers);
        assert!(wait.is_none_or(|wait| wait.as_secs() <= 60));
        let key = idempotency::key(&headers);
        if let Ok(Some(key)) = &key {
            assert!((1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
        }
        let types = [body::check_content_type(&headers), body::check_lines_type(&headers)];
        let types = types.map(|result| shown(&result)).concat();
        format!("{}{}{types}{}", wait.is_some(), shown(&key), api::read_headers(&headers))
    });
}
