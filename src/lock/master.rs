use std::{
    io::{self, ErrorKind},
    ops::Range,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, FromRedisValue, IntoConnectionInfo as _, ParsingError, RedisError, RedisResult, Script, Value,
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
    /// For how long its oldest order has waited.
    pub waited: Duration,
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

/// How long one stays in a key's queue without asking for it again: longer than a batch usually takes, since whoever goes on with less
/// asks for the rest with the next one.
const PLACE_LASTS: Duration = Duration::from_secs(2);

/// Where whose turn it is gets published, after the prefix of the keys. No product's id has a space in it, so neither this nor any other
/// of our names is a product's key.
pub(super) const TURNS: &str = " turns";

/// What all scripts have in common.
///
/// Whoever is refused a key gets a place in its queue, a sorted set by the time since when each has waited, reckoned by the master's own
/// clock. To be there still, each has a key that lives for [`PLACE_LASTS`]. A set names the keys that have queues.
macro_rules! script {
    ($($body:tt)+) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "local token, ttl, prefix, waiter = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
                 local queues, has_queue = prefix .. ' queues', {}
                 for i, yes in ipairs(redis.call('SMISMEMBER', queues, unpack(KEYS))) do has_queue[KEYS[i]] = yes == 1 end
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
                 end\n",
                $($body)+
            ))
        })
    };
}

/// The same for scripts that ask for keys.
macro_rules! asking_script {
    ($body:literal) => {
        script!(concat!(
            "local waited, place_lasts = ARGV[5], ARGV[6]
             local time = redis.call('TIME')
             local since = time[1] * 1000 + math.floor(time[2] / 1000) - waited
             local function take_place(key)
               redis.call('ZADD', key .. ' queue', since, waiter)
               redis.call('SET', key .. ' place ' .. waiter, '', 'PX', place_lasts)
               redis.call('PEXPIRE', key .. ' queue', ttl)
               redis.call('PEXPIRE', queues, ttl)
             end
             local function is_its_turn(key)
               if not has_queue[key] then return true end
               if redis.call('ZSCORE', key .. ' queue', waiter) then take_place(key) end
               local first, first_since = first_in_queue(key)
               return not first or first == waiter or first_since > since
             end\n",
            $body
        ))
    };
}

/// Locks all keys or none, and answers as [`Answer`] has it. Where another holds one, or has waited for it for longer, the claimant gets
/// a place in its queue, and keeps those that it has in others'.
static LOCK: LazyLock<Script> = asking_script!(
    "for i, key in ipairs(KEYS) do
       local its_turn = is_its_turn(key)
       if not (its_turn and redis.call('SET', key, token, 'NX', 'PX', ttl)) then
         for granted = 1, i - 1 do redis.call('DEL', KEYS[granted]) end
         redis.call('SADD', queues, key)
         take_place(key)
         for later = i + 1, #KEYS do is_its_turn(KEYS[later]) end
         return its_turn and 1 or 2
       end
     end
     return 0"
);

/// Answers the numbers of the keys that would be refused, and keeps the claimant's places in queues.
static PEEK: LazyLock<Script> = asking_script!(
    "local refused = {}
     for i, key in ipairs(KEYS) do
       if not is_its_turn(key) or redis.call('EXISTS', key) == 1 then refused[#refused + 1] = i end
     end
     return refused"
);

/// Answers how many keys were still held, and are now for another TTL.
static EXTEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local token, ttl, extended = ARGV[1], ARGV[2], 0
         for _, key in ipairs(KEYS) do
           if redis.call('GET', key) == token then extended = extended + redis.call('PEXPIRE', key, ttl) end
         end
         return extended",
    )
});

/// Deletes the keys that are still held, and no others, and tells whose turn it is now. Who is done with them leaves their queues.
static UNLOCK: LazyLock<Script> = script!(
    "local is_done, told = ARGV[5], {}
     for _, key in ipairs(KEYS) do
       if has_queue[key] and is_done == '1' then redis.call('ZREM', key .. ' queue', waiter) end
       if redis.call('GET', key) == token then
         redis.call('DEL', key)
         local first = has_queue[key] and first_in_queue(key)
         if first and first ~= waiter and not told[first] then
           redis.call('PUBLISH', prefix .. ' turns', first)
           told[first] = true
         end
       end
     end"
);

/// What a master makes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Granted,
    /// Another holds one of the keys.
    Held,
    /// Another has waited for one of them for longer.
    OthersTurn,
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match usize::from_redis_value(value)? {
            0 => Ok(Self::Granted),
            1 => Ok(Self::Held),
            2 => Ok(Self::OthersTurn),
            other => Err(format!("no answer to a claim: {other}").into()),
        }
    }
}

/// What becomes of the places in the queues of keys that are unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unlock {
    /// They are given up: the keys have served.
    Done,
    /// They are kept: the keys are still wanted.
    Failed,
}

/// One of the independent Redis servers.
#[derive(Debug, Clone)]
pub(super) struct Master {
    client: Client,
    settings: ConnectionManagerConfig,
    connection: Arc<Mutex<ConnectionManager>>,
    /// Claims of which it is not known what became of them. While there are any, no further ones are made, so that they cannot
    /// pile up at a master that hangs.
    unsettled: Arc<AtomicUsize>,
    /// Since the last claim that it answered it has failed.
    is_failing: Arc<AtomicBool>,
}

impl Master {
    /// Connects to nothing yet.
    pub fn new(client: &Client, node_timeout: Duration) -> RedisResult<Self> {
        let broken_after = BROKEN_AFTER.max(node_timeout);
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(broken_after))
            .set_response_timeout(Some(broken_after));
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), settings.clone())?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self { client: client.clone(), settings, connection, unsettled: Arc::default(), is_failing: Arc::default() })
    }

    /// Fails where the URL does not parse.
    pub fn client(url: &str) -> RedisResult<Client> {
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(BROKEN_AFTER);
        Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
    }

    /// Claims all keys or none. `None` where it does not answer in time or cannot lock anything. What
    /// it grants later, or when nobody waits for it any more, is given back as soon as it can be reached.
    pub async fn lock(&self, claim: &Arc<Claim>, node_timeout: Duration) -> Option<Answer> {
        if !self.is_settled() {
            return None;
        }
        let patience = Self::patience(claim, node_timeout);
        let (master, claim) = (self.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let locked = timeout(patience, master.lock_chunks(&claim)).await;
            match locked.unwrap_or_else(|_| Err(io::Error::from(ErrorKind::TimedOut).into())) {
                Ok(answered) => {
                    master.works();
                    let (heard, is_heard) = oneshot::channel::<()>();
                    // Where nobody waits for it any more, it comes back and ends here.
                    drop(answer.send((answered, heard)));
                    if answered == Answer::Granted && is_heard.await.is_err() {
                        master.take_back(&claim, None).await;
                    }
                }
                Err(error) => {
                    master.fails(&error);
                    let unsettled = Unsettled::new(&master.unsettled);
                    drop(answer);
                    master.take_back(&claim, Some(unsettled)).await;
                }
            }
        });
        let (answered, heard) = answered.await.ok()?;
        let _takes_nothing_back = heard.send(());
        Some(answered)
    }

    /// Whether it is known what became of every claim that was made.
    pub fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::SeqCst) == 0
    }

    /// Unlocks what became nobody's, however long that takes. A connection manager may keep an error for ever, and a connection through a
    /// proxy may be silent for ever, so each failure replaces them. A proxy that still has the claim has the first attempt to unlock behind
    /// it; where the connection broke in between, the key stays until it expires.
    async fn take_back(&self, claim: &Claim, mut unsettled: Option<Unsettled<'_>>) {
        while let Err(error) = self.unlock(claim, Unlock::Failed).await {
            self.fails(&error);
            unsettled.get_or_insert_with(|| Unsettled::new(&self.unsettled));
            self.connect_anew();
            sleep(ASK_AGAIN).await;
        }
    }

    fn fails(&self, error: &RedisError) {
        if !self.is_failing.swap(true, Ordering::SeqCst) {
            let master = self.client.get_connection_info().addr();
            tracing::warn!(%master, %error, "a Redis master does not lock anything");
        }
    }

    fn works(&self) {
        if self.is_failing.swap(false, Ordering::SeqCst) {
            let master = self.client.get_connection_info().addr();
            tracing::info!(%master, "a Redis master answers again");
        }
    }

    fn connect_anew(&self) {
        match ConnectionManager::new_lazy_with_config(self.client.clone(), self.settings.clone()) {
            Ok(connection) => *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection,
            Err(error) => tracing::warn!(%error, "a Redis master's connection is not replaced"),
        }
    }

    /// How long it may take for so many keys.
    pub fn patience(claim: &Claim, node_timeout: Duration) -> Duration {
        let scripts = claim.keys.len().div_ceil(KEYS_AT_A_TIME).max(1);
        node_timeout * u32::try_from(scripts).unwrap_or(u32::MAX)
    }

    async fn lock_chunks(&self, claim: &Claim) -> RedisResult<Answer> {
        for chunk in chunks(claim) {
            let (start, end) = (chunk.start, chunk.end);
            let answer = self.ask(&LOCK, claim, chunk).await?;
            if answer != Answer::Granted {
                if start > 0 {
                    self.unlock(claim, Unlock::Failed).await?;
                }
                // Which keeps the places in the queues of those keys.
                self.peek_from(claim, end).await?;
                return Ok(answer);
            }
        }
        Ok(Answer::Granted)
    }

    /// The numbers of the claim's keys that it would refuse.
    pub async fn peek(&self, claim: &Claim) -> RedisResult<Vec<usize>> {
        self.peek_from(claim, 0).await
    }

    async fn peek_from(&self, claim: &Claim, first: usize) -> RedisResult<Vec<usize>> {
        let mut refused = Vec::new();
        for chunk in chunks(claim).skip_while(|chunk| chunk.start < first) {
            let start = chunk.start;
            let numbers: Vec<usize> = self.ask(&PEEK, claim, chunk).await?;
            refused.extend(numbers.into_iter().map(|number| start + number - 1));
        }
        Ok(refused)
    }

    /// Unlocks what of the claim is locked. Fails where the master cannot be reached; the keys then expire.
    pub async fn unlock(&self, claim: &Claim, unlock: Unlock) -> RedisResult<()> {
        for chunk in chunks(claim) {
            self.run::<()>(&UNLOCK, claim, chunk, &[u64::from(unlock == Unlock::Done)]).await?;
        }
        Ok(())
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

    async fn ask<T: FromRedisValue>(&self, script: &Script, claim: &Claim, chunk: Range<usize>) -> RedisResult<T> {
        self.run(script, claim, chunk, &[millis(claim.waited), millis(PLACE_LASTS.min(claim.ttl))]).await
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &Claim,
        chunk: Range<usize>,
        more: &[u64],
    ) -> RedisResult<T> {
        let mut invocation = script.prepare_invoke();
        for key in &claim.keys[chunk] {
            invocation.key(key);
        }
        invocation.arg(&claim.token).arg(millis(claim.ttl)).arg(&*claim.prefix).arg(&*claim.waiter).arg(more);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        invocation.invoke_async(&mut connection).await
    }
}

fn chunks(claim: &Claim) -> impl Iterator<Item = Range<usize>> {
    let keys = claim.keys.len();
    (0..keys).step_by(KEYS_AT_A_TIME).map(move |start| start..keys.min(start + KEYS_AT_A_TIME))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A claim of which it is not known what became of it, until it is dropped.
struct Unsettled<'a>(&'a AtomicUsize);

impl<'a> Unsettled<'a> {
    fn new(unsettled: &'a AtomicUsize) -> Self {
        unsettled.fetch_add(1, Ordering::SeqCst);
        Self(unsettled)
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
