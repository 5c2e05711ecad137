use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use prometheus::IntGauge;
use redis::{AsyncConnectionConfig, Client, RedisResult, Script, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use super::{LockError, client::clients};
use crate::{
    config,
    telemetry::{Lack, Metrics},
};

/// How long a master may take to connect and to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Locks and unlocks a key of ours. A master that is read-only, is full or denies the right refuses
/// it.
static LOCK_AND_UNLOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 1000)
         return redis.call('DEL', KEYS[1])",
    )
});

/// Tries whether a majority of the Redis masters locks keys.
#[derive(Debug)]
pub(crate) struct MastersProbe {
    masters: Vec<Probed>,
    key: Arc<str>,
}

#[derive(Debug)]
struct Probed {
    address: String,
    client: Client,
    /// `None` before the first attempt, and after one that failed.
    connection: Mutex<Option<MultiplexedConnection>>,
    up: IntGauge,
}

impl MastersProbe {
    /// Connects to nothing yet. Fails where a Redis URL does not parse, or a file of certificates is none.
    pub(crate) fn new(
        lock: &config::LockConfig,
        redis: &config::RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, LockError> {
        let masters = clients(redis)?.into_iter().map(|client| {
            let address = client.get_connection_info().addr().to_string();
            let up = metrics.redis_master_up.with_label_values(&[&address]);
            Probed { address, client, connection: Mutex::default(), up }
        });
        // No product's id has a space in it, so that this is no product's key.
        let key = format!("{} probe {}", lock.prefix, uuid::Uuid::now_v7().simple()).into();
        Ok(Self { masters: masters.collect(), key })
    }

    /// Asks every master. Fails where no majority of them locks a key.
    pub(crate) async fn attempt(&self) -> Result<(), Lack> {
        let tried =
            futures::future::join_all(self.masters.iter().map(|master| master.attempt(&self.key)))
                .await;
        let lacks: Vec<_> = tried.into_iter().filter_map(Result::err).collect();
        if lacks.len() < self.masters.len() - self.masters.len() / 2 {
            return Ok(());
        }
        let why = lacks.iter().map(|lack| lack.why.as_str()).collect::<Vec<_>>().join("; ");
        let locking = self.masters.len() - lacks.len();
        let why = format!(
            "{locking} of {} masters lock keys, a majority is needed: {why}",
            self.masters.len()
        );
        Err(Lack { why, is_refusal: lacks.iter().any(|lack| lack.is_refusal) })
    }
}

impl Probed {
    async fn attempt(&self, key: &str) -> Result<(), Lack> {
        let mut connection = self.connection.lock().await;
        let tried = timeout(ANSWERS_WITHIN * 2, self.lock_and_unlock(&mut connection, key)).await;
        let is_up = matches!(tried, Ok(Ok(())));
        self.up.set(i64::from(is_up));
        if !is_up {
            *connection = None;
        }
        match tried {
            Ok(Ok(())) => Ok(()),
            // An error of the server's has a code.
            Ok(Err(error)) => {
                let why = format!("{}: {error}", self.address);
                Err(if error.code().is_some() {
                    Lack::refused(why)
                } else {
                    Lack::unreachable(why)
                })
            }
            Err(_) => Err(Lack::unreachable(format!("{}: no answer", self.address))),
        }
    }

    async fn lock_and_unlock(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        key: &str,
    ) -> RedisResult<()> {
        let connection = if let Some(connection) = connection {
            connection
        } else {
            let settings = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(ANSWERS_WITHIN))
                .set_response_timeout(Some(ANSWERS_WITHIN));
            connection
                .insert(self.client.get_multiplexed_async_connection_with_config(&settings).await?)
        };
        LOCK_AND_UNLOCK.key(key).arg("probe").invoke_async(connection).await
    }
}
