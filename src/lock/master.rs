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
/// Those who wait for a key are in its queue, a sorted set by the time since when they have waited, reckoned by the master's own clock. To
/// be there still, each has a key of its own that lives for [`LONGEST_TURN`]. While there are queues at all, another key says so.
macro_rules! script {
    ($body:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "local token, ttl, prefix, waiter, longest_turn = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
                 local has_queues = redis.call('EXISTS', prefix .. ' queues') == 1
                 local function first_in_queue(key)
                   while true do
                     local first = redis.call('ZRANGE', key .. ' queue', 0, 0, 'WITHSCORES')
                     if #first == 0 then return nil end
                     if redis.call('EXISTS', key .. ' place ' .. first[1]) == 1 then return first[1], tonumber(first[2]) end
                     redis.call('ZREM', key .. ' queue', first[1])
                   end
                 end\n",
                $body
            ))
        })
    };
}

/// Locks all keys or none, and answers the numbers of those that refused it: others hold them, or have waited for them for longer. There
/// the claimant gets a place in the queue.
static LOCK: LazyLock<Script> = script!(
    "local time = redis.call('TIME')
     local now = time[1] * 1000 + math.floor(time[2] / 1000)
     local function since(i) return now - ARGV[5 + i] end
     local refused = {}
     for i, key in ipairs(KEYS) do
       local is_its_turn = true
       if has_queues then
         local first, first_since = first_in_queue(key)
         is_its_turn = not first or first == waiter or first_since > since(i)
       end
       if not (is_its_turn and redis.call('SET', key, token, 'NX', 'PX', ttl)) then refused[#refused + 1] = i end
     end
     if #refused == 0 then
       if has_queues then
         for _, key in ipairs(KEYS) do redis.call('ZREM', key .. ' queue', waiter) end
       end
       return refused
     end
     local passed = 0
     for i, key in ipairs(KEYS) do
       if refused[passed + 1] == i then passed = passed + 1 else redis.call('DEL', key) end
     end
     for _, i in ipairs(refused) do
       redis.call('ZADD', KEYS[i] .. ' queue', since(i), waiter)
       redis.call('PEXPIRE', KEYS[i] .. ' queue', ttl)
       redis.call('SET', KEYS[i] .. ' place ' .. waiter, '', 'PX', longest_turn)
     end
     redis.call('SET', prefix .. ' queues', '', 'PX', ttl)
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
    "local told = {}
     for _, key in ipairs(KEYS) do
       if redis.call('GET', key) == token then
         redis.call('DEL', key)
         local first = has_queues and first_in_queue(key)
         if first and not told[first] then
           redis.call('PUBLISH', prefix .. ' turns', first)
           told[first] = true
         end
       end
     end"
);

/// Gives up the places in the queues.
static LEAVE: LazyLock<Script> =
    script!("for _, key in ipairs(KEYS) do redis.call('DEL', key .. ' place ' .. waiter) end");

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

    /// Claims all keys or none, and answers the numbers of those that were refused. `None` where it does not answer in time or cannot lock
    /// anything. What it grants later, or when nobody waits for it any more, is given back as soon as it can be reached.
    pub async fn lock(&self, claim: &Arc<Claim>, node_timeout: Duration) -> Option<Vec<usize>> {
        if self.unsettled.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let patience = Self::patience(claim, node_timeout);
        let (master, claim) = (self.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            match timeout(patience, master.lock_chunks(&claim)).await {
                Ok(Ok(refused)) => {
                    if answer.send(refused).is_err() {
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

    async fn lock_chunks(&self, claim: &Claim) -> RedisResult<Vec<usize>> {
        let mut refused = Vec::new();
        for chunk in chunks(claim) {
            let waited = &claim.waited[chunk.clone()];
            let numbers: Vec<usize> = self.run(&LOCK, claim, chunk.clone(), waited).await?;
            refused.extend(numbers.into_iter().map(|number| chunk.start + number - 1));
        }
        if !refused.is_empty() && claim.keys.len() > KEYS_AT_A_TIME {
            self.unlock(claim).await;
        }
        Ok(refused)
    }

    /// Unlocks what of the claim is locked. Answers whether the master could be reached; where not, the keys expire.
    pub async fn unlock(&self, claim: &Claim) -> bool {
        self.run_all(&UNLOCK, claim).await
    }

    /// Gives up the places in the queues.
    pub async fn leave(&self, claim: &Claim) -> bool {
        self.run_all(&LEAVE, claim).await
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

    async fn run_all(&self, script: &Script, claim: &Claim) -> bool {
        for chunk in chunks(claim) {
            if let Err(error) = self.run::<()>(script, claim, chunk, &[]).await {
                tracing::debug!(%error, "a Redis master does not unlock, its keys expire");
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
