//! How many connections the process can afford, by its limit of open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The most open files that a process asks the system for.
const MAX_OPEN_FILES: u64 = 65_536;
/// The limit that is assumed if the system does not report it.
const ASSUMED_OPEN_FILES: u64 = 1_024;
/// The most connections of the HTTP API. The buffers of each take some 20 KiB.
const MAX_CONNECTIONS: u64 = 16_384;
/// Open files for the brokers, logs, timers and the admin address.
const RESERVED_FILES: u64 = 160;
/// The fewest connections, however low the limit of open files is.
const MIN_CONNECTIONS: u64 = 16;

/// How many connections the HTTP API may have, if `others` connections go to the databases: 16 to
/// 16,384. Raises the soft limit of open files as far as the hard limit allows, to 65,536 at most.
pub(crate) fn connections_beside(others: u32) -> usize {
    let files = raise_open_files();
    let reserved = RESERVED_FILES + u64::from(others);
    let connections = files.saturating_sub(reserved).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
    if connections < MAX_CONNECTIONS {
        tracing::warn!(
            files,
            connections,
            "the limit of open files bounds the connections of the HTTP API"
        );
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// Returns the soft limit after the attempt to raise it.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return ASSUMED_OPEN_FILES };
    let wanted = hard.min(MAX_OPEN_FILES);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => {
            tracing::info!(from = soft, to = wanted, "raised the limit of open files");
            wanted
        }
        Err(error) => {
            tracing::warn!(limit = soft, wanted, %error, "limit of open files not raised");
            soft
        }
    }
}
