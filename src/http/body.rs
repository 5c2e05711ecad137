//! A request's body, and what becomes of the part that its handler does not read.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    HeaderMap,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::EXPECT,
};
use tokio::{runtime::Handle, time::timeout};

use super::connection::{Connection, WeakConnection};

/// How many bytes of an unread body the server reads and discards, and for how long it does so.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
const MAX_DISCARD_TIME: Duration = Duration::from_secs(5);

/// A request's body.
///
/// When it is dropped, the server reads and discards the part that the handler left unread. Without
/// that, a client that is still sending would see a broken connection instead of its answer.
pub(super) struct RequestBody {
    connection: Connection,
    /// `None` once the body has ended.
    unread: Option<Incoming>,
    /// The client sends the body. It does not yet if it sent `Expect: 100-continue` and the handler
    /// has read nothing.
    is_sent: bool,
}

impl RequestBody {
    pub(super) fn new(connection: Connection, headers: &HeaderMap, incoming: Incoming) -> Self {
        let unread = (!incoming.is_end_stream()).then_some(incoming);
        connection.head_read(unread.is_some());
        Self { connection, unread, is_sent: !headers.contains_key(EXPECT) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_sent = true;
        let Some(incoming) = &mut self.unread else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        match frame {
            Some(Ok(_)) => self.connection.body_grew(),
            Some(Err(_)) => self.unread = None,
            None => {
                self.unread = None;
                self.connection.body_ended();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.unread.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.unread.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(unread) = self.unread.take().filter(|_| self.is_sent) else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(MAX_DISCARD_TIME, discard(unread, self.connection.downgrade())));
        }
    }
}

/// Reads a body to its end, or until it has sent [`MAX_DISCARDED_BYTES`].
async fn discard(mut body: Incoming, connection: WeakConnection) {
    let mut discarded = 0;
    while discarded <= MAX_DISCARDED_BYTES {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => discarded += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) => return,
            None => {
                if let Some(connection) = connection.upgrade() {
                    connection.body_ended();
                }
                return;
            }
        }
    }
}
