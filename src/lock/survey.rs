use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::time::timeout;

use super::{
    advice::explain,
    client::{MasterError, clients},
};
use crate::config::{LockConfig, RedisConfig};

/// How many keys a master looks at in one step of a scan.
const SCAN_COUNT: usize = 1_000;
/// How long the survey of one master may take.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(10);

/// A key on a master that outlives its holder by more than the TTL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlongKey {
    pub(crate) key: String,
    /// The index of its master in `redis.urls`.
    pub(crate) master: usize,
    /// `None` if the key never expires.
    pub(crate) expires_in: Option<Duration>,
}

/// Finds the keys below `lock.prefix`, on all masters, that expire later than `lock.ttl` from now.
///
/// Fails with [`MasterError::Failed`] or [`MasterError::Silent`] if a master does not answer, and
/// with the errors of the settings if the masters' URLs or certificates are not usable.
pub async fn overlong_keys(
    lock: &LockConfig,
    redis: &RedisConfig,
) -> Result<Vec<OverlongKey>, MasterError> {
    let mut overlong = Vec::new();
    for (master, (client, url)) in clients(redis)?.into_iter().zip(&redis.urls).enumerate() {
        let found = timeout(SURVEY_TIMEOUT, survey(&client.current(), master, lock))
            .await
            .map_err(|_| MasterError::Silent { url: url.clone(), limit: SURVEY_TIMEOUT })?;
        match found {
            Ok(found) => overlong.extend(found),
            Err(source) => {
                let text = explain(&client, &source).await.to_string();
                return Err(MasterError::Failed { url: url.clone(), text, source });
            }
        }
    }
    Ok(overlong)
}

async fn survey(
    client: &Client,
    master: usize,
    lock: &LockConfig,
) -> RedisResult<Vec<OverlongKey>> {
    // The client's own limits are far shorter than the survey's.
    let unlimited =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&unlimited).await?;
    let (mut overlong, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(format!("{}*", escaped(&lock.prefix)))
            .arg("COUNT")
            .arg(SCAN_COUNT);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
        if !keys.is_empty() {
            let mut lifetimes = redis::pipe();
            for key in &keys {
                lifetimes.cmd("PTTL").arg(key);
            }
            let pttls: Vec<i64> = lifetimes.query_async(&mut connection).await?;
            let found = keys.into_iter().zip(pttls);
            let found = found.filter(|(_, pttl)| is_overlong(*pttl, lock.ttl));
            overlong.extend(found.map(|(key, pttl)| {
                let expires_in = u64::try_from(pttl).ok().map(Duration::from_millis);
                OverlongKey { key, master, expires_in }
            }));
        }
        if next == 0 {
            return Ok(overlong);
        }
        cursor = next;
    }
}

/// Whether a key lives for longer than the TTL. `pttl` is the answer to `PTTL`: milliseconds, −1
/// for a key that never expires, −2 for a key that is gone.
fn is_overlong(pttl: i64, ttl: Duration) -> bool {
    match pttl {
        -1 => true,
        gone if gone < 0 => false,
        millis => Duration::from_millis(millis.unsigned_abs()) > ttl,
    }
}

/// The prefix as a literal within a pattern of Redis.
pub(super) fn escaped(prefix: &str) -> String {
    prefix
        .chars()
        .flat_map(|c| ['\\'].into_iter().filter(move |_| r"*?[]\^".contains(c)).chain([c]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_overlong_if_it_outlives_the_ttl_or_never_expires() {
        let overlong =
            [-2, -1, 9_999, 10_000, 10_001].map(|pttl| is_overlong(pttl, Duration::from_secs(10)));

        assert_eq!(overlong, [false, true, false, false, true]);
    }

    #[test]
    fn a_prefix_is_a_literal_within_a_pattern() {
        assert_eq!(escaped(r"lock[1]*:\"), r"lock\[1\]\*:\\");
        assert_eq!(escaped("stocklock:lock:"), "stocklock:lock:");
    }
}
