//! Files between the host and a container, as tar streams.
//!
//! The host's files are packed and unpacked here; the container's are by its guest while it runs
//! ([`Guest`]), and here as well while it rests ([`Rest`]). What comes from a container is hostile:
//! it stays below its place, and neither devices nor set-user-ID programs come with it.

mod guest;
mod rest;

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use cp::{CopyError, Destination, Owner, Rights, Source, What};
use rustix::{
    fs::{Mode, OFlags},
    process,
};

use crate::{exit, table};

pub(crate) use guest::Guest;
pub(crate) use rest::Rest;

/// Bytes on the way at once where a stream is passed on.
const CHUNK: usize = 64 << 10;

/// How files are to be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Owners are kept.
    pub(crate) keep_owner: bool,
    /// A link that is the source itself is followed.
    pub(crate) follow: bool,
}

/// Where what comes from a container goes on the host.
#[derive(Debug)]
pub(crate) enum Sink {
    /// To this absolute path.
    Files(Vec<u8>),
    /// To standard output, as it is.
    Stream,
}

/// Where what goes into a container comes from on the host.
#[derive(Debug)]
pub(crate) enum Spring {
    /// From this absolute path.
    Files(Vec<u8>),
    /// From standard input, an archive.
    Stream,
}

/// The container's side of a copy.
pub(crate) trait Side {
    /// Copies what is at `path` of the container to the host.
    fn pack(&self, path: &[u8], sink: &Sink, wanted: Wanted) -> anyhow::Result<()>;

    /// Copies to `path` of the container.
    fn unpack(&self, path: &[u8], spring: &Spring, wanted: Wanted) -> anyhow::Result<()>;
}

impl Sink {
    /// Takes the archive of `source`, which is the container's.
    fn take(
        &self,
        source: &Source<'_>,
        wanted: Wanted,
        mut archive: impl Read,
    ) -> Result<(), CopyError> {
        match self {
            Self::Stream => pass_on(
                &mut archive,
                &mut io::stdout().lock(),
                |source| {
                    CopyError::Archive(cp::ArchiveError::Read {
                        position: 0,
                        source,
                    })
                },
                standard("write to", "standard output"),
            ),
            Self::Files(path) => {
                let name = source.name();
                let to = Destination {
                    path,
                    what: What::Copy { name: &name },
                    owner: if wanted.keep_owner {
                        Owner::Kept
                    } else {
                        Owner::Always {
                            uid: process::getuid().as_raw(),
                            gid: process::getgid().as_raw(),
                        }
                    },
                    rights: Rights {
                        devices: false,
                        set_id: wanted.keep_owner,
                    },
                };
                process::umask(Mode::empty());
                cp::unpack(root()?.as_fd(), &to, &mut archive, &mut note)
            }
        }
    }
}

impl Spring {
    /// The name of what is copied in its archive; none if that is any archive.
    fn name(&self) -> Option<Vec<u8>> {
        match self {
            Self::Files(path) => {
                let follow = false;
                Some(Source { path, follow }.name())
            }
            Self::Stream => None,
        }
    }

    /// Gives the archive to the container.
    fn give(&self, wanted: Wanted, mut archive: impl Write) -> Result<(), CopyError> {
        match self {
            Self::Stream => pass_on(
                &mut io::stdin().lock(),
                &mut archive,
                standard("read", "standard input"),
                CopyError::Write,
            ),
            Self::Files(path) => {
                let follow = wanted.follow;
                let source = Source { path, follow };
                cp::pack(root()?.as_fd(), &source, &mut archive, &mut note)
            }
        }
    }
}

/// The host's root directory.
fn root() -> Result<OwnedFd, CopyError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).map_err(|error| CopyError::System {
        action: "open",
        path: "/".into(),
        source: error.into(),
    })
}

fn standard(action: &'static str, stream: &'static str) -> impl Fn(io::Error) -> CopyError {
    move |source| CopyError::System {
        action,
        path: stream.into(),
        source,
    }
}

fn pass_on(
    from: &mut impl Read,
    to: &mut impl Write,
    unread: impl Fn(io::Error) -> CopyError,
    unwritten: impl Fn(io::Error) -> CopyError,
) -> Result<(), CopyError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return to.flush().map_err(unwritten),
            Ok(length) => to.write_all(&chunk[..length]).map_err(&unwritten)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(error)),
        }
    }
}

/// Says what is left out.
fn note(text: impl AsRef<str>) {
    exit::print_error(&format!("note: {}\n", table::printable(text.as_ref())));
}

/// What became of both sides: the one that was let down by the other does not count.
fn both(here: Result<(), CopyError>, there: anyhow::Result<()>) -> anyhow::Result<()> {
    match here {
        Err(error) if !error.is_of_stream() => Err(error.into()),
        Err(error) => there.and(Err(error.into())),
        Ok(()) => there,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_that_failed_first_is_told() {
        let own = || Err(CopyError::NotFound("/here".into()));
        let cut = || Err(CopyError::Write(io::ErrorKind::BrokenPipe.into()));
        let there = || Err(anyhow::anyhow!("there"));
        let told = |here, there| both(here, there).map_err(|error| error.to_string());
        assert_eq!(told(Ok(()), Ok(())), Ok(()));
        assert_eq!(told(Ok(()), there()), Err("there".into()));
        assert_eq!(told(cut(), there()), Err("there".into()));
        assert_eq!(
            told(cut(), Ok(())),
            Err("Failed to write the archive".into())
        );
        let missing = "Could not find the file /here";
        assert_eq!(told(own(), there()), Err(missing.into()));
    }
}
