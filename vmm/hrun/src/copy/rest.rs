//! Files of a container that rests, on the host: its layers and what it wrote, as overlayfs shows
//! them. They are mounted nowhere, and reached by the descriptor of their root alone.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    thread,
};

use anyhow::{Context, anyhow, bail};
use cp::{CopyError, Destination, Owner, Rights, Source, What};
use image::ImageUse;
use rustix::fs::{Mode, OFlags};
use vmm::sandbox::overlay;

use super::{Side, Sink, Spring, Wanted, both, note};
use crate::{
    commands::{diff::image_of, image::open_store},
    container::{Container, Containers, Record, Still},
    dirs::Dirs,
    rootfs::Rootfs,
};

/// A container that rests.
#[derive(Debug)]
pub(crate) struct Rest {
    name: String,
    root: OwnedFd,
    _image: ImageUse,
    _held: Held,
}

/// What keeps it resting.
#[derive(Debug)]
enum Held {
    Read(#[expect(dead_code, reason = "held, not used")] Still),
    Written(#[expect(dead_code, reason = "held, not used")] Box<Container>),
}

impl Rest {
    /// One from which is read; others may do so, too.
    pub(crate) fn readable(
        dirs: &Dirs,
        containers: &Containers,
        record: Record,
    ) -> anyhow::Result<Self> {
        let store = open_store(dirs)?;
        let image = image_of(&store, &record)?;
        let in_use = store.use_image(&image)?;
        let still = containers.still(&record, false)?;
        // One that was never started has none.
        let upper = Some(still.upper.clone()).filter(|upper| upper.is_dir());
        let layers: Vec<PathBuf> = upper
            .into_iter()
            .chain(image.layers().iter().cloned())
            .collect();
        let root = match layers.as_slice() {
            // Overlayfs does not take a single layer and nothing to write to.
            [layer] => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(layer, flags, Mode::empty())
            }
            layers => overlay(layers, None, true, &[]),
        };
        Self::new(record.name, root, in_use, Held::Read(still))
    }

    /// One into which is written; nobody starts it meanwhile.
    pub(crate) fn writable(
        dirs: &Dirs,
        containers: &Containers,
        record: Record,
    ) -> anyhow::Result<Self> {
        let name = &record.name;
        if containers.config(&record)?.options.rootfs != Rootfs::Host {
            bail!("Container {name} has its changes in its memory: start it first");
        }
        let store = open_store(dirs)?;
        let image = image_of(&store, &record)?;
        let in_use = store.use_image(&image)?;
        let Some(container) = containers.reopen(&record)? else {
            bail!("Container {name} has just been started: try again");
        };
        let below = image.layers().first().context("An image has a layer")?;
        let layer = container.layer(below)?;
        let changes = Some((layer.upper.as_path(), layer.work.as_path()));
        let root = overlay(image.layers(), changes, false, &[]);
        let held = Held::Written(Box::new(container));
        Self::new(record.name, root, in_use, held)
    }

    fn new(
        name: String,
        root: rustix::io::Result<OwnedFd>,
        image: ImageUse,
        held: Held,
    ) -> anyhow::Result<Self> {
        let root =
            root.with_context(|| format!("Failed to mount the files of container {name}"))?;
        Ok(Self {
            name,
            root,
            _image: image,
            _held: held,
        })
    }

    /// Both ends in two threads, with a pipe between them; the first is the container's.
    fn meet<P, T>(
        &self,
        there: impl FnOnce(P) -> Result<(), CopyError> + Send,
        here: impl FnOnce(T) -> Result<(), CopyError>,
        (its, ours): (P, T),
    ) -> anyhow::Result<()>
    where
        P: Send,
    {
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("container's files".into());
            let other = builder.spawn_scoped(scope, move || there(its));
            let other = other.context("Failed to start a thread")?;
            let here = here(ours);
            let there = other.join().unwrap_or(Err(CopyError::Empty));
            both(here, self.named(there))
        })
    }

    fn named(&self, result: Result<(), CopyError>) -> anyhow::Result<()> {
        result.map_err(|error| {
            let error = anyhow::Error::new(error);
            anyhow!("{error:#} in container {}", self.name)
        })
    }
}

impl Side for Rest {
    fn pack(&self, path: &[u8], sink: &Sink, wanted: Wanted) -> anyhow::Result<()> {
        let follow = wanted.follow;
        let source = Source { path, follow };
        let (reader, writer) = io::pipe().context("Failed to make a pipe")?;
        self.meet(
            |mut out: PipeWriter| cp::pack(self.root.as_fd(), &source, &mut out, &mut note),
            |archive| sink.take(&source, wanted, archive),
            (writer, reader),
        )
    }

    fn unpack(&self, path: &[u8], spring: &Spring, wanted: Wanted) -> anyhow::Result<()> {
        let name = spring.name();
        let to = Destination {
            path,
            what: match &name {
                Some(name) => What::Copy { name },
                None => What::Archive,
            },
            owner: if wanted.keep_owner {
                Owner::Kept
            } else {
                Owner::Always { uid: 0, gid: 0 }
            },
            // A device in a layer may be a whiteout, and is on the host.
            rights: Rights {
                devices: false,
                set_id: true,
            },
        };
        rustix::process::umask(Mode::empty());
        let (reader, writer) = io::pipe().context("Failed to make a pipe")?;
        self.meet(
            |mut archive: PipeReader| cp::unpack(self.root.as_fd(), &to, &mut archive, &mut note),
            |out| spring.give(wanted, out),
            (reader, writer),
        )
    }
}
