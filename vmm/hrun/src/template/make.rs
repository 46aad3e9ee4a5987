//! How a template is made: a VM is booted, left alone until it has nothing to do, and saved.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use vmm::api::{Client, ClientError, Request};

use super::{About, RehearsalError, Template, TemplateError, Templates, failed, remove_all};
use crate::{
    clock::Moment,
    parts::Parts,
    sandbox::{BootError, SpawnError, VmProcess, boot},
    signals::Signals,
    translate::{self, Places},
};

/// How long a guest that is ready is left alone: what its kernel has put off is done by then, once
/// and not in every clone.
const SETTLING: Duration = Duration::from_secs(1);

/// How long the VMM may take to write a snapshot.
pub(super) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a template that has to be made needs besides its parts.
pub(crate) struct Making<'a> {
    /// Signals that end the wait, for those who catch any.
    pub(crate) signals: Option<&'a mut Signals>,
    /// A VM that is not ready by then is given up.
    pub(crate) timeout: Duration,
    /// Called before it begins: somebody will have to wait.
    pub(crate) begins: &'a dyn Fn(),
}

impl Making<'_> {
    /// The same for something that comes before.
    pub(super) fn reborrow(&mut self) -> Making<'_> {
        Making {
            signals: self.signals.as_deref_mut(),
            ..*self
        }
    }
}

/// Failure to make a template.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    /// Directories and files of it cannot be made.
    #[error(transparent)]
    Files(Box<TemplateError>),
    /// The VMM could not be started.
    #[error("Failed to start its VM")]
    Spawn(#[from] SpawnError),
    /// Its VM did not come up.
    #[error("Failed to boot its VM")]
    Boot(#[from] BootError),
    /// Its VM cannot be saved.
    #[error("Failed to save the VM")]
    Save(#[from] ClientError),
    /// A container of its image could not be run in it.
    #[error(transparent)]
    Rehearse(#[from] RehearsalError),
}

impl MakeError {
    /// Whether it was a signal that put an end to it.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(
            self,
            Self::Boot(BootError::Interrupted(_)) | Self::Rehearse(RehearsalError::Interrupted(_))
        )
    }
}

impl From<TemplateError> for MakeError {
    fn from(error: TemplateError) -> Self {
        Self::Files(Box::new(error))
    }
}

/// Waits until nobody else makes or removes templates.
pub(super) fn lock(store: &Path) -> Result<File, TemplateError> {
    let path = store.join(".lock");
    let open = || {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(failed("lock", &path))
}

/// Makes a template; the lock must be held.
pub(super) fn make(
    templates: &Templates,
    template: &Template,
    parts: &Parts,
    making: Making<'_>,
) -> Result<(), MakeError> {
    (making.begins)();
    let mut about = About::new(template.class, parts, None)?;
    // Both take what an earlier maker left behind along.
    let new = Scratch::new(templates.new_dir(template))?;
    let sockets = Scratch::new(templates.state.join(&template.key))?;
    let places = places(&sockets);
    let mut config = translate::template_config(template.class, parts, &places);
    config.snapshot = Some(new.path.clone());

    let deadline = Instant::now() + making.timeout;
    let socket = boot::ReadySocket::listen(&places.vsock)?;
    let mut process = VmProcess::spawn(&parts.vmm, &config)?;
    let hello = boot::wait_ready(
        &socket,
        &mut process,
        making.signals,
        deadline,
        making.timeout,
    )?;
    let moment = Moment::now(hello.ready_us * 1000);
    about.monotonic_ns = save(process, &places, moment)?;
    place(templates, template, &about, &new.path)
}

/// Where the sockets of a VM are that is to be saved.
pub(super) fn places(sockets: &Scratch) -> Places {
    Places {
        control: sockets.path.join("control"),
        vsock: sockets.path.join("vsock"),
        console: None,
        profile: None,
    }
}

/// Saves a VM that is ready, and ends it. `moment` is one of its life; gives what its monotonic
/// clock showed when it was saved, in nanoseconds.
pub(super) fn save(
    process: VmProcess,
    places: &Places,
    moment: Moment,
) -> Result<u64, ClientError> {
    thread::sleep(SETTLING);
    let mut client = Client::connect(&places.control, SNAPSHOT_TIMEOUT)?;
    client.request(Request::Pause)?;
    let saved_ns = moment.guest_now_ns();
    client.request(Request::Snapshot)?;
    drop(process);
    Ok(saved_ns)
}

/// Puts a template that was made in `new` where it is found.
pub(super) fn place(
    templates: &Templates,
    template: &Template,
    about: &About,
    new: &Path,
) -> Result<(), MakeError> {
    about
        .write(new)
        .map_err(failed("write the description of", new))?;
    let place = || {
        fs::rename(new, &template.dir)?;
        File::open(&templates.store)?.sync_all()
    };
    place().map_err(failed("make", &template.dir))?;
    Ok(())
}

/// A directory that is removed, if it is still there, when nobody needs it any more.
pub(super) struct Scratch {
    pub(super) path: PathBuf,
}

impl Scratch {
    pub(super) fn new(path: PathBuf) -> Result<Self, TemplateError> {
        remove_all(&path)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("create directory", &path))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may be a template by now; what cannot be removed is removed by the next maker.
        let _ = fs::remove_dir_all(&self.path);
    }
}
