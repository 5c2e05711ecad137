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

use super::{client::lacks_a_right, scripts::TURNS};

const CONNECTS_WITHIN: Duration = Duration::from_secs(2);
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// A connection that has been silent for so long may be dead without a sign, and is made anew.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// Hears from the masters when it is one's turn to have a key. It may miss some, so nobody should wait for that alone.
#[derive(Debug)]
pub(super) struct Turns {
    clients: Vec<Client>,
    channel: String,
    waiter: Arc<str>,
    has_come: Arc<Notify>,
    /// From the first time on that one has to wait.
    listening: OnceLock<JoinSet<()>>,
}

impl Turns {
    pub(super) fn new(clients: Vec<Client>, prefix: &str, waiter: Arc<str>) -> Self {
        let channel = format!("{prefix}{TURNS}");
        Self { clients, channel, waiter, has_come: Arc::default(), listening: OnceLock::new() }
    }

    /// Forgets a turn that has come already.
    pub(super) fn forget(&self) {
        let _come = self.has_come.notified().now_or_never();
    }

    /// Waits until the next turn, or answers at once where one has come since this was last called.
    pub(super) async fn come(&self) {
        self.listening.get_or_init(|| {
            self.clients
                .iter()
                .map(|client| {
                    let (client, channel) = (client.clone(), self.channel.clone());
                    let (waiter, has_come) = (Arc::clone(&self.waiter), Arc::clone(&self.has_come));
                    async move { listen_always(&client, &channel, &waiter, &has_come).await }
                })
                .collect()
        });
        self.has_come.notified().await;
    }
}

async fn listen_always(client: &Client, channel: &str, waiter: &str, has_come: &Notify) {
    let mut was_warned_of = false;
    loop {
        let Err(error) = listen(client, channel, waiter, has_come).await else { continue };
        let lacks_it = matches!(&error, Deaf::Refused(error) if lacks_a_right(error));
        if lacks_it && !was_warned_of {
            was_warned_of = true;
            let master = client.get_connection_info().addr();
            tracing::warn!(
                %master, error = %format!("SUBSCRIBE: {error} ({channel})"),
                "the Redis user lacks a right; docs/locking.md lists the rights"
            );
        } else {
            tracing::debug!(%error, "a Redis master does not tell whose turn it is");
        }
        sleep(CONNECT_AGAIN).await;
    }
}

/// Listens until the connection has been silent for long.
async fn listen(
    client: &Client,
    channel: &str,
    waiter: &str,
    has_come: &Notify,
) -> Result<(), Deaf> {
    let subscribing = async {
        let mut connection = client.get_async_pubsub().await?;
        connection.subscribe(channel).await?;
        RedisResult::Ok(connection)
    };
    let mut turns = timeout(CONNECTS_WITHIN, subscribing).await??.into_on_message();
    while let Ok(turn) = timeout(LONGEST_SILENCE, turns.next()).await {
        if turn.ok_or(Deaf::Closed)?.get_payload_bytes() == waiter.as_bytes() {
            has_come.notify_one();
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error("the connection was closed")]
    Closed,
    #[error("no answer")]
    Unanswered(#[from] Elapsed),
    #[error(transparent)]
    Refused(#[from] RedisError),
}
