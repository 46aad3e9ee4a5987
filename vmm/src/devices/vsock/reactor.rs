//! The epoll instance of the muxer and its timer: says which socket has something, and when a
//! deadline may be past.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};

/// Grain of the deadlines.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Most events served at a time.
const MAX_EVENTS: usize = 64;

/// Edge-triggered, so that a socket whose data the guest cannot take yet does not wake us.
const READ_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Watches sockets, each under a number of its own.
pub(super) struct Reactor {
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_id: u64,
    timer_armed: bool,
}

impl Reactor {
    /// A reactor that reports its timer as `timer_id`.
    pub(super) fn new(timer_id: u64) -> io::Result<Self> {
        let reactor = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            timer_id,
            timer_armed: false,
        };
        reactor.watch(timer_id, &reactor.timer)?;
        Ok(reactor)
    }

    /// Reports what there is to read, and ends. Closing a socket ends the watch.
    pub(super) fn watch(&self, id: u64, socket: impl AsFd) -> io::Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(id), READ_EVENTS)?;
        Ok(())
    }

    /// Also reports, or no longer, when there is room to write.
    pub(super) fn watch_room(&self, id: u64, socket: impl AsFd, watch: bool) -> io::Result<()> {
        let mut events = READ_EVENTS;
        events.set(EventFlags::OUT, watch);
        epoll::modify(&self.epoll, socket, EventData::new_u64(id), events)?;
        Ok(())
    }

    /// Has the timer report once, a tick from now or sooner.
    pub(super) fn arm_timer(&mut self) {
        if self.timer_armed {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: TICK,
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => self.timer_armed = true,
            Err(err) => log::warn!("Failed to set the vsock timer: {err}"),
        }
    }

    /// What happened, without waiting. More may be left for the next time.
    pub(super) fn poll(&mut self) -> io::Result<Vec<(u64, EventFlags)>> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let now = Timespec::default();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        let events: Vec<(u64, EventFlags)> = events
            .into_iter()
            .map(|Event { flags, data }| (data.u64(), flags))
            .collect();
        if events.iter().any(|&(id, _)| id == self.timer_id) {
            self.timer_armed = false;
        }
        Ok(events)
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
