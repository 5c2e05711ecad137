use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::time::timeout;

use super::{LockError, client::clients};
use crate::config;

const KEYS_AT_A_TIME: usize = 1_000;
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A key on a master that will outlive whoever set it by more than the TTL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlong {
    pub(crate) key: String,
    /// The number of its master in `redis.urls`, from 0.
    pub(crate) master: usize,
    /// What is left of its life; `None` where it has no end.
    pub(crate) left: Option<Duration>,
}

/// Keys of ours, on any master, that live for longer than the TTL. Fails where a master does not answer.
pub async fn overlong_keys(
    lock: &config::LockConfig,
    redis: &config::RedisConfig,
) -> Result<Vec<Overlong>, LockError> {
    let mut overlong = Vec::new();
    for (master, (client, url)) in clients(redis)?.into_iter().zip(&redis.urls).enumerate() {
        let found = timeout(ANSWERS_WITHIN, survey(&client, lock)).await;
        let found = found
            .map_err(|_| "no answer".to_owned())
            .and_then(|found| found.map_err(|e| e.to_string()));
        let found = found.map_err(|why| LockError::Unanswered(format!("{url}: {why}")))?;
        overlong.extend(found.into_iter().map(|(key, left)| Overlong { key, master, left }));
    }
    Ok(overlong)
}

async fn survey(
    client: &Client,
    lock: &config::LockConfig,
) -> RedisResult<Vec<(String, Option<Duration>)>> {
    // The client's own limits are far shorter.
    let patient =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await?;
    let (mut overlong, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(format!("{}*", escaped(&lock.prefix)))
            .arg("COUNT")
            .arg(KEYS_AT_A_TIME);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
        if !keys.is_empty() {
            let mut asking = redis::pipe();
            for key in &keys {
                asking.cmd("PTTL").arg(key);
            }
            let left_ms: Vec<i64> = asking.query_async(&mut connection).await?;
            overlong.extend(keys.into_iter().zip(left_ms).filter_map(
                |(key, left_ms)| match left_ms {
                    -1 => Some((key, None)),
                    gone if gone < 0 => None,
                    left_ms => {
                        let left = Duration::from_millis(left_ms.unsigned_abs());
                        (left > lock.ttl).then_some((key, Some(left)))
                    }
                },
            ));
        }
        if next == 0 {
            return Ok(overlong);
        }
        cursor = next;
    }
}

/// The prefix where a pattern is expected.
fn escaped(prefix: &str) -> String {
    prefix
        .chars()
        .flat_map(|c| ['\\'].into_iter().filter(move |_| r"*?[]\^".contains(c)).chain([c]))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(super::escaped(r"lock[1]*:\"), r"lock\[1\]\*:\\");
        assert_eq!(super::escaped("stocklock:lock:"), "stocklock:lock:");
    }
}
