//! Makes VMs that wait: finds the template of a class, and starts a VMM that loads it.
//!
//! Everything here blocks, for milliseconds or, if a template must be made, for seconds: the
//! daemon calls it in a thread.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use ::image::{Image, Store};
use vmm::exit::ExitReason;

use super::{
    class::{ImageId, PoolClass},
    log, memory,
    protocol::CloneOf,
};
use crate::{
    commands::image,
    dirs::Dirs,
    parts::Parts,
    sandbox::{EventError, SpawnError, VmProcess},
    template::{ForImage, Got, Making, Rehearsal, Template, TemplateError, Templates},
};

/// How long a VMM may take to load a template: some milliseconds are usual.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Where templates come from.
pub(super) trait Source: Send + Sync {
    /// The key of the template to use for this class now, whether there is one or not.
    fn key(&self, class: PoolClass) -> Result<String, SourceError>;
    /// Finds that template, or makes it.
    fn get_or_make(&self, class: PoolClass) -> Result<Template, SourceError>;
    /// Removes one that turned out to be unusable.
    fn discard(&self, template: &Template) -> Result<(), TemplateError>;
}

/// No template for a class.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("Failed to find the image that its VMs are to know")]
    Image(#[source] anyhow::Error),
}

/// The templates of a store.
#[derive(Debug)]
pub(super) struct Stored {
    /// Where the images are.
    pub(super) dirs: Dirs,
    pub(super) templates: Templates,
    pub(super) parts: Parts,
    /// How long a VM may take to boot.
    pub(super) timeout: Duration,
}

impl Source for Stored {
    fn key(&self, class: PoolClass) -> Result<String, SourceError> {
        let image = class.image.map(|id| self.find(id)).transpose()?;
        let image = image.map(|(_, image)| ForImage::of("", &image));
        let located = self
            .templates
            .locate(class.vm, &self.parts, image.as_ref())?;
        Ok(located.key)
    }

    fn get_or_make(&self, class: PoolClass) -> Result<Template, SourceError> {
        let making = Making {
            signals: None,
            timeout: self.timeout,
            begins: &|| log(&format!("making the template for {class}")),
        };
        let (template, got) = match class.image {
            None => self.templates.get_or_make(class.vm, &self.parts, making)?,
            Some(id) => {
                let (store, image) = self.find(id)?;
                let failed = |error: anyhow::Error| SourceError::Image(error);
                let _in_use = store.use_image(&image).map_err(|err| failed(err.into()))?;
                let name = image.names.first().map(ToString::to_string);
                let name = name.unwrap_or_else(|| id.to_string());
                let rehearsal = Rehearsal::new(&name, &image, class.vm, &[])
                    .map_err(|err| failed(err.into()))?;
                let templates = &self.templates;
                templates.get_or_make_for_image(class.vm, &self.parts, &rehearsal, making)?
            }
        };
        if let Got::Made {
            damage: Some(damage),
        } = got
        {
            log(&format!("made a template anew: {damage}"));
        }
        Ok(template)
    }

    fn discard(&self, template: &Template) -> Result<(), TemplateError> {
        self.templates.remove(template)
    }
}

impl Stored {
    fn find(&self, id: ImageId) -> Result<(Store, Image), SourceError> {
        let find = || {
            let store = image::open_store(&self.dirs)?;
            let image = store.find(&id.to_string())?;
            Ok((store, image))
        };
        find().map_err(SourceError::Image)
    }
}

/// A VMM that has loaded a template and waits to be told what to be.
#[derive(Debug)]
pub(super) struct Preloaded {
    pub(super) vm: PooledVm,
    /// Of the template.
    pub(super) key: String,
    /// What it has to itself, in bytes.
    pub(super) memory: u64,
}

/// A VM that can be handed out.
#[derive(Debug)]
pub(super) struct PooledVm {
    pub(super) process: VmProcess,
    pub(super) of: CloneOf,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("Failed to load {path} into a VMM")]
    Load { path: PathBuf, source: EventError },
    #[error("Failed to measure the memory of a VMM")]
    Measure(#[source] io::Error),
}

/// Loads VMs for all classes.
pub(super) struct Loader {
    vmm: PathBuf,
    source: Box<dyn Source>,
}

impl Loader {
    /// Loads templates from `source` with this VMM.
    pub(super) fn new(vmm: PathBuf, source: Box<dyn Source>) -> Self {
        Self { vmm, source }
    }

    /// Starts a VMM that has loaded the template of this class.
    pub(super) fn load(&self, class: PoolClass) -> Result<Preloaded, LoadError> {
        let template = self.source.get_or_make(class)?;
        // Before it is loaded: should it be replaced meanwhile, loading finds out.
        let monotonic_ns = template.saved_ns();
        let mut process = VmProcess::preload(&self.vmm, &template.dir)?;
        if let Err(source) = process.wait_loaded(Instant::now() + LOAD_TIMEOUT) {
            // The VMM found out only now: the next try makes it anew.
            if matches!(&source, EventError::Ended(ended)
                if ended.exit == Some(ExitReason::BadSnapshot))
            {
                self.source.discard(&template)?;
            }
            return Err(LoadError::Load {
                path: template.dir,
                source,
            });
        }
        let memory = memory::private_to(process.pid()).map_err(LoadError::Measure)?;
        let of = CloneOf {
            template: template.dir,
            monotonic_ns,
        };
        Ok(Preloaded {
            vm: PooledVm { process, of },
            key: template.key,
            memory,
        })
    }

    /// The key of the template to use for this class now.
    pub(super) fn key(&self, class: PoolClass) -> Result<String, LoadError> {
        Ok(self.source.key(class)?)
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("vmm", &self.vmm)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::fake::{CLASS, FakeVmm, KEY};

    #[test]
    fn a_loaded_vmm_waits_and_is_measured() {
        let fake = FakeVmm::new();
        let mut loaded = fake.loader().load(CLASS).unwrap();
        assert_eq!(loaded.key, KEY);
        assert!(loaded.memory > 0);
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(loaded.vm.process.wait(Some(soon)).unwrap(), None);
    }

    #[test]
    fn a_template_that_is_damaged_is_removed_and_one_that_is_not_stays() {
        let fake = FakeVmm::new();
        let loader = fake.loader();
        fake.breaks(1);
        let error = loader.load(CLASS).unwrap_err();
        assert!(matches!(error, LoadError::Load { .. }), "{error}");
        assert!(fake.template().exists());
        fake.breaks(ExitReason::BadSnapshot.code());
        loader.load(CLASS).unwrap_err();
        assert!(!fake.template().exists());
        // The next one makes it.
        fake.works();
        loader.load(CLASS).unwrap();
        assert!(fake.template().exists());
    }

    #[test]
    fn a_missing_vmm_is_named() {
        let fake = FakeVmm::new();
        std::fs::remove_file(fake.vmm()).unwrap();
        let error = fake.loader().load(CLASS).unwrap_err().to_string();
        assert!(error.contains("hrun-vmm"), "{error}");
    }
}
