//! The warm pool: a daemon that keeps VMs loaded from their templates and hands them out, and the
//! client that asks it.
//!
//! ```text
//! hrun run --- claim{class, key} ---> pool.sock of the daemon
//!          <-- pidfd, channel, lifeline (SCM_RIGHTS) --
//! ```
//!
//! A VM that waits hangs on the daemon by its lifeline, one that was handed out on its claimer
//! alone: the daemon's death, however it comes, ends the former and leaves the latter alone. So
//! there is nothing on disk but the socket and its lock, and nothing to clean up.

mod class;
pub(crate) mod client;
mod handover;
mod keeper;
mod loader;
mod memory;
mod protocol;
mod server;
mod socket;
mod stock;

#[cfg(test)]
mod fake;

use std::{future::poll_fn, io, rc::Rc, task::Poll, time::Duration};

use tokio::{
    net::UnixListener,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::{self, LocalSet},
};

pub(crate) use class::{ImageId, PoolClass};
pub(crate) use protocol::Status;
#[cfg(test)]
pub(crate) use protocol::{ClassStatus, HeldBack};

use crate::{
    dirs::Dirs,
    exit,
    parts::Parts,
    template::{TemplateError, Templates},
};
use keeper::Keeper;
use loader::{Loader, Stored};
use socket::{PoolSocket, SocketError};
use stock::ResizeError;

/// VMs that end at the same time, and the one that is loaded.
const MAX_THREADS: usize = 16;

/// What a daemon is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolOptions {
    pub(crate) classes: Vec<PoolClass>,
    /// VMs to keep of each.
    pub(crate) size: usize,
    /// What those that wait may have to themselves together, in bytes.
    pub(crate) memory_limit: Option<u64>,
}

/// Failure of a daemon to begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("Failed to open the templates")]
    Templates(#[from] TemplateError),
    #[error(transparent)]
    Resize(#[from] ResizeError),
    #[error("Failed to set the daemon up")]
    Runtime(#[source] io::Error),
}

/// Runs the daemon until it is told to end by SIGTERM or SIGINT. A VM from which a template is
/// made may take `boot_timeout` to boot.
pub(crate) fn serve(
    dirs: &Dirs,
    parts: Parts,
    boot_timeout: Duration,
    options: &PoolOptions,
) -> Result<(), ServeError> {
    let vmm = parts.vmm.clone();
    let source = Stored {
        dirs: dirs.clone(),
        templates: Templates::open(dirs)?,
        parts,
        timeout: boot_timeout,
    };
    let loader = Loader::new(vmm, Box::new(source));
    serve_until(dirs, loader, options, told_to_end)
}

/// Runs the daemon until what `end` gives has come to its end.
fn serve_until<F: Future<Output = ()>>(
    dirs: &Dirs,
    loader: Loader,
    options: &PoolOptions,
    end: impl FnOnce() -> io::Result<F>,
) -> Result<(), ServeError> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .thread_name("pool-worker")
        .max_blocking_threads(MAX_THREADS)
        .build()
        .map_err(ServeError::Runtime)?;
    let keeper = Keeper::new(loader, options.memory_limit);
    let served = LocalSet::new().block_on(&runtime, async {
        // Signals are caught before there is anything to be removed.
        let end = end().map_err(ServeError::Runtime)?;
        run(dirs, keeper, options, end).await
    });
    // What a thread is still doing, such as making a template, ends with the process.
    runtime.shutdown_background();
    served
}

async fn run(
    dirs: &Dirs,
    keeper: Rc<Keeper>,
    options: &PoolOptions,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (socket, listener) = PoolSocket::take(&dirs.pool)?;
    let listener = UnixListener::from_std(listener).map_err(ServeError::Runtime)?;
    for &class in &options.classes {
        keeper.resize(class, options.size).await?;
    }
    log(&format!("listening on {}", socket.path().display()));
    let keeping = task::spawn_local(Rc::clone(&keeper).keep());
    let serving = task::spawn_local(server::serve(listener, Rc::clone(&keeper)));
    end.await;
    serving.abort();
    keeping.abort();
    // Whoever comes now goes on without us.
    drop(socket);
    keeper.drain().await;
    log("drained");
    Ok(())
}

/// Waits for a signal that asks to end.
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(signal)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    Ok(poll_fn(move |context| {
        let came = |signal: &mut Signal| signal.poll_recv(context).is_ready();
        if signals.iter_mut().any(came) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }))
}

/// Tells whoever runs the daemon. Standard error may be gone: nobody misses it then.
fn log(text: &str) {
    exit::print_error(&format!("hrun pool: {}\n", crate::table::printable(text)));
}

#[cfg(test)]
mod tests;
