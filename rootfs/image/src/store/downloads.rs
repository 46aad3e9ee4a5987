//! Blobs on their way from registries: `downloads/HEX`, kept over interruptions.
//!
//! A file belongs to the process that has it locked; nothing that it holds is believed before it
//! was hashed again. What nobody continued for a week is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::{Digest, Progress};

/// How long a download may wait to be continued.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a file that another process has is looked at.
const POLL: Duration = Duration::from_millis(200);

/// A download that is ours as long as this lives. Emptied files are removed, others kept.
pub(super) struct Held {
    pub(super) digest: Digest,
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Held {
    /// Removes the file: what was in it is in the store, or of no use.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|file| file.len() == 0) {
            // If it stays, it is found to be old some day.
            let _ = self.remove();
        }
    }
}

impl Store {
    pub(super) fn downloads_path(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Takes the download of `digest`, waiting for another process that has it.
    ///
    /// Whoever takes several takes them in the order of their digests: nobody then waits for
    /// somebody who waits for him.
    pub(super) async fn hold_download(
        &self,
        digest: &Digest,
        progress: &dyn Progress,
    ) -> Result<Held, StoreError> {
        let path = self.downloads_path().join(digest.digest());
        let mut waiting = false;
        loop {
            let file = self.open_download(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The other one may have removed it when it was done.
                Ok(()) if is_at(&file, &path) => {
                    let digest = digest.clone();
                    return Ok(Held { digest, file, path });
                }
                Ok(()) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    if !waiting {
                        progress.note("another hrun is downloading the same: waiting for it");
                        waiting = true;
                    }
                    tokio::time::sleep(POLL).await;
                }
                Err(err) => return Err(self.failed("lock", &path, err.into())),
            }
        }
    }

    fn open_download(&self, path: &Path) -> Result<File, StoreError> {
        let directory = self.downloads_path();
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&directory)
            .map_err(|err| self.failed("create", &directory, err))?;
        // It is its own lock.
        super::open_lock(path).map_err(|err| self.failed("open", path, err))
    }

    /// Removes what nobody has touched for longer than `age` and nobody has open; gives the bytes
    /// that this frees.
    pub(super) fn clear_downloads(&self, age: Duration) -> Result<u64, StoreError> {
        let directory = self.downloads_path();
        let failed = |err| self.failed("clear", &directory, err);
        let entries = match fs::read_dir(&directory) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(failed)?,
        };
        let now = SystemTime::now();
        let mut freed = 0;
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            // Gone already: somebody else's work.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let metadata = file.metadata().map_err(failed)?;
            let unused = metadata.modified().map_err(failed)?;
            let is_old = now.duration_since(unused).is_ok_and(|since| since >= age);
            if is_old
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && is_at(&file, &path)
            {
                fs::remove_file(&path).map_err(failed)?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }

    /// [`Store::clear_downloads`] for what will hardly be continued any more.
    pub(super) fn clear_old_downloads(&self) -> Result<(), StoreError> {
        self.clear_downloads(KEPT).map(|_| ())
    }
}

/// Whether `path` still leads to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}
