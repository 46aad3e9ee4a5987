//! The thread of an active device: an epoll loop over the backend's descriptors.

use std::{
    io,
    thread::{self, JoinHandle},
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ActivateError;

/// Registered by the worker itself: backends choose other numbers for their events.
const STOP: u32 = u32::MAX;

/// A thread that runs a backend until it is stopped. Dropping it stops it.
pub struct Worker<B> {
    stop: EventFd,
    thread: Option<JoinHandle<Option<B>>>,
}

struct Stoppable<B> {
    backend: B,
    stop: EventFd,
    stopped: bool,
}

impl<B: MutEventSubscriber> MutEventSubscriber for Stoppable<B> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == STOP {
            self.stopped = true;
        } else if !self.stopped {
            self.backend.process(events, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Cannot fail: the descriptor is open and new to this epoll instance.
        if ops
            .add(Events::with_data(&self.stop, STOP, EventSet::IN))
            .is_err()
        {
            self.stopped = true;
            return;
        }
        self.backend.init(ops);
    }
}

impl<B: MutEventSubscriber + Send + 'static> Worker<B> {
    /// Starts a thread called `name` (at most 15 bytes are visible) that runs `backend`.
    ///
    /// # Errors
    ///
    /// The thread, its epoll instance or its stop event could not be made.
    pub fn spawn(name: &str, backend: B) -> Result<Self, ActivateError> {
        let failed = |source| ActivateError::Worker {
            name: name.into(),
            source,
        };
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let mut manager = EventManager::<Stoppable<B>>::new()
            .map_err(|err| failed(io::Error::other(err.to_string())))?;
        let subscriber = Stoppable {
            backend,
            stop: stop.try_clone().map_err(failed)?,
            stopped: false,
        };
        let run = move || {
            let id = manager.add_subscriber(subscriber);
            loop {
                if manager.subscriber_mut(id).ok()?.stopped {
                    return manager
                        .remove_subscriber(id)
                        .ok()
                        .map(|stopped| stopped.backend);
                }
                // Interrupted waits are taken up again; a broken epoll instance ends the device.
                if let Err(event_manager::Error::Epoll(err)) = manager.run()
                    && err.errno() != libc::EINTR
                {
                    log::error!("Device worker lost its epoll instance: {err}");
                    return None;
                }
            }
        };
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(run)
            .map_err(failed)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl<B> Worker<B> {
    /// Stops the thread and returns the backend as it was at that moment; `None` if it died.
    #[must_use]
    pub fn stop(mut self) -> Option<B> {
        self.join()
    }

    fn join(&mut self) -> Option<B> {
        let thread = self.thread.take()?;
        // An eventfd write fails only when its counter would overflow, and then it is readable.
        let _ = self.stop.write(1);
        thread.join().ok().flatten()
    }
}

impl<B> Drop for Worker<B> {
    fn drop(&mut self) {
        drop(self.join());
    }
}
