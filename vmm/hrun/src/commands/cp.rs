//! `hrun cp`: files between the host and a container.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use anyhow::{Context, bail};

use crate::{
    container::{Containers, Record},
    copy::{Guest, Rest, Side, Sink, Spring, Wanted},
    dirs::Dirs,
};

#[derive(Debug, clap::Args)]
#[command(
    override_usage = "hrun cp [OPTIONS] CONTAINER:SRC DEST|-\n       hrun cp [OPTIONS] SRC|- CONTAINER:DEST",
    after_help = "\
Examples:
  hrun cp web:/etc/nginx/nginx.conf .
  hrun cp site/. web:/srv/www
  hrun cp web:/var/log - | tar -tv
  tar -c bin | hrun cp - web:/usr/local

Paths of a container count from its root. A directory goes into DEST if that is one, and becomes
DEST if there is nothing yet; of SRC/. only the contents are copied. A container that runs needs
nothing in its image for it; tmpfs and volumes are seen in one that runs only. Extended attributes
are not copied, nor are devices to the host."
)]
pub(crate) struct CpArgs {
    /// Keep the owners of files; without it they are root's in a container, and yours here
    #[arg(short, long)]
    archive: bool,
    /// If SRC is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Accepted as docker does: there is nothing to be quiet about
    #[arg(short, long)]
    quiet: bool,
    /// What to copy, - for a tar archive on standard input
    #[arg(value_name = "SRC")]
    from: OsString,
    /// Where to, - for a tar archive on standard output
    #[arg(value_name = "DEST")]
    to: OsString,
}

/// One of the two sides of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Container { name: String, path: Vec<u8> },
    Host(Vec<u8>),
    Stream,
}

impl Place {
    /// As docker reads it: a path that begins with `/` or `.` is never a container's.
    fn parse(word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Self::Stream;
        }
        let host = || Self::Host(bytes.to_vec());
        let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
            return host();
        };
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        match str::from_utf8(name) {
            Ok(name) if !name.contains('/') && !name.starts_with('.') => Self::Container {
                name: name.into(),
                path: path.to_vec(),
            },
            _ => host(),
        }
    }
}

pub(crate) fn execute(args: &CpArgs) -> anyhow::Result<()> {
    let wanted = Wanted {
        keep_owner: args.archive,
        follow: args.follow_link,
    };
    match (Place::parse(&args.from), Place::parse(&args.to)) {
        (Place::Container { .. }, Place::Container { .. }) => {
            bail!(
                "Files cannot be copied from one container to another: copy them to the host first"
            )
        }
        (Place::Container { name, path }, to) => {
            let sink = match to {
                Place::Host(path) => Sink::Files(absolute(path)?),
                _ if io::stdout().is_terminal() => {
                    bail!("An archive is nothing for a terminal: use a pipe, or name a file")
                }
                _ => Sink::Stream,
            };
            side(&name, false)?.pack(&path, &sink, wanted)
        }
        (from, Place::Container { name, path }) => {
            let spring = match from {
                Place::Host(path) => Spring::Files(absolute(path)?),
                _ => Spring::Stream,
            };
            side(&name, true)?.unpack(&path, &spring, wanted)
        }
        _ => bail!("One of the two must be in a container: CONTAINER:PATH"),
    }
}

/// The container's side, into which is written or from which is read.
fn side(wanted: &str, writes: bool) -> anyhow::Result<Box<dyn Side>> {
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let record = containers.find(wanted)?;
    if record.is_running() {
        if record.is_paused() {
            bail!("Container {wanted} is paused: unpause it first, as files are copied by its VM");
        }
        return Ok(Box::new(Guest::new(&record)));
    }
    rests(&record)?;
    let rest = if writes {
        Rest::writable(&dirs, &containers, record)?
    } else {
        Rest::readable(&dirs, &containers, record)?
    };
    Ok(Box::new(rest))
}

fn rests(record: &Record) -> anyhow::Result<()> {
    if !record.status.rests() {
        bail!("Container {} is just being made: try again", record.name);
    }
    Ok(())
}

/// A path of the host as it counts from the root; its end stays as it is.
fn absolute(path: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    if path.is_empty() {
        bail!("A path on the host is empty");
    }
    if path.starts_with(b"/") {
        return Ok(path);
    }
    let current = env::current_dir().context("Failed to find the working directory")?;
    Ok([current.into_os_string().into_vec().as_slice(), b"/", &path].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_container_unless_the_word_is_a_path() {
        let container = |name: &str, path: &str| Place::Container {
            name: name.into(),
            path: path.into(),
        };
        for (word, place) in [
            ("box:/etc", container("box", "/etc")),
            ("box:etc:x", container("box", "etc:x")),
            ("box:", container("box", "")),
            ("./box:/etc", Place::Host(b"./box:/etc".to_vec())),
            ("/a:b", Place::Host(b"/a:b".to_vec())),
            ("dir/a:b", Place::Host(b"dir/a:b".to_vec())),
            ("file", Place::Host(b"file".to_vec())),
            ("-", Place::Stream),
        ] {
            assert_eq!(Place::parse(OsStr::new(word)), place, "{word}");
        }
    }

    #[test]
    fn the_end_of_a_path_is_kept() {
        assert_eq!(absolute(b"/a/.".to_vec()).unwrap(), b"/a/.");
        assert!(absolute(b"a/".to_vec()).unwrap().ends_with(b"/a/"));
        assert!(absolute(Vec::new()).is_err());
    }
}
