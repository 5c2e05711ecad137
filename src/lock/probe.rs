use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use prometheus::IntGauge;
use redis::{AsyncConnectionConfig, Client, RedisResult, Script, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use super::{
    advice::{explain, explain_silence},
    client::{MasterClient, MasterError, clients},
};
use crate::{
    config::{LockConfig, RedisConfig},
    telemetry::{Lack, Metrics},
};

/// How long a master may take to connect, and as long again to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Locks and unlocks a key of this probe. It fails on a master that is read-only, that is full, or
/// whose user lacks the right.
static LOCK_AND_UNLOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 1000)
         return redis.call('DEL', KEYS[1])",
    )
});

/// Tries whether a majority of the Redis masters can lock keys.
#[derive(Debug)]
pub(crate) struct MastersProbe {
    masters: Vec<ProbedMaster>,
    key: Arc<str>,
}

#[derive(Debug)]
struct ProbedMaster {
    address: String,
    client: MasterClient,
    /// `None` before the first attempt and after a failure.
    connection: Mutex<Option<MultiplexedConnection>>,
    up: IntGauge,
}

impl MastersProbe {
    /// Connects to nothing yet.
    ///
    /// Fails with [`MasterError::Url`], [`MasterError::Certificate`] or [`MasterError::NoPem`] if
    /// the settings of the masters are not usable.
    pub(crate) fn new(
        lock: &LockConfig,
        redis: &RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, MasterError> {
        let masters = clients(redis)?.into_iter().map(|client| {
            let address = client.address().to_string();
            let up = metrics.redis_master_up.with_label_values(&[&address]);
            ProbedMaster { address, client, connection: Mutex::default(), up }
        });
        // No product id has a space in it, so this is the key of no product.
        let key = format!("{} probe {}", lock.prefix, uuid::Uuid::now_v7().simple()).into();
        Ok(Self { masters: masters.collect(), key })
    }

    /// Asks every master to lock a key. Fails unless a majority of them does; the error names the
    /// cause for each of the others.
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

impl ProbedMaster {
    async fn attempt(&self, key: &str) -> Result<(), Lack> {
        let mut connection = self.connection.lock().await;
        let client = self.client.current();
        let trying = lock_and_unlock(&client, &mut connection, key);
        let tried = timeout(ANSWER_TIMEOUT * 2, trying).await;
        let is_up = matches!(tried, Ok(Ok(())));
        self.up.set(i64::from(is_up));
        if !is_up {
            *connection = None;
        }
        let explained = match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => explain(&self.client, &error).await,
            Err(_) => explain_silence(&self.client, "no answer".to_owned()).await,
        };
        let why = format!("{}: {explained}", self.address);
        Err(Lack { why, is_refusal: explained.is_refusal })
    }
}

async fn lock_and_unlock(
    client: &Client,
    connection: &mut Option<MultiplexedConnection>,
    key: &str,
) -> RedisResult<()> {
    let connection = if let Some(connection) = connection {
        connection
    } else {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        connection.insert(client.get_multiplexed_async_connection_with_config(&settings).await?)
    };
    LOCK_AND_UNLOCK.key(key).arg("probe").invoke_async(connection).await
}
