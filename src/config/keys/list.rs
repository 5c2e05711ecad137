use std::time::Duration;

use super::{Allowed, Key};

mod access;
mod behaviour;
mod connections;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MAX_AGE: Duration = Duration::from_secs(3650 * 24 * 3600);
const MAX_BATCH: i64 = 10_000;

const BROKERS: &str = "HOST:PORT, comma separated; without a port it is 9092";
const NOT_EMPTY: &str = "a text that is not empty";
const ANY_TEXT: &str = "any text";
const FILE: &str = "the path of a file";
const TOPIC: &str = "1 to 249 ASCII letters, digits, dots, underscores and hyphens";
const MYSQL_URL: &str = "mysql://USER:PASSWORD@HOST:PORT/DATABASE";
const REDIS_URLS: &str = "1, 3 or 5 URLs redis://USER:PASSWORD@HOST:PORT, comma separated";
const ADDRESS: &str = "IP:PORT, such as 127.0.0.1:8080 or [::]:8080";
const OWN_TOPIC: &str = "no other topic of this list has the same name";
const USER_AND_PASSWORD: &str = "the user and the password are set together";
const PEM_TEXT: &str = "PEM text, from -----BEGIN to -----END";
const PROTECTED_URL: &str = "an https:// URL, or an http:// URL of a loopback address";
const FILE_OR_TEXT: &str = "the file or the text, not both; the certificate and the key together";
const NOT_FOR_OAUTH: &str = "set if kafka.security_protocol is sasl_…, unless it is OAUTHBEARER";
const OAUTH: &str = "only with the mechanism OAUTHBEARER";
const BOTH_FILES: &str = "the certificate and the private key are set together";

const fn key(
    name: &'static str,
    default: &'static str,
    allowed: Allowed,
    help: &'static str,
) -> Key {
    Key { name, default, allowed, rule: "", help }
}

const fn time(min: Duration, max: Duration) -> Allowed {
    Allowed::Time { min, max }
}

const fn number(min: i64, max: i64, unit: &'static str) -> Allowed {
    Allowed::Number { min, max, unit }
}

const LISTS: [&[Key]; 3] = [connections::KEYS, behaviour::KEYS, access::KEYS];
const COUNT: usize = LISTS[0].len() + LISTS[1].len() + LISTS[2].len();

/// Every key, in the order in which `stocklock config` shows them.
pub const KEYS: &[Key] = &join();

const fn join() -> [Key; COUNT] {
    let mut all = [connections::KEYS[0]; COUNT];
    let (mut at, mut list) = (0, 0);
    while list < LISTS.len() {
        let mut of_list = 0;
        while of_list < LISTS[list].len() {
            all[at] = LISTS[list][of_list];
            at += 1;
            of_list += 1;
        }
        list += 1;
    }
    all
}
