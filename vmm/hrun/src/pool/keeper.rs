//! Keeps the stock: loads, watches and ends VMs as the stock decides, and hands them out.
//!
//! Everything here runs on the daemon's one thread; what blocks goes to a thread of the runtime.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::{self, JoinError},
    time::timeout_at,
};

use super::{
    class::PoolClass,
    loader::{Loader, PooledVm, Preloaded},
    log, memory,
    protocol::{CloneOf, Refusal, Status},
    stock::{Loaded, ResizeError, Step, Stock, VmId, Waiting},
};
use crate::{failpoint::reach, poll, sandbox::Handles};

/// Longest description of what went wrong that is kept for the status, in bytes.
const MAX_TROUBLE: usize = 300;

/// The VMs of a daemon.
#[derive(Debug)]
pub(super) struct Keeper {
    stock: RefCell<Stock<PooledVm>>,
    /// Those that were handed out: still our children, though no longer ours.
    handed_out: RefCell<HashMap<VmId, PoolClass>>,
    loader: Arc<Loader>,
    changed: Notify,
    last_id: Cell<VmId>,
}

impl Keeper {
    /// Keeps nothing until it is resized.
    pub(super) fn new(loader: Loader, memory_limit: Option<u64>, learn: usize) -> Rc<Self> {
        Rc::new(Self {
            stock: RefCell::new(Stock::new(memory_limit, learn)),
            handed_out: RefCell::default(),
            loader: Arc::new(loader),
            changed: Notify::new(),
            last_id: Cell::new(0),
        })
    }

    /// Gives a VM away: it lives as long as somebody holds its lifeline.
    pub(super) fn claim(&self, class: PoolClass, key: &str) -> Result<(Handles, CloneOf), Refusal> {
        let claimed = self
            .stock
            .borrow_mut()
            .claim(class, key, Instant::now(), lives);
        // Whatever came of it: there may be something to do now.
        self.changed.notify_one();
        let Waiting { id, vm, .. } = claimed?;
        reach("pool.taken", None);
        self.handed_out.borrow_mut().insert(id, class);
        match vm.process.into_handles() {
            // We are still its parent: `watch` takes note of its end.
            Ok((handles, _child)) => Ok((handles, vm.of)),
            Err(error) => {
                log(&format!("a VM cannot be handed out: {error}"));
                Err(Refusal::Empty)
            }
        }
    }

    /// Keeps so many of a class from now on.
    pub(super) async fn resize(&self, class: PoolClass, size: usize) -> Result<(), ResizeError> {
        let surplus = self
            .stock
            .borrow_mut()
            .resize(class, size, Instant::now())?;
        self.changed.notify_one();
        end(surplus).await;
        Ok(())
    }

    /// Ends all that wait, and loads no more.
    pub(super) async fn drain(&self) {
        let drained = self.stock.borrow_mut().drain();
        self.changed.notify_one();
        end(drained).await;
    }

    pub(super) fn status(&self) -> Status {
        let stock = self.stock.borrow();
        let handed_out = self.handed_out.borrow();
        let running = |class| handed_out.values().filter(|of| **of == class).count();
        Status {
            pid: std::process::id(),
            waiting_memory: stock.waiting_memory(),
            memory_limit: stock.memory_limit(),
            held_back: stock.held_back(),
            classes: stock.classes(running),
        }
    }

    /// Does what there is to do, one thing after the other, for ever.
    pub(super) async fn keep(self: Rc<Self>) {
        loop {
            let surplus = self.stock.borrow_mut().take_surplus();
            end(surplus).await;
            let step = self
                .stock
                .borrow_mut()
                .next(Instant::now(), memory::host_is_short);
            match step {
                Step::Load(class) => self.load(class).await,
                Step::Check(class) => self.check(class).await,
                // It does not matter which of the two it was.
                Step::WaitUntil(at) => drop(timeout_at(at.into(), self.changed.notified()).await),
                Step::Wait => self.changed.notified().await,
            }
        }
    }

    async fn load(self: &Rc<Self>, class: PoolClass) {
        let loader = Arc::clone(&self.loader);
        // What takes the place of one that was handed out is another matter than the first ones.
        let is_first = self.handed_out.borrow().is_empty();
        let at = |first, next| reach(if is_first { first } else { next }, None);
        at("pool.loading", "pool.refilling");
        let loaded = blocking(move || loader.load(class)).await;
        at("pool.loaded", "pool.refilled");
        let loaded = loaded.and_then(|loaded| {
            let pidfd = loaded.vm.process.as_fd().try_clone_to_owned()?;
            // From here on its end is noticed.
            Ok((self.adopt(loaded), pidfd))
        });
        match loaded {
            Ok((loaded, pidfd)) => {
                let id = loaded.id;
                let surplus = self
                    .stock
                    .borrow_mut()
                    .loaded(class, loaded, Instant::now());
                task::spawn_local(Rc::clone(self).watch(id, pidfd));
                end(surplus).await;
            }
            Err(error) => self.failed(class, &error),
        }
    }

    fn adopt(&self, preloaded: Preloaded) -> Loaded<PooledVm> {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        Loaded {
            id,
            vm: preloaded.vm,
            memory: preloaded.memory,
            key: preloaded.key,
        }
    }

    async fn check(&self, class: PoolClass) {
        let loader = Arc::clone(&self.loader);
        match blocking(move || loader.key(class)).await {
            Ok(key) => {
                let stale = self
                    .stock
                    .borrow_mut()
                    .template_is(class, key, Instant::now());
                if !stale.is_empty() {
                    log(&format!(
                        "the template of {class} is another one now: {} VMs of the old one end",
                        stale.len()
                    ));
                }
                end(stale).await;
            }
            Err(error) => self.failed(class, &error),
        }
    }

    fn failed(&self, class: PoolClass, error: &anyhow::Error) {
        log(&format!("no VM of {class}: {error:#}"));
        let trouble = shortened(format!("{error:#}"));
        self.stock
            .borrow_mut()
            .failed(class, trouble, Instant::now());
    }

    /// Waits for the end of a VM, whoever has it by then.
    async fn watch(self: Rc<Self>, id: VmId, pidfd: OwnedFd) {
        let ended = match watched(pidfd) {
            Ok(pidfd) => pidfd.readable().await.map(drop).map(|()| pidfd),
            Err(error) => Err(error),
        };
        let pidfd = match ended {
            Ok(pidfd) => pidfd,
            Err(error) => return log(&format!("a VM cannot be watched: {error}")),
        };
        let was_handed_out = self.handed_out.borrow_mut().remove(&id).is_some();
        if was_handed_out {
            reach("pool.ended", None);
            reap(pidfd.get_ref());
            if self.handed_out.borrow().is_empty() {
                self.stock.borrow_mut().nobody_runs();
                self.changed.notify_one();
            }
            return;
        }
        let Some((class, waiting)) = self.stock.borrow_mut().ended(id) else {
            // It was ended by us.
            return;
        };
        let Waiting { vm, .. } = waiting;
        let words = blocking(move || last_words(vm))
            .await
            .unwrap_or_else(|error| format!("{error:#}"));
        log(&format!("a waiting VM of {class} has ended: {words}"));
        self.stock
            .borrow_mut()
            .died(class, waiting.since, shortened(words), Instant::now());
        self.changed.notify_one();
    }
}

#[expect(
    deprecated,
    reason = "unsound for descriptors that somebody else may close: this one owns its own"
)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

fn lives(vm: &PooledVm) -> bool {
    let mut fds = [PollFd::new(&vm.process, PollFlags::IN)];
    matches!(poll::wait(&mut fds, Some(Instant::now())), Ok(false))
}

/// Ends VMs side by side: closing one takes 20 ms.
async fn end(vms: Vec<PooledVm>) {
    let ends: Vec<_> = vms
        .into_iter()
        .map(|vm| task::spawn_blocking(|| drop(vm)))
        .collect();
    for end in ends {
        // A panic in there is reported by itself, and there is nothing to do about it.
        let _ = end.await;
    }
}

/// Takes note of the end of a child that was handed out, so that nothing is left of it.
fn reap(pidfd: &OwnedFd) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(_) | Err(Errno::CHILD) => {}
        Err(error) => log(&format!("a VM that has ended is left as a zombie: {error}")),
    }
}

fn last_words(mut vm: PooledVm) -> io::Result<String> {
    let ended = vm.process.wait(Some(Instant::now()))?;
    Ok(ended.map_or_else(|| "nobody knows why".into(), |ended| ended.to_string()))
}

/// Carries out on another thread what blocks.
fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> impl Future<Output = anyhow::Result<T>>
where
    T: Send + 'static,
    E: Into<anyhow::Error> + Send + 'static,
{
    let working = task::spawn_blocking(work);
    async {
        let done: Result<Result<T, E>, JoinError> = working.await;
        done?.map_err(Into::into)
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().find(|(at, _)| *at >= MAX_TROUBLE) {
        text.truncate(end);
    }
    text
}
