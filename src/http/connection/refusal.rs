//! A connection, or a head, for which the server has no room: an answer, and the end.

use std::{io::Read as _, net::Shutdown};

use socket2::SockRef;

use super::{Connection, READ_BYTES};
use crate::http::io::problem;

const NO_SLOT: &str = "too many connections; nothing was saved";
const NO_HEAD_MEMORY: &str = "the heads of all requests are too large together; nothing was saved";
/// Most reads of [`READ_BYTES`] each that discard what a refused client has sent.
const MAX_REFUSED_READS: usize = 16;

impl Connection {
    /// Refuses a connection for which there is no slot.
    pub(in crate::http) fn refuse(&self) {
        self.refuse_with(NO_SLOT);
    }

    /// Refuses a head for which there is no memory.
    pub(super) fn refuse_head(&self) {
        self.refuse_with(NO_HEAD_MEMORY);
    }

    /// Sends a 503, as far as the socket takes it at once, and ends the connection. Ends an
    /// encrypted connection without an answer.
    fn refuse_with(&self, detail: &str) {
        self.count_refusal("503");
        let again = "retry-after: 1\r\n";
        self.send_now(problem("503", "Service Unavailable", again, detail).as_bytes());
        let socket = SockRef::from(&self.0.stream);
        let _sent = socket.shutdown(Shutdown::Write);
        let mut bytes = [0; READ_BYTES];
        for _ in 0..MAX_REFUSED_READS {
            // A socket that is closed with bytes unread resets the connection.
            if !(&*socket).read(&mut bytes).is_ok_and(|read| read > 0) {
                return;
            }
        }
    }
}
