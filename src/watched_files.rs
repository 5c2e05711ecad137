//! Files that are read again when their content changes: tokens and certificates.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::{
    backoff::jittered,
    lifecycle::{Shutdown, StopRequested},
};

/// How often the files are read. The content decides, not the time of the change: Kubernetes
/// replaces a link, and an editor may keep the time.
const READ_EVERY: Duration = Duration::from_secs(2);
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Files that are used together.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    paths: Vec<PathBuf>,
    /// The content that was used, or refused, last.
    judged: Option<[u8; 32]>,
    /// A new content that was read once. A program may still be writing it.
    seen: Option<[u8; 32]>,
}

/// What became of a new content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    Done,
    /// The last good content stays in use.
    Refused,
}

impl WatchedFiles {
    /// The first content that is read twice counts as new.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, judged: None, seen: None }
    }

    /// Reads the files every 2 s until a stop is requested. Calls `replace` with their contents
    /// once a new content has stood for two readings, and `report` with what became of it.
    ///
    /// Logs each change. A file that cannot be read is logged once, until it can.
    pub(crate) async fn watch(
        mut self,
        what: &'static str,
        mut replace: impl FnMut(&[Vec<u8>]) -> Result<(), String>,
        report: impl Fn(Reload),
        shutdown: Shutdown,
    ) {
        loop {
            if let Err(StopRequested) = shutdown.sleep(jittered(READ_EVERY, 0.9..1.1)).await {
                return;
            }
            let paths = self.paths.clone();
            let read = spawn_blocking(move || read_all(&paths)).await;
            let read = read.unwrap_or_else(|error| Err(error.into()));
            let digest = digest(&read);
            if self.judged == Some(digest) {
                continue;
            }
            if self.seen != Some(digest) {
                self.seen = Some(digest);
                continue;
            }
            let is_first = self.judged.is_none();
            self.judged = Some(digest);
            match read.map_err(|error| error.to_string()).and_then(|read| replace(&read)) {
                // Nearly always the content that the start has read: nothing was reloaded then.
                Ok(()) if is_first => report(Reload::Done),
                Ok(()) => {
                    tracing::info!(what, "files reloaded");
                    report(Reload::Done);
                }
                Err(error) => {
                    tracing::error!(what, error, "files not reloaded, the last good ones stay");
                    report(Reload::Refused);
                }
            }
        }
    }
}

/// Reads a file of at most 1 MiB. Blocks.
///
/// The start reads by it too: a file that starts well can be read again later.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // The length of a file says too little: a pipe has none, and a file may grow meanwhile.
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("the file has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(content)
}

fn read_all(paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    let read_named = |path: &PathBuf| {
        read(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    paths.iter().map(read_named).collect()
}

/// The digest of contents, or of the error that took their place.
fn digest(read: &io::Result<Vec<Vec<u8>>>) -> [u8; 32] {
    let mut digest = Sha256::new();
    match read {
        Ok(contents) => {
            for content in contents {
                digest.update((content.len() as u64).to_be_bytes());
                digest.update(content);
            }
        }
        Err(error) => digest.update(error.to_string()),
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_more_than_1_mib_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_with = |bytes: usize| {
            std::fs::write(file.path(), vec![b'#'; bytes]).unwrap();
            read(file.path()).map(|content| content.len()).map_err(|error| error.to_string())
        };

        assert_eq!(read_with(1 << 20), Ok(1 << 20));
        assert_eq!(read_with((1 << 20) + 1), Err("the file has more than 1048576 bytes".into()));
    }

    #[test]
    fn contents_and_their_borders_decide_whether_files_changed() {
        let of = |contents: &[&str]| digest(&Ok(contents.iter().map(|c| (*c).into()).collect()));

        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab", "c"]), digest(&Err(io::Error::other("gone"))));
    }
}
