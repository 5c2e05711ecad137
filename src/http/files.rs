use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The most open files that a process asks for.
const MAX_OPEN_FILES: u64 = 65_536;
/// Assumed where the system does not say.
const USUAL_OPEN_FILES: u64 = 1_024;
/// The most connections of the HTTP API; their buffers take some 20 KiB each.
const MAX_CONNECTIONS: u64 = 16_384;
/// Brokers, logs, timers, and the admin address.
const RESERVED_FILES: u64 = 160;
/// The fewest connections, however few files may be open.
const MIN_CONNECTIONS: u64 = 16;

/// How many connections the HTTP API may have beside `others`, the connections to the databases.
/// Raises the soft limit of open files as far as the hard limit allows, 65,536 at most.
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

/// Answers the soft limit as it is then.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return USUAL_OPEN_FILES };
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
            tracing::warn!(limit = soft, %error, "the limit of open files is not raised");
            soft
        }
    }
}
