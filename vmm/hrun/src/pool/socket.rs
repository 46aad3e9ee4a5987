//! The daemon's place, `HRUN_POOL`: a socket, and beside it the lock that makes it the only one there.
//!
//! The kernel lets go of the lock when the daemon dies, however it dies. Its socket is left then;
//! the next daemon replaces it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

/// Failure to become the daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The directory is missing and cannot be made.
    #[error("Failed to create directory {path}")]
    CreateDir { path: PathBuf, source: io::Error },
    /// The lock cannot be taken.
    #[error("Failed to lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    /// Somebody has it.
    #[error("A pool daemon listens on {path} already{}", process(.pid))]
    Taken { path: PathBuf, pid: String },
    /// Nobody could reach us.
    #[error("Failed to listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// The socket of the one daemon. Dropping it removes it.
#[derive(Debug)]
pub(super) struct PoolSocket {
    path: PathBuf,
    lock: File,
}

impl PoolSocket {
    /// Takes the place, and listens.
    pub(super) fn take(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|source| SocketError::CreateDir {
                    path: dir.into(),
                    source,
                })?;
        }
        let lock = lock(path)?;
        let listener = listen(path).map_err(|source| SocketError::Listen {
            path: path.into(),
            source,
        })?;
        let path = path.into();
        Ok((Self { path, lock }, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PoolSocket {
    fn drop(&mut self) {
        // The lock is still held: it is ours. Left behind they do no harm, the next daemon
        // replaces both.
        let _ = fs::remove_file(&self.path);
        let _ = self.lock.set_len(0);
    }
}

/// Takes the lock and leaves our process number in it, for whoever is refused.
fn lock(socket: &Path) -> Result<File, SocketError> {
    let path = socket.with_extension("lock");
    let fail = |source| SocketError::Lock {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // A daemon that has only just begun has not written it yet: then it is not told.
            let _ = file.take(20).read_to_string(&mut pid);
            return Err(SocketError::Taken {
                path: socket.into(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}

/// Listens at `path`, in the place of whatever a dead daemon left there. The socket appears under
/// its name when nobody else can use it.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn process(pid: &str) -> String {
    let pid = pid.trim();
    if pid.is_empty() {
        String::new()
    } else {
        format!(": process {pid}")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::dirs::Dirs;

    fn dirs() -> (tempfile::TempDir, Dirs) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().join("state"), dir.path().join("store"));
        (dir, dirs)
    }

    fn files(dirs: &Dirs) -> Vec<(String, u64)> {
        let mut files: Vec<_> = fs::read_dir(&dirs.state)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().unwrap().len())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn there_is_one_daemon_and_the_second_hears_which() {
        let (_dir, dirs) = dirs();
        let (socket, _listener) = PoolSocket::take(&dirs.pool).unwrap();
        let mode = fs::metadata(socket.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = PoolSocket::take(&dirs.pool).unwrap_err().to_string();
        let own = format!(": process {}", std::process::id());
        assert!(refused.ends_with(&own), "{refused}");
        // Being refused has not harmed it.
        UnixStream::connect(&dirs.pool).unwrap();

        drop(socket);
        assert_eq!(files(&dirs), [("pool.lock".into(), 0)]);
        PoolSocket::take(&dirs.pool).unwrap();
    }

    #[test]
    fn what_a_killed_daemon_left_is_replaced() {
        let (_dir, dirs) = dirs();
        fs::create_dir(&dirs.state).unwrap();
        drop(UnixListener::bind(&dirs.pool).unwrap());
        drop(UnixListener::bind(dirs.state.join("pool.new")).unwrap());
        fs::write(dirs.pool.with_extension("lock"), "123456789\n").unwrap();
        UnixStream::connect(&dirs.pool).unwrap_err();

        let (socket, _listener) = PoolSocket::take(&dirs.pool).unwrap();
        UnixStream::connect(&dirs.pool).unwrap();
        let own = format!("{}\n", std::process::id());
        assert_eq!(
            fs::read_to_string(dirs.pool.with_extension("lock")).unwrap(),
            own
        );
        drop(socket);
        assert_eq!(files(&dirs).len(), 1);
    }
}
