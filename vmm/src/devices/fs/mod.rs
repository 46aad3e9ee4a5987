//! virtio-fs (virtio 1.2, section 5.11): a directory of the host, served by fuse-backend-rs.
//!
//! Requests are handled one after the other in the device's thread. What a guest may reach is
//! not decided here but by the mount namespace that holds the share's root ([`crate::sandbox`]).

mod absence;
mod descriptors;
mod message;
mod session;
mod top;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fuse_backend_rs::{
    abi::fuse_abi::FsOptions,
    api::{Vfs, VfsOptions, server::Server},
    passthrough::{CachePolicy, Config, PassthroughFs},
    transport::{Reader, VirtioFsWriter, Writer},
};
use virtio_bindings::{virtio_ids::VIRTIO_ID_FS, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::GuestMemoryMmap;

use descriptors::Descriptors;
use session::Session;

use super::{
    ActivateError, ActivationContext, BackendStateError, VirtioDevice, read_config_space,
    requests::{RequestWorker, Responder},
};
use crate::config::MAX_TAG;

/// One queue for urgent requests (FORGET, INTERRUPT) and one for all others.
const QUEUE_SIZES: [u16; 2] = [16, 128];
const REQUEST_QUEUES: u32 = 1;
/// How long a guest may keep names and attributes that nobody else changes.
const UNCHANGING: Duration = Duration::from_secs(86_400);

/// What answers requests.
struct Fuse {
    server: Server<Arc<Vfs>>,
    sharing: Sharing,
    descriptors: Descriptors,
}

/// Who besides the guest may change a share while it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: the guest may cache names, attributes and data as long as it likes.
    Exclusive,
    /// Nobody changes what is in the entries of the share's root, but entries may be added and
    /// removed.
    Entries,
    /// The host or other guests: the guest asks again.
    Shared,
}

impl Sharing {
    fn passthrough(self, root_dir: String) -> Config {
        let (cache_policy, timeout) = match self {
            Sharing::Exclusive | Sharing::Entries => (CachePolicy::Always, UNCHANGING),
            Sharing::Shared => (CachePolicy::Auto, Duration::ZERO),
        };
        Config {
            root_dir,
            cache_policy,
            entry_timeout: timeout,
            attr_timeout: timeout,
            xattr: true,
            no_open: self != Sharing::Shared,
            no_opendir: self != Sharing::Shared,
            killpriv_v2: true,
            // The options are negotiated by the file system around this one.
            do_import: false,
            ..Config::default()
        }
    }

    /// What is negotiated with the guest. An exclusive share needs no messages for opening and
    /// closing: three round trips less for a file that is read once.
    fn options(self) -> VfsOptions {
        let mut out_opts = FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::BIG_WRITES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::HAS_IOCTL_DIR
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::READDIRPLUS_AUTO;
        out_opts |= match self {
            Sharing::Exclusive | Sharing::Entries => {
                FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR
            }
            Sharing::Shared => FsOptions::ATOMIC_O_TRUNC | FsOptions::AUTO_INVAL_DATA,
        };
        VfsOptions {
            no_open: self != Sharing::Shared,
            no_opendir: self != Sharing::Shared,
            no_writeback: true,
            killpriv_v2: true,
            out_opts,
            ..VfsOptions::default()
        }
    }
}

/// A virtio-fs device.
pub struct Fs {
    name: String,
    config: Vec<u8>,
    fuse: Arc<Fuse>,
    session: Option<Arc<Mutex<Session>>>,
    worker: Option<RequestWorker<Service>>,
}

impl Fs {
    /// A device that shows the directory `root` under `tag`. If it is `to_be_saved`, what the
    /// guest does with it is written down for the servers of clones.
    ///
    /// # Errors
    ///
    /// The directory, or `/proc/self`, cannot be opened.
    pub fn new(tag: &str, root: &Path, sharing: Sharing, to_be_saved: bool) -> io::Result<Self> {
        let root = root
            .to_str()
            .ok_or(io::ErrorKind::InvalidFilename)?
            .to_owned();
        let passthrough = PassthroughFs::<()>::new(sharing.passthrough(root))?;
        passthrough.import()?;
        let vfs = Vfs::new(sharing.options());
        vfs.mount(Box::new(passthrough), "/")
            .map_err(io::Error::other)?;
        let mut config = vec![0; MAX_TAG];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config.extend(REQUEST_QUEUES.to_le_bytes());
        let fuse = Arc::new(Fuse {
            server: Server::new(Arc::new(vfs)),
            sharing,
            descriptors: Descriptors::new()?,
        });
        Ok(Self {
            name: format!("fs-{tag}"),
            config,
            fuse,
            session: to_be_saved.then(Arc::default),
            worker: None,
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let service = Service {
            fuse: Arc::clone(&self.fuse),
            session: self.session.clone(),
        };
        let worker = RequestWorker::spawn(&self.name, service, QUEUE_SIZES.len(), context)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        let (_, queues) = self.worker.take()?.stop()?;
        Some(queues)
    }

    /// The driver has read the tag.
    fn identity(&self) -> &[u8] {
        &self.config
    }

    fn save(&self) -> Result<Vec<u8>, BackendStateError> {
        let Some(session) = &self.session else {
            return Ok(Vec::new());
        };
        let session = lock(session);
        let failed = |problem: String| BackendStateError::new(&self.name, problem);
        let session = session.checked().map_err(|err| failed(err.to_string()))?;
        postcard::to_stdvec(session).map_err(|err| failed(err.to_string()))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), BackendStateError> {
        if state.is_empty() {
            return Ok(());
        }
        let failed = |problem: String| BackendStateError::new(&self.name, problem);
        let session: Session =
            postcard::from_bytes(state).map_err(|err| failed(err.to_string()))?;
        session
            .replay(|memory, chain| {
                self.fuse.answer(memory, &chain);
            })
            .map_err(|err| failed(err.to_string()))?;
        if let Some(own) = &self.session {
            *lock(own) = session;
        }
        Ok(())
    }
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What answers the requests of a guest, and remembers what servers of its clones must know.
struct Service {
    fuse: Arc<Fuse>,
    session: Option<Arc<Mutex<Session>>>,
}

impl Responder for Service {
    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        request: DescriptorChain<&GuestMemoryMmap>,
    ) -> u32 {
        let written = self.fuse.answer(memory, &request);
        if let Some(session) = &self.session {
            lock(session).record(memory, &request);
        }
        written
    }
}

impl Fuse {
    /// Handles one FUSE request; says how many bytes the answer has. A request that is none gets
    /// an empty answer: the guest's driver fails it.
    fn answer(&self, memory: &GuestMemoryMmap, chain: &DescriptorChain<&GuestMemoryMmap>) -> u32 {
        if let Some(refused) = self.descriptors.spare(memory, chain) {
            return refused;
        }
        let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else {
            return 0;
        };
        let Ok(writer) = VirtioFsWriter::new(memory, chain.clone()) else {
            return 0;
        };
        match self
            .server
            .handle_message(reader, Writer::VirtioFs(writer), None, None)
        {
            Ok(written) => self
                .caching(memory, chain)
                .unwrap_or_else(|| u32::try_from(written).unwrap_or(u32::MAX)),
            Err(err) => {
                log::debug!("virtio-fs: refused a request: {err}");
                0
            }
        }
    }

    /// Says how long the guest may keep what an answer says. Gives the answer's length in bytes if
    /// it is another one now.
    fn caching(
        &self,
        memory: &GuestMemoryMmap,
        chain: &DescriptorChain<&GuestMemoryMmap>,
    ) -> Option<u32> {
        match self.sharing {
            Sharing::Shared => None,
            Sharing::Entries if top::is_asked_for(memory, chain) => {
                top::expire(memory, chain);
                None
            }
            Sharing::Exclusive | Sharing::Entries => absence::keep(memory, chain, UNCHANGING),
        }
    }
}
