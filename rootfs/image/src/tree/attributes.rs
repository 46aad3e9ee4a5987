//! What an entry has besides a name and contents.

use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid, fchmod, fchown};

use super::TreeError;
use archive::Timestamp;

/// Owner, permissions and time of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: Timestamp,
}

impl Attributes {
    pub(crate) fn of(stat: &Stat) -> Self {
        let mtime = Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        };
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            mtime,
        }
    }

    pub(crate) fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    pub(crate) fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.seconds,
            tv_nsec: i64::from(self.mtime.nanoseconds),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    /// Owner first: `chown` takes set-user-id bits and capabilities away.
    pub(crate) fn apply(&self, file: impl AsFd) -> Result<(), TreeError> {
        let (uid, gid) = self.owner();
        fchown(&file, uid, gid).map_err(TreeError::system("set the owner of"))?;
        fchmod(&file, Mode::from_raw_mode(self.mode)).map_err(TreeError::system("set the mode of"))
    }
}
