use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use redis::{Client, RedisError, RedisResult};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{error::Elapsed, sleep, timeout},
};

use super::{
    client::{MasterClient, lacks_a_right},
    scripts::NOTICE_CHANNEL,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// A connection that is silent for so long may be broken without a sign, so it is replaced.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Receives the notices that this lane is first in the queue of a key that was released.
///
/// A notice may be lost. So the caller never waits for a notice alone.
#[derive(Debug)]
pub(super) struct QueueNotices {
    clients: Vec<MasterClient>,
    channel: String,
    /// The lane's name in the queues.
    waiter: Arc<str>,
    received: Arc<Notify>,
    /// One task for each master. They start when the lane waits for the first time.
    listeners: OnceLock<JoinSet<()>>,
}

impl QueueNotices {
    /// `prefix` is `lock.prefix`. Connects to nothing yet.
    pub(super) fn new(clients: Vec<MasterClient>, prefix: &str, waiter: Arc<str>) -> Self {
        let channel = format!("{prefix}{NOTICE_CHANNEL}");
        Self { clients, channel, waiter, received: Arc::default(), listeners: OnceLock::new() }
    }

    /// Drops a notice that was received before.
    pub(super) fn clear(&self) {
        let _dropped = self.received.notified().now_or_never();
    }

    /// Waits for the next notice. Returns at once if one was received since the last call of this
    /// function or of [`QueueNotices::clear`].
    pub(super) async fn wait(&self) {
        self.listeners.get_or_init(|| {
            self.clients
                .iter()
                .map(|client| {
                    let (client, channel) = (client.clone(), self.channel.clone());
                    let (waiter, received) = (Arc::clone(&self.waiter), Arc::clone(&self.received));
                    async move { listen_always(&client, &channel, &waiter, &received).await }
                })
                .collect()
        });
        self.received.notified().await;
    }
}

/// Subscribes again after each failure. Warns once if the Redis user may not subscribe.
async fn listen_always(client: &MasterClient, channel: &str, waiter: &str, received: &Notify) {
    let mut has_warned = false;
    loop {
        let Err(error) = listen(&client.current(), channel, waiter, received).await else {
            continue;
        };
        let lacks_the_right =
            matches!(&error, SubscriptionError::Redis(error) if lacks_a_right(error));
        if lacks_the_right && !has_warned {
            has_warned = true;
            let master = client.address();
            tracing::warn!(
                %master, error = %format!("SUBSCRIBE: {error} ({channel})"),
                "the Redis user lacks a right; docs/locking.md lists the rights"
            );
        } else {
            tracing::debug!(%error, "subscription to a Redis master's notices failed");
        }
        sleep(RECONNECT_DELAY).await;
    }
}

/// Listens on one connection, until it has been silent for [`MAX_SILENCE`].
///
/// Fails with [`SubscriptionError::Silent`] if the master does not answer in time, with
/// [`SubscriptionError::Redis`] if it refuses, and with [`SubscriptionError::Closed`] if it closes
/// the connection.
async fn listen(
    client: &Client,
    channel: &str,
    waiter: &str,
    received: &Notify,
) -> Result<(), SubscriptionError> {
    let subscribing = async {
        let mut connection = client.get_async_pubsub().await?;
        connection.subscribe(channel).await?;
        RedisResult::Ok(connection)
    };
    let mut notices = timeout(CONNECT_TIMEOUT, subscribing).await??.into_on_message();
    while let Ok(notice) = timeout(MAX_SILENCE, notices.next()).await {
        let notice = notice.ok_or(SubscriptionError::Closed)?;
        if notice.get_payload_bytes() == waiter.as_bytes() {
            received.notify_one();
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum SubscriptionError {
    #[error("the master closed the connection")]
    Closed,
    #[error("the master did not answer within {CONNECT_TIMEOUT:?}")]
    Silent(#[from] Elapsed),
    #[error(transparent)]
    Redis(#[from] RedisError),
}
