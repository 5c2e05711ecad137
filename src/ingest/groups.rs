//! Groups of requests that share a transaction.

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::config::BatchConfig;

/// Requests that wait for their transaction.
pub(super) struct GroupQueue<T> {
    requests: mpsc::Receiver<T>,
    groups: BatchConfig,
    /// When the last group was closed.
    closed_at: Instant,
}

impl<T> GroupQueue<T> {
    /// `groups` bounds the requests of a transaction.
    pub(super) fn new(requests: mpsc::Receiver<T>, groups: BatchConfig) -> Self {
        Self { requests, groups, closed_at: Instant::now() }
    }

    /// Waits for requests and closes their group, as a lane closes its batches: when it is full, or
    /// when no request waits and `linger` has passed since the last group. So a lone request does
    /// not wait (Nagle, RFC 896). Empty if no more requests will come.
    pub(super) async fn next_group(&mut self) -> Vec<T> {
        let BatchConfig { max, linger } = self.groups;
        let mut group = Vec::new();
        let mut received = self.requests.recv_many(&mut group, max).await;
        while received > 0 && group.len() < max {
            let room = max - group.len();
            received = tokio::select! {
                biased;
                received = self.requests.recv_many(&mut group, room) => received,
                () = sleep_until(self.closed_at + linger) => 0,
            };
        }
        self.closed_at = Instant::now();
        group
    }
}
