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

/// The limits of open files of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFiles {
    /// What the process may raise its limit to.
    pub(crate) hard: u64,
}

impl OpenFiles {
    pub(crate) fn of_process() -> Self {
        let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(ASSUMED_OPEN_FILES, |(_, hard)| hard);
        Self { hard }
    }

    /// The fewest files with which a role works, if `others` connections go to the databases.
    pub(crate) fn least(others: u32) -> u64 {
        RESERVED_FILES + u64::from(others) + MIN_CONNECTIONS
    }

    /// The files that the most connections of the HTTP API need.
    pub(crate) fn wanted(others: u32) -> u64 {
        RESERVED_FILES + u64::from(others) + MAX_CONNECTIONS
    }

    /// How many connections the HTTP API may have.
    pub(crate) fn connections(self, others: u32) -> u64 {
        connections(self.hard.min(MAX_OPEN_FILES), others)
    }
}

/// How many connections the HTTP API may have with so many files: 16 to 16,384.
fn connections(files: u64, others: u32) -> u64 {
    let reserved = RESERVED_FILES + u64::from(others);
    files.saturating_sub(reserved).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// How many connections the HTTP API may have, if `others` connections go to the databases: 16 to
/// 16,384. Raises the soft limit of open files as far as the hard limit allows, to 65,536 at most.
pub(crate) fn connections_beside(others: u32) -> usize {
    let files = raise_open_files();
    let connections = connections(files, others);
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
