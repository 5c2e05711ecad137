//! The Lua scripts that the masters run. A Redis user needs the right to each command in them, and
//! `docs/locking.md` lists the rights.
//!
//! | name in Redis | type | what it is |
//! | --- | --- | --- |
//! | `key` | string | the token of the claim that holds the key |
//! | `key queue` | sorted set | the lanes that wait for the key, by the time since when they wait |
//! | `key place waiter` | string | lives as long as the lane's place in that queue |
//! | `prefix queues` | set | the keys that have a queue |
//! | `prefix turns` | channel | the lane that is first in the queue of a released key |
//!
//! No product id has a space in it, so none of the other names is a product's key.

use std::sync::LazyLock;

use redis::{FromRedisValue, ParsingError, Script, Value};

/// The channel of the notices to lanes that are first in a queue, after the prefix of the keys.
pub(super) const NOTICE_CHANNEL: &str = " turns";

/// A script: its own text, after what all scripts share.
///
/// Within a script Redis does not say which command the user has no right to. So these scripts
/// remember the command and its subject, and name both in the error.
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
                   for i, yes in ipairs(call('SMISMEMBER', queues, unpack(KEYS))) do
                     has_queue[KEYS[i]] = yes == 1
                   end
                 end
                 local function first_in_queue(key)
                   while true do
                     local first = call('ZRANGE', key .. ' queue', 0, 0, 'WITHSCORES')
                     if #first == 0 then
                       call('SREM', queues, key)
                       return nil
                     end
                     if call('EXISTS', key .. ' place ' .. first[1]) == 1 then
                       return first[1], tonumber(first[2])
                     end
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

/// A script that asks for keys.
///
/// A lane has waited since the master's own time minus the age of its claim. So no clocks are
/// compared. `may_take` answers whether no other lane has waited for the key for longer, and keeps
/// the lane's own place in the queue.
macro_rules! asking_script {
    ($body:literal) => {
        script!(concat!(
            "local waited, place_ttl = ARGV[5], ARGV[6]
             find_queues()
             local time = redis.call('TIME')
             local since = time[1] * 1000 + math.floor(time[2] / 1000) - waited
             local function enter_queue(key)
               call('ZADD', key .. ' queue', since, waiter)
               call('SET', key .. ' place ' .. waiter, '', 'PX', place_ttl)
               call('PEXPIRE', key .. ' queue', ttl)
               call('PEXPIRE', queues, ttl)
             end
             local function may_take(key)
               if not has_queue[key] then return true end
               if call('ZSCORE', key .. ' queue', waiter) then enter_queue(key) end
               local first, first_since = first_in_queue(key)
               return not first or first == waiter or first_since > since
             end\n",
            $body
        ))
    };
}

/// Locks all keys or none, and answers a [`ClaimAnswer`].
///
/// At the first key that is refused, the lane enters its queue. It keeps the places that it has in
/// the queues of the other keys.
pub(super) static LOCK: LazyLock<Script> = asking_script!(
    "for i, key in ipairs(KEYS) do
       local is_free_to_take = may_take(key)
       command, subject = 'SET', key
       if not (is_free_to_take and at_once('SET', key, token, 'NX', 'PX', ttl)) then
         if safely('GET', key) == token then return 3 end
         for granted = 1, i - 1 do call('DEL', KEYS[granted]) end
         call('SADD', queues, key)
         enter_queue(key)
         for later = i + 1, #KEYS do may_take(KEYS[later]) end
         return is_free_to_take and 1 or 2
       end
     end
     return 0"
);

/// Answers the numbers, from 1, of the keys that would be refused. Keeps the lane's places in the
/// queues.
pub(super) static PEEK: LazyLock<Script> = asking_script!(
    "local refused = {}
     for i, key in ipairs(KEYS) do
       if not may_take(key) or call('EXISTS', key) == 1 then refused[#refused + 1] = i end
     end
     return refused"
);

/// Lets the keys that the claim still holds live for another TTL. Answers how many these are.
pub(super) static EXTEND: LazyLock<Script> = script!(
    "local extended = 0
     for _, key in ipairs(KEYS) do
       command, subject = 'GET', key
       if at_once('GET', key) == token then extended = extended + call('PEXPIRE', key, ttl) end
     end
     return extended"
);

/// Deletes the keys that the claim still holds, and no others, whatever else fails. Then the lane
/// leaves their queues if it is asked to, and the first lane in each queue gets a notice.
///
/// Fails if a key could not be deleted, after it has tried all. Answers the failure of the rest of
/// its work, or nothing.
pub(super) static UNLOCK: LazyLock<Script> = script!(
    "local leaves, released, notified = ARGV[5], {}, {}
     for _, key in ipairs(KEYS) do
       command, subject = 'GET', key
       local holder = safely('GET', key)
       if holder == token then
         command = 'DEL'
         local deleted = safely('DEL', key)
         if deleted == 1 then released[#released + 1] = key else failed(deleted) end
       elseif type(holder) == 'table' and holder.err
           and not string.find(holder.err, 'WRONGTYPE') then
         failed(holder)
       end
     end
     if failure then return redis.error_reply(failure) end
     local _, stopped = pcall(function()
       find_queues()
       if leaves == '1' then
         for _, key in ipairs(KEYS) do
           if has_queue[key] then try('ZREM', key .. ' queue', waiter) end
         end
       end
       for _, key in ipairs(released) do
         local first = has_queue[key] and first_in_queue(key)
         if first and first ~= waiter and not notified[first] then
           notified[first] = true
           try('PUBLISH', prefix .. ' turns', first)
         end
       end
     end)
     if stopped then failed(stopped) end
     return failure"
);

/// A master's answer to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimAnswer {
    Granted,
    /// Another claim holds one of the keys.
    Held,
    /// Another lane has waited for one of the keys for longer.
    OlderLaneWaits,
    /// This claim holds the keys already: two URLs name this server.
    HeldByThisClaim,
}

impl FromRedisValue for ClaimAnswer {
    /// Fails for any number but those that [`LOCK`] answers.
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match usize::from_redis_value(value)? {
            0 => Ok(Self::Granted),
            1 => Ok(Self::Held),
            2 => Ok(Self::OlderLaneWaits),
            3 => Ok(Self::HeldByThisClaim),
            other => {
                Err(format!("expected an answer from 0 to 3 to a claim, found {other}").into())
            }
        }
    }
}
