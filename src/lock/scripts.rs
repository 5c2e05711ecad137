//! What a master is asked, as scripts. docs/locking.md lists the commands in them, since a user of
//! Redis needs the right to each.

use std::sync::LazyLock;

use redis::{FromRedisValue, ParsingError, Script, Value};

/// Where whose turn it is gets published, after the prefix of the keys. No product's id has a space
/// in it, so neither this nor any other of our names is a product's key.
pub(super) const TURNS: &str = " turns";

/// What all scripts have in common.
///
/// A claimant that is refused a key gets a place in its queue. The queue is a sorted set by the time
/// since when each has waited, reckoned by the master's own clock. A place also has a key of its own,
/// which lives for `PLACE_LASTS`. A set names the keys that have queues.
///
/// Within a script Redis does not say which command the user has no right to. These scripts do.
macro_rules! script {
    ($($body:tt)+) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "local token, ttl, prefix, waiter = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
                 local queues, has_queue = prefix .. ' queues', {}
                 local at_once, safely, command, subject, failure = redis.call, redis.pcall
                 local function failed(why)
                   why = type(why) == 'table' and why.err or tostring(why)
                   if string.find(why, 'NOPERM') or string.find(why, 'ACL')
                       or string.find(why, 'The user executing') then
                     why = 'NOPERM ' .. command .. ': ' .. why .. ' (' .. tostring(subject) .. ')'
                   end
                   failure = failure or string.gsub(why, '[\\r\\n]', ' ')
                 end
                 local function call(name, key, ...)
                   command, subject = name, key
                   return at_once(name, key, ...)
                 end
                 local function try(name, key, ...)
                   command, subject = name, key
                   local answer = safely(name, key, ...)
                   if type(answer) ~= 'table' or not answer.err then return answer end
                   failed(answer)
                 end
                 local function find_queues()
                   for i, yes in ipairs(call('SMISMEMBER', queues, unpack(KEYS))) do has_queue[KEYS[i]] = yes == 1 end
                 end
                 local function first_in_queue(key)
                   while true do
                     local first = call('ZRANGE', key .. ' queue', 0, 0, 'WITHSCORES')
                     if #first == 0 then
                       call('SREM', queues, key)
                       return nil
                     end
                     if call('EXISTS', key .. ' place ' .. first[1]) == 1 then return first[1], tonumber(first[2]) end
                     call('ZREM', key .. ' queue', first[1])
                   end
                 end
                 local function run()\n",
                $($body)+,
                "\nend
                 local is_done, answer = pcall(run)
                 if is_done then return answer end
                 failed(answer)
                 return redis.error_reply(failure)"
            ))
        })
    };
}

/// The same for scripts that ask for keys.
macro_rules! asking_script {
    ($body:literal) => {
        script!(concat!(
            "local waited, place_lasts = ARGV[5], ARGV[6]
             find_queues()
             local time = redis.call('TIME')
             local since = time[1] * 1000 + math.floor(time[2] / 1000) - waited
             local function take_place(key)
               call('ZADD', key .. ' queue', since, waiter)
               call('SET', key .. ' place ' .. waiter, '', 'PX', place_lasts)
               call('PEXPIRE', key .. ' queue', ttl)
               call('PEXPIRE', queues, ttl)
             end
             local function is_its_turn(key)
               if not has_queue[key] then return true end
               if call('ZSCORE', key .. ' queue', waiter) then take_place(key) end
               local first, first_since = first_in_queue(key)
               return not first or first == waiter or first_since > since
             end\n",
            $body
        ))
    };
}

/// Locks all keys or none, and answers as [`Answer`] has it. Where another holds one, or has waited
/// for it for longer, the claimant gets a place in its queue, and keeps those that it has in
/// others'.
pub(super) static LOCK: LazyLock<Script> = asking_script!(
    "for i, key in ipairs(KEYS) do
       local its_turn = is_its_turn(key)
       command, subject = 'SET', key
       if not (its_turn and at_once('SET', key, token, 'NX', 'PX', ttl)) then
         if safely('GET', key) == token then return 3 end
         for granted = 1, i - 1 do call('DEL', KEYS[granted]) end
         call('SADD', queues, key)
         take_place(key)
         for later = i + 1, #KEYS do is_its_turn(KEYS[later]) end
         return its_turn and 1 or 2
       end
     end
     return 0"
);

/// Answers the numbers of the keys that would be refused, and keeps the claimant's places in
/// queues.
pub(super) static PEEK: LazyLock<Script> = asking_script!(
    "local refused = {}
     for i, key in ipairs(KEYS) do
       if not is_its_turn(key) or call('EXISTS', key) == 1 then refused[#refused + 1] = i end
     end
     return refused"
);

/// Answers how many keys were still held, and are now for another TTL.
pub(super) static EXTEND: LazyLock<Script> = script!(
    "local extended = 0
     for _, key in ipairs(KEYS) do
       command, subject = 'GET', key
       if at_once('GET', key) == token then extended = extended + call('PEXPIRE', key, ttl) end
     end
     return extended"
);

/// Deletes the keys that are still held, and no others, whatever else fails. Then the caller leaves
/// their queues where it is done with them, and the first in each is told that it is its turn.
///
/// Fails where a key could not be deleted, after it has tried all. Answers what failed of the rest,
/// or nothing.
pub(super) static UNLOCK: LazyLock<Script> = script!(
    "local is_done, released, told = ARGV[5], {}, {}
     for _, key in ipairs(KEYS) do
       command, subject = 'GET', key
       local holder = safely('GET', key)
       if holder == token then
         command = 'DEL'
         local deleted = safely('DEL', key)
         if deleted == 1 then released[#released + 1] = key else failed(deleted) end
       elseif type(holder) == 'table' and holder.err and not string.find(holder.err, 'WRONGTYPE') then
         failed(holder)
       end
     end
     if failure then return redis.error_reply(failure) end
     local _, stopped = pcall(function()
       find_queues()
       if is_done == '1' then
         for _, key in ipairs(KEYS) do
           if has_queue[key] then try('ZREM', key .. ' queue', waiter) end
         end
       end
       for _, key in ipairs(released) do
         local first = has_queue[key] and first_in_queue(key)
         if first and first ~= waiter and not told[first] then
           told[first] = true
           try('PUBLISH', prefix .. ' turns', first)
         end
       end
     end)
     if stopped then failed(stopped) end
     return failure"
);

/// What a master makes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Granted,
    /// Another holds one of the keys.
    Held,
    /// Another has waited for one of them for longer.
    OthersTurn,
    /// The same claim holds the keys already: the server has two of the URLs.
    Repeated,
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match usize::from_redis_value(value)? {
            0 => Ok(Self::Granted),
            1 => Ok(Self::Held),
            2 => Ok(Self::OthersTurn),
            3 => Ok(Self::Repeated),
            other => Err(format!("no answer to a claim: {other}").into()),
        }
    }
}
