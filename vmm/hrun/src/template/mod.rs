//! Templates: VMs that were booted once and saved, for others to go on from.
//!
//! ```text
//! HRUN_STORE/templates/NAME/state, memory    the snapshot (vmm::snapshot)
//!                          /about.json       what it was made from
//! HRUN_STORE/templates/.lock                 held while templates are made or removed
//! HRUN_STORE/templates/.NAME.{new,old}/      what is being made or removed: garbage otherwise
//! HRUN_STATE/templates/NAME.trusted          its memory was checked since the host started
//! HRUN_STATE/templates/NAME/                 sockets of the VM while it is made
//! ```
//!
//! The name says everything that matters: class, and a digest of kernel, initramfs, VMM and host.
//! A template is whole or not there: it is made beside its place and renamed.

mod about;
mod make;
mod trust;
mod warm;

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use image::Image;
use serde::{Deserialize, Serialize};
use vmm::snapshot::SnapshotError;

pub(crate) use about::About;
pub(crate) use make::{MakeError, Making};
pub(crate) use warm::{Rehearsal, RehearsalError};

use crate::{clock::Moment, dirs::Dirs, options::size, parts::Parts, translate};

/// What a VM offers to its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Class {
    /// CPUs.
    pub(crate) cpus: u8,
    /// What the guest shows as `MemTotal`, in bytes.
    pub(crate) memory: u64,
}

/// How many CPUs clones of each template may have. Every one costs its per-CPU area, most of which
/// clones share.
const GROWS_TO: u8 = 4;

impl Class {
    /// How many CPUs the kernel of its template is prepared for.
    pub(crate) fn max_cpus(self) -> u8 {
        self.cpus.max(GROWS_TO)
    }

    /// Whether a clone of this class can become one of the `other`.
    pub(crate) fn grows_to(self, other: Self) -> bool {
        self != other
            && (self.cpus..=self.max_cpus()).contains(&other.cpus)
            && (self.memory == other.memory
                || self.memory < other.memory && translate::has_room_to_grow(self))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.cpus == 1 { "" } else { "s" };
        let memory = size::format(self.memory);
        write!(f, "{} CPU{plural}, {memory}", self.cpus)
    }
}

/// An image that a template may be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForImage {
    /// What people call it.
    pub(crate) name: String,
    /// The directories of its layers, topmost first.
    pub(crate) layers: Vec<PathBuf>,
}

impl ForImage {
    /// An image in the store, called `name`.
    pub(crate) fn of(name: &str, image: &Image) -> Self {
        Self {
            name: name.into(),
            layers: image.layers().to_vec(),
        }
    }
}

/// A template that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// Its name: says everything that matters.
    pub(crate) key: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// What its VMs offer.
    pub(crate) class: Class,
}

impl Template {
    /// What the guest's monotonic clock showed when it was saved, in nanoseconds.
    pub(crate) fn saved_ns(&self) -> u64 {
        // Without its description a template is none; then time is merely late.
        About::read(&self.dir).map_or(u64::MAX, |about| about.monotonic_ns)
    }

    /// A moment in the life of a clone whose clocks were set at this time of the host's wall
    /// clock, in nanoseconds since the Unix epoch; now if it is not known.
    pub(crate) fn moment(&self, clocks_set_ns: Option<u64>) -> Moment {
        Moment::of_clone(self.saved_ns(), clocks_set_ns)
    }

    /// Bytes that it takes on disk; holes take none.
    pub(crate) fn size(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files
            .filter_map(|file| file.metadata().ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }
}

/// Failure to keep templates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// Something on disk cannot be read or written.
    #[error("Failed to {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Something that a template is made from is not there.
    #[error("Failed to look at {path}, from which templates are made")]
    Part { path: PathBuf, source: io::Error },
    /// The template is not what was written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It could not be made.
    #[error("Failed to make the template for {class}")]
    Make { class: Class, source: MakeError },
    /// There is none of this name.
    #[error("No such template: {0}")]
    NotFound(String),
}

impl TemplateError {
    /// Whether it was a signal that put an end to making a template.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, Self::Make { source, .. } if source.is_interrupt())
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::Io {
        action,
        path: path.into(),
        source,
    }
}

/// All templates of a store.
#[derive(Debug, Clone)]
pub(crate) struct Templates {
    store: PathBuf,
    state: PathBuf,
}

impl Templates {
    /// Opens the store, making its directories if they are missing.
    pub(crate) fn open(dirs: &Dirs) -> Result<Self, TemplateError> {
        let templates = Self {
            store: dirs.templates.clone(),
            state: dirs.state.join("templates"),
        };
        for path in [&templates.store, &templates.state] {
            make_dir(path)?;
        }
        Ok(templates)
    }

    /// The template of this class for these parts and this host, and for an image if one is
    /// given: where it is, or would be.
    pub(crate) fn locate(
        &self,
        class: Class,
        parts: &Parts,
        image: Option<&ForImage>,
    ) -> Result<Template, TemplateError> {
        let key = About::new(class, parts, image)?.key();
        Ok(Template {
            dir: self.store.join(&key),
            key,
            class,
        })
    }

    /// Whether the template is there and may be used. Its memory is read through if nobody has
    /// done so since it was written or the host started.
    pub(crate) fn is_usable(&self, template: &Template) -> Result<bool, TemplateError> {
        if !template.dir.exists() {
            return Ok(false);
        }
        trust::establish(&self.state, template)?;
        Ok(true)
    }

    /// Finds a template, or makes it, which takes as long as a VM takes to boot.
    pub(crate) fn get_or_make(
        &self,
        class: Class,
        parts: &Parts,
        making: Making<'_>,
    ) -> Result<(Template, Got), TemplateError> {
        let template = self.locate(class, parts, None)?;
        self.find_or_make(template, |template| {
            make::make(self, template, parts, making)
        })
    }

    /// Finds a template for an image, or makes it out of the one of its class, which is made as
    /// well if there is none.
    pub(crate) fn get_or_make_for_image(
        &self,
        class: Class,
        parts: &Parts,
        rehearsal: &Rehearsal,
        mut making: Making<'_>,
    ) -> Result<(Template, Got), TemplateError> {
        let template = self.locate(class, parts, Some(rehearsal.image()))?;
        if self.is_usable(&template).is_ok_and(|usable| usable) {
            return Ok((template, Got::Found));
        }
        let (base, _) = self.get_or_make(class, parts, making.reborrow())?;
        self.find_or_make(template, |template| {
            warm::make(self, template, &base, parts, rehearsal, making)
        })
    }

    fn find_or_make(
        &self,
        template: Template,
        make: impl FnOnce(&Template) -> Result<(), MakeError>,
    ) -> Result<(Template, Got), TemplateError> {
        let damage = match self.is_usable(&template) {
            Ok(true) => return Ok((template, Got::Found)),
            Ok(false) => None,
            Err(TemplateError::Snapshot(damage)) => Some(damage),
            Err(error) => return Err(error),
        };
        let _lock = make::lock(&self.store)?;
        // Somebody else may have made it while we waited.
        match self.is_usable(&template) {
            Ok(true) => return Ok((template, Got::Found)),
            Ok(false) => {}
            Err(TemplateError::Snapshot(_)) => self.discard(&template)?,
            Err(error) => return Err(error),
        }
        let class = template.class;
        make(&template).map_err(|source| TemplateError::Make { class, source })?;
        self.collect()?;
        Ok((template, Got::Made { damage }))
    }

    /// All templates, in the order of their names.
    pub(crate) fn list(&self) -> Result<Vec<(Template, About)>, TemplateError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.store).map_err(failed("list", &self.store))? {
            let dir = entry.map_err(failed("list", &self.store))?.path();
            let Some(key) = dir.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            // What has no description is no template, or is on its way out.
            if !key.starts_with('.')
                && let Ok(about) = About::read(&dir)
            {
                let template = Template {
                    key: key.into(),
                    class: about.class,
                    dir: dir.clone(),
                };
                found.push((template, about));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
        Ok(found)
    }

    /// The templates whose clones can become VMs of this class, the best first: those for the image
    /// if one is given, then the largest.
    pub(crate) fn growing_to(
        &self,
        class: Class,
        parts: &Parts,
        image: Option<&ForImage>,
    ) -> Result<Vec<Template>, TemplateError> {
        let mut found = Vec::new();
        let images = [image, None];
        for (template, about) in self.list()? {
            if !about.class.grows_to(class) {
                continue;
            }
            // Others are of other images, or of parts that were replaced.
            for image in &images[usize::from(image.is_none())..] {
                if self.locate(about.class, parts, *image)?.key == template.key {
                    found.push((
                        image.is_some(),
                        about.class.memory,
                        about.class.cpus,
                        template,
                    ));
                    break;
                }
            }
        }
        found.sort_by_key(|found| std::cmp::Reverse((found.0, found.1, found.2)));
        Ok(found.into_iter().map(|found| found.3).collect())
    }

    /// Finds a template by its name or the beginning of it.
    pub(crate) fn find(&self, name: &str) -> Result<Template, TemplateError> {
        let mut all = self.list()?;
        all.retain(|(template, _)| !name.is_empty() && template.key.starts_with(name));
        match all.pop() {
            Some((template, _)) if all.is_empty() || template.key == name => Ok(template),
            _ => Err(TemplateError::NotFound(name.into())),
        }
    }

    /// Reads a template through and compares all of it with its checksums.
    pub(crate) fn verify(&self, template: &Template) -> Result<(), TemplateError> {
        trust::withdraw(&self.state, template)?;
        trust::establish(&self.state, template)
    }

    /// Where a template is made, to be renamed when it is whole.
    fn new_dir(&self, template: &Template) -> PathBuf {
        self.store.join(format!(".{}.new", template.key))
    }

    /// Removes a template; the lock must be held. VMs that came from it go on.
    fn discard(&self, template: &Template) -> Result<(), TemplateError> {
        trust::withdraw(&self.state, template)?;
        // Out of sight first: what is removed half is not taken for a template.
        let hidden = self.store.join(format!(".{}.old", template.key));
        remove_all(&hidden)?;
        match fs::rename(&template.dir, &hidden) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(failed("remove", &template.dir))?,
        }
        remove_all(&hidden)
    }

    /// Removes a template that the user names.
    pub(crate) fn remove(&self, template: &Template) -> Result<(), TemplateError> {
        let _lock = make::lock(&self.store)?;
        self.discard(template)
    }

    /// Removes the templates of parts that are not there any more or were replaced, and what
    /// makers left behind that were killed; the lock must be held.
    fn collect(&self) -> Result<(), TemplateError> {
        for (template, about) in self.list()? {
            if about.is_stale() {
                self.discard(&template)?;
            }
        }
        for entry in fs::read_dir(&self.store).map_err(failed("list", &self.store))? {
            let path = entry.map_err(failed("list", &self.store))?.path();
            let left = path
                .extension()
                .is_some_and(|ext| ext == "new" || ext == "old");
            if left {
                remove_all(&path)?;
            }
        }
        Ok(())
    }
}

/// How a template came to be there.
#[derive(Debug)]
pub(crate) enum Got {
    /// It was.
    Found,
    /// It was made, perhaps because what was there was damaged.
    Made { damage: Option<SnapshotError> },
}

fn make_dir(path: &Path) -> Result<(), TemplateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create directory", path))
}

fn remove_all(path: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
