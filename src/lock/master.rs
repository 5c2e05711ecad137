use std::{
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, FromRedisValue, IntoConnectionInfo as _, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// The keys of a batch, and what tells them from anybody else's.
#[derive(Debug)]
pub(super) struct Claim {
    pub keys: Vec<String>,
    /// For how long each key has been wanted.
    pub waited: Vec<Duration>,
    pub token: String,
    pub ttl: Duration,
    /// What all keys begin with.
    pub prefix: Arc<str>,
    /// Who claims, in the queues.
    pub waiter: Arc<str>,
}

/// Keys of one script. A master serves nobody else while it runs, less than 3 ms.
const KEYS_AT_A_TIME: usize = 1_000;

/// How long a request is waited for before the connection counts as broken, and data without acknowledgement before it is.
const BROKEN_AFTER: Duration = Duration::from_secs(2);

/// How often a master that did not answer is asked to forget what it was asked before.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How long one may stay first in a key's queue without asking for it again.
const LONGEST_TURN: Duration = Duration::from_millis(500);

/// Where whose turn it is gets published, after the prefix of the keys. No product's id has a space in it, so neither this nor any other
/// of our names is a product's key.
pub(super) const TURNS: &str = " turns";

/// What all scripts have in common.
///
/// Whoever is refused a key gets a place in its queue, a sorted set by the time since when each has waited, reckoned by the master's own
/// clock. To be there still, each has a key that lives for [`LONGEST_TURN`]. A set names the keys that have queues.
macro_rules! script {
    ($body:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "local token, ttl, prefix, waiter, longest_turn = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
                 local queues, has_queue = prefix .. ' queues', {}
                 local function first_in_queue(key)
                   while true do
                     local first = redis.call('ZRANGE', key .. ' queue', 0, 0, 'WITHSCORES')
                     if #first == 0 then
                       redis.call('SREM', queues, key)
                       return nil
                     end
                     if redis.call('EXISTS', key .. ' place ' .. first[1]) == 1 then return first[1], tonumber(first[2]) end
                     redis.call('ZREM', key .. ' queue', first[1])
                   end
                 end
                 local function read_queues()
                   for _, key in ipairs(redis.call('SMEMBERS', queues)) do has_queue[key] = true end
                 end
                 local function keep_place(key)
                   redis.call('SET', key .. ' place ' .. waiter, '', 'PX', longest_turn)
                 end
                 local time = redis.call('TIME')
                 local now = time[1] * 1000 + math.floor(time[2] / 1000)
                 local function since(i) return now - ARGV[5 + i] end
                 local function is_its_turn(i, key)
                   if not has_queue[key] then return true end
                   local first, first_since = first_in_queue(key)
                   if first == waiter then keep_place(key) end
                   return not first or first == waiter or first_since > since(i)
                 end\n",
                $body
            ))
        })
    };
}

/// Locks all keys or none, and answers whether it did. Where another holds one, or has waited for it for longer, the claimant gets a
/// place in its queue, and keeps the places in which it is first.
static LOCK: LazyLock<Script> = script!(
    "read_queues()
     for i, key in ipairs(KEYS) do
       if not (is_its_turn(i, key) and redis.call('SET', key, token, 'NX', 'PX', ttl)) then
         for granted = 1, i - 1 do redis.call('DEL', KEYS[granted]) end
         redis.call('ZADD', key .. ' queue', since(i), waiter)
         redis.call('PEXPIRE', key .. ' queue', ttl)
         keep_place(key)
         redis.call('SADD', queues, key)
         redis.call('PEXPIRE', queues, ttl)
         return 0
       end
     end
     for _, key in ipairs(KEYS) do
       if has_queue[key] then redis.call('ZREM', key .. ' queue', waiter) end
     end
     return 1"
);

/// Answers the numbers of the keys that would be refused.
static PEEK: LazyLock<Script> = script!(
    "read_queues()
     local refused = {}
     for i, key in ipairs(KEYS) do
       if redis.call('EXISTS', key) == 1 or not is_its_turn(i, key) then refused[#refused + 1] = i end
     end
     return refused"
);

/// Answers how many keys were still held, and are now for another TTL.
static EXTEND: LazyLock<Script> = script!(
    "local extended = 0
     for _, key in ipairs(KEYS) do
       if redis.call('GET', key) == token then extended = extended + redis.call('PEXPIRE', key, ttl) end
     end
     return extended"
);

/// Deletes the keys that are still held, and no others, and tells whose turn it is now.
static UNLOCK: LazyLock<Script> = script!(
    "read_queues()
     local told = {}
     for _, key in ipairs(KEYS) do
       if redis.call('GET', key) == token then
         redis.call('DEL', key)
         local first = has_queue[key] and first_in_queue(key)
         if first and not told[first] then
           redis.call('PUBLISH', prefix .. ' turns', first)
           told[first] = true
         end
       end
     end"
);

/// One of the independent Redis servers.
#[derive(Debug, Clone)]
pub(super) struct Master {
    connection: ConnectionManager,
    /// Claims of which it is not known what became of them. While there are any, no further ones are made, so that they cannot
    /// pile up at a master that hangs.
    unsettled: Arc<AtomicUsize>,
}

impl Master {
    /// Connects to nothing yet.
    pub fn new(client: &Client, node_timeout: Duration) -> RedisResult<Self> {
        let broken_after = BROKEN_AFTER.max(node_timeout);
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(broken_after))
            .set_response_timeout(Some(broken_after));
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        Ok(Self { connection, unsettled: Arc::default() })
    }

    /// Fails where the URL does not parse.
    pub fn client(url: &str) -> RedisResult<Client> {
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(BROKEN_AFTER);
        Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
    }

    /// Claims all keys or none, and answers whether they are granted. `None` where it does not answer in time or cannot lock anything. What
    /// it grants later, or when nobody waits for it any more, is given back as soon as it can be reached.
    pub async fn lock(&self, claim: &Arc<Claim>, node_timeout: Duration) -> Option<bool> {
        if self.unsettled.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let patience = Self::patience(claim, node_timeout);
        let (master, claim) = (self.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            match timeout(patience, master.lock_chunks(&claim)).await {
                Ok(Ok(granted)) => {
                    if answer.send(granted).is_err() && granted {
                        master.unlock(&claim).await;
                    }
                }
                failed => {
                    tracing::debug!(?failed, "a Redis master grants nothing");
                    let settling = Settling::new(&master.unsettled);
                    drop(answer);
                    while !master.unlock(&claim).await {
                        sleep(ASK_AGAIN).await;
                    }
                    drop(settling);
                }
            }
        });
        answered.await.ok()
    }

    /// How long it may take for so many keys.
    pub fn patience(claim: &Claim, node_timeout: Duration) -> Duration {
        let scripts = claim.keys.len().div_ceil(KEYS_AT_A_TIME).max(1);
        node_timeout * u32::try_from(scripts).unwrap_or(u32::MAX)
    }

    async fn lock_chunks(&self, claim: &Claim) -> RedisResult<bool> {
        for chunk in chunks(claim) {
            let (start, waited) = (chunk.start, &claim.waited[chunk.clone()]);
            if !self.run::<bool>(&LOCK, claim, chunk, waited).await? {
                if start > 0 {
                    self.unlock(claim).await;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The numbers of the claim's keys that it would refuse.
    pub async fn peek(&self, claim: &Claim) -> RedisResult<Vec<usize>> {
        let mut refused = Vec::new();
        for chunk in chunks(claim) {
            let (start, waited) = (chunk.start, &claim.waited[chunk.clone()]);
            let numbers: Vec<usize> = self.run(&PEEK, claim, chunk, waited).await?;
            refused.extend(numbers.into_iter().map(|number| start + number - 1));
        }
        Ok(refused)
    }

    /// Unlocks what of the claim is locked. Answers whether the master could be reached; where not, the keys expire.
    pub async fn unlock(&self, claim: &Claim) -> bool {
        for chunk in chunks(claim) {
            if let Err(error) = self.run::<()>(&UNLOCK, claim, chunk, &[]).await {
                tracing::debug!(%error, "a Redis master does not unlock, its keys expire");
                return false;
            }
        }
        true
    }

    /// Extends the locks, and answers whether all of them are still held.
    pub async fn extend(&self, claim: &Claim) -> bool {
        for chunk in chunks(claim) {
            let keys = chunk.len();
            if self.run::<usize>(&EXTEND, claim, chunk, &[]).await.ok() != Some(keys) {
                return false;
            }
        }
        true
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &Claim,
        chunk: Range<usize>,
        waited: &[Duration],
    ) -> RedisResult<T> {
        let mut invocation = script.prepare_invoke();
        for key in &claim.keys[chunk] {
            invocation.key(key);
        }
        invocation.arg(&claim.token).arg(millis(claim.ttl)).arg(&*claim.prefix).arg(&*claim.waiter);
        invocation.arg(millis(LONGEST_TURN.min(claim.ttl)));
        for waited in waited {
            invocation.arg(millis(*waited));
        }
        invocation.invoke_async(&mut self.connection.clone()).await
    }
}

fn chunks(claim: &Claim) -> impl Iterator<Item = Range<usize>> {
    let keys = claim.keys.len();
    (0..keys).step_by(KEYS_AT_A_TIME).map(move |start| start..keys.min(start + KEYS_AT_A_TIME))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A claim that is not settled, until it is dropped.
struct Settling<'a>(&'a AtomicUsize);

impl<'a> Settling<'a> {
    fn new(unsettled: &'a AtomicUsize) -> Self {
        unsettled.fetch_add(1, Ordering::SeqCst);
        Self(unsettled)
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
