//! `POST /v1/orders:batch`: places a stream of orders, one a line (NDJSON), and answers each line.
//!
//! A stream has any length. Ingest reads on only while few of its lines wait for their answers. So
//! its memory is bounded. A client that does not read its answers is held up.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::FuturesOrdered};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    super::{
        auth::{Caller, NoPlaceToWait, RECHECK_EVERY, StreamedOperation},
        body::{self, LineReader},
        prefer,
        problem::Problem,
        request::BatchOrder,
    },
    Api,
    place::{AnsweredOrder, Source, code_and_body},
};
use crate::{
    domain::TraceContext,
    http::{Connection, Streaming},
};

/// The most lines of one stream that wait for their answers.
const MAX_IN_FLIGHT: usize = 1_000;
/// The most lines of all streams that wait for their answers. Fewer than the committer queues, so
/// that single requests have room.
const MAX_LINES_IN_FLIGHT: usize = 4_000;
/// A chunk of answers is sent once it is as large, or once no further answer is there.
const MAX_CHUNK_BYTES: usize = 64 << 10;
/// The most lines that belong to the trace of their stream. The lines behind them are not traced.
const MAX_TRACED_LINES: usize = 128;

/// The slots of the lines of all streams. Cheap to clone; all clones are the same slots.
///
/// A stream holds at most [`MAX_IN_FLIGHT`] slots, and at most half as many as are free. So slots
/// are left for another stream, even if many clients read no answers. This is the rule of dynamic
/// thresholds (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
/// Switches", IEEE/ACM Transactions on Networking 6(2), 1998).
#[derive(Clone)]
pub(crate) struct BatchSlots(Arc<Semaphore>);

impl BatchSlots {
    /// Whether a stream that holds `held` slots may take another one. The first slot may be waited
    /// for.
    fn allow(&self, held: usize) -> bool {
        held == 0 || held < MAX_IN_FLIGHT.min(self.0.available_permits() / 2)
    }
}

impl Default for BatchSlots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LINES_IN_FLIGHT)))
    }
}

/// Responds 200 with an answer to each line, in their order. A line is answered with the code and
/// the body that a single request would receive.
///
/// Fails with a 415 if the content type is given and is not NDJSON.
pub(super) async fn place_batch(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    Extension(caller): Extension<Caller>,
    trace: Option<Extension<TraceContext>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    body::check_lines_type(&headers)?;
    let batch = Batch {
        max_wait: prefer::wait(&headers),
        input: Some(Input {
            lines: LineReader::new(body, connection.clone()),
            order: None,
            hold_max_seconds: api.hold_max_seconds,
            slots: Arc::clone(&api.batch_slots.0),
            caller: caller.clone(),
            pace: Pace::NotPaid,
        }),
        in_flight: FuturesOrdered::new(),
        api,
        caller,
        connection,
        trace: trace.map(|Extension(context)| context),
        traced_lines: 0,
        streaming: None,
        checked_at: Instant::now(),
    };
    let answers = Body::from_stream(stream::unfold(batch, Batch::next));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (UNBUFFERED, "no")];
    Ok((headers, answers).into_response())
}

/// nginx sends no answer on before its buffer is full, unless the response says so.
const UNBUFFERED: header::HeaderName = header::HeaderName::from_static("x-accel-buffering");

/// A stream of orders, and of their answers.
struct Batch {
    api: Arc<Api>,
    caller: Caller,
    /// How long a line waits for the outcome of its order.
    max_wait: Option<Duration>,
    /// `None` once the last line is read.
    input: Option<Input>,
    in_flight: FuturesOrdered<BoxFuture<'static, Vec<u8>>>,
    connection: Connection,
    /// The trace of the request, if it is sampled.
    trace: Option<TraceContext>,
    traced_lines: usize,
    streaming: Option<Streaming>,
    /// When the caller's token was checked last.
    checked_at: Instant,
}

/// The order of a line, or why it is none.
type ReadOrder = Result<BatchOrder, Problem>;

/// The lines that are still to be read.
struct Input {
    lines: LineReader,
    /// The order of a line that was read, and waits until it may be placed.
    order: Option<ReadOrder>,
    hold_max_seconds: u32,
    slots: Arc<Semaphore>,
    caller: Caller,
    pace: Pace,
}

/// How far the next line is counted as a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    NotPaid,
    PaidByPrincipal,
    Paid,
}

impl Input {
    /// Returns the next order with its slot. `None` after the last line. May be cancelled: nothing
    /// is lost.
    ///
    /// A line takes a slot once it was read, so a client that sends slowly holds none. From then
    /// on the client waits for ingest, so its connection is not idle.
    async fn next(
        &mut self,
        streaming: Option<&Streaming>,
    ) -> Option<(ReadOrder, OwnedSemaphorePermit)> {
        if self.order.is_none() {
            let line = self.lines.next().await?;
            let order = line.and_then(|line| BatchOrder::parse(&line, self.hold_max_seconds));
            self.order = Some(order);
            if let Some(streaming) = streaming {
                streaming.set_idle(false);
            }
        }
        if self.pace == Pace::NotPaid {
            self.caller.pace_principal().await;
            self.pace = Pace::PaidByPrincipal;
        }
        if self.pace == Pace::PaidByPrincipal {
            self.caller.pace_all().await;
            self.pace = Pace::Paid;
        }
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        self.pace = Pace::NotPaid;
        self.order.take().map(|order| (order, slot))
    }

    /// Whether ingest waits for the client's next line.
    fn waits_for_client(&self) -> bool {
        self.order.is_none()
    }
}

impl Batch {
    /// Returns the next answers. `None` after the last.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        self.streaming.get_or_insert_with(|| self.connection.streaming());
        loop {
            let may_read = self.api.batch_slots.allow(self.in_flight.len());
            let input = self.input.as_mut().filter(|_| may_read);
            if input.is_none() && self.in_flight.is_empty() {
                return None;
            }
            // A connection on which nothing is in flight may be cut for another.
            let is_idle = input.as_ref().is_some_and(|input| input.waits_for_client());
            if let Some(streaming) = &self.streaming {
                streaming.set_idle(is_idle && self.in_flight.is_empty());
            }
            tokio::select! {
                biased;
                Some(answer) = self.in_flight.next() => {
                    return Some((Ok(self.chunk(answer)), self));
                }
                () = self.api.shutdown.requested(), if input.is_some() => self.stop(),
                line = next_line(input, self.streaming.as_ref()) => match line {
                    Some((order, slot)) => self.begin(order, slot),
                    None => self.input = None,
                },
            }
        }
    }

    /// Adds the answers that are there already.
    fn chunk(&mut self, mut chunk: Vec<u8>) -> Bytes {
        while chunk.len() < MAX_CHUNK_BYTES
            && let Some(Some(answer)) = self.in_flight.next().now_or_never()
        {
            chunk.extend_from_slice(&answer);
        }
        chunk.into()
    }

    /// Reads no further line. The last answer says so.
    fn stop(&mut self) {
        let detail = "this process stops: send the lines without an answer again";
        self.end_with(&Problem::unavailable(detail));
    }

    /// Reads no further line, and answers the last one with a problem.
    fn end_with(&mut self, problem: &Problem) {
        self.input = None;
        let last = line_of(problem);
        self.in_flight.push_back(async move { last }.boxed());
    }

    /// Begins to place the order of a line, if the caller's token is still good.
    fn begin(&mut self, order: ReadOrder, slot: OwnedSemaphorePermit) {
        if self.checked_at.elapsed() >= RECHECK_EVERY {
            self.checked_at = Instant::now();
            let checked = self.caller.check_again(StreamedOperation::Batch, &self.connection);
            if let Err(problem) = checked {
                self.end_with(&problem);
                return;
            }
            if let Some(input) = &mut self.input {
                // Its limits may be new.
                input.caller = self.caller.clone();
            }
        }
        let (api, max_wait, trace) = (Arc::clone(&self.api), self.max_wait, self.trace_of_line());
        let caller = self.caller.clone();
        let answering = async move {
            let _slot = slot;
            api.place_line(order, &caller, max_wait, trace).await
        };
        self.in_flight.push_back(answering.boxed());
    }

    fn trace_of_line(&mut self) -> Option<Box<TraceContext>> {
        let trace = self.trace.as_ref().filter(|_| self.traced_lines < MAX_TRACED_LINES)?;
        self.traced_lines += 1;
        Some(Box::new(trace.clone()))
    }
}

async fn next_line(
    input: Option<&mut Input>,
    streaming: Option<&Streaming>,
) -> Option<(ReadOrder, OwnedSemaphorePermit)> {
    match input {
        Some(input) => input.next(streaming).await,
        None => std::future::pending().await,
    }
}

impl Api {
    /// Places the order of a line, and returns the line that answers it.
    async fn place_line(
        &self,
        order: ReadOrder,
        caller: &Caller,
        max_wait: Option<Duration>,
        trace: Option<Box<TraceContext>>,
    ) -> Vec<u8> {
        let placed = match order {
            Ok(BatchOrder { order_id, idempotency_key, request }) => {
                let source = match (order_id, idempotency_key) {
                    (Some(id), _) => Source::Client(id),
                    (None, key) => Source::of_key(key, caller),
                };
                self.place(source, request, trace).await
            }
            Err(problem) => Err(problem),
        };
        // Without a place to wait, the line is answered at once.
        let (max_wait, _place) = match max_wait.map(|max_wait| (max_wait, caller.place_to_wait())) {
            Some((max_wait, Ok(place))) => (Some(max_wait), place),
            Some((_, Err(NoPlaceToWait))) | None => (None, None),
        };
        let answered = self.answered(placed, max_wait).await;
        match answered.and_then(|answered| Ok((code_and_body(&answered.order)?, answered))) {
            Ok(((status, body), AnsweredOrder { order, is_replayed })) => {
                let order_id = order.order_id.to_string();
                let mut answer =
                    json!({"status": status.as_u16(), "order_id": order_id, "body": body});
                if is_replayed {
                    answer["idempotent_replayed"] = true.into();
                }
                ended(answer.to_string())
            }
            Err(problem) => line_of(&problem),
        }
    }
}

/// The answer to a line whose order was not placed, or has failed.
fn line_of(problem: &Problem) -> Vec<u8> {
    let body = problem.body();
    let mut answer = json!({"status": problem.status().as_u16()});
    if let Some(order_id) = body.get("order_id") {
        answer["order_id"] = order_id.clone();
    }
    answer["body"] = body;
    ended(answer.to_string())
}

fn ended(line: String) -> Vec<u8> {
    let mut bytes = line.into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_left_for_another_stream_however_many_are_held() {
        for (streams, each) in [(1, 1_000), (4, 667), (100, 40), (1_000, 4)] {
            let slots = BatchSlots::default();
            let mut held: Vec<Vec<OwnedSemaphorePermit>> = Vec::new();
            held.resize_with(streams, Vec::new);
            let mut before = usize::MAX;
            while before != slots.0.available_permits() {
                before = slots.0.available_permits();
                for stream in held.iter_mut().filter(|stream| slots.allow(stream.len())) {
                    stream.push(Arc::clone(&slots.0).try_acquire_owned().unwrap());
                }
            }

            let most = held.iter().map(Vec::len).max();
            assert_eq!(most, Some(each), "{streams} streams");
            assert!(slots.0.available_permits() >= each, "{streams} streams");
        }
    }
}
