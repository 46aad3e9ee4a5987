//! A process in the guest from its start to its end: connects its streams, starts it, passes
//! signals and window sizes on, and waits for its exit status and the last of its output.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_protocol::{
    Action, Event, ExitStatus, Failure, Open, ProcessId, Stdio, Stream, WindowSize,
};
use rustix::event::{PollFd, PollFlags};

use crate::{
    agent::{ConnectError, Control, ControlError, connect},
    identity::{Identity, NotPersonal},
    poll,
    relay::{Output, Relay, RelayError, Streams},
    signals::{self, Signals},
    terminal::{self, RawTerminal},
    timeline::Timeline,
};

/// How long output may still be on its way when the guest is gone without a word.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A guest that has not answered for so long when one more signal comes hangs. A busy machine that
/// interprets the guest's kernel needs seconds.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);

/// What is started, and how.
#[derive(Debug)]
pub(crate) struct Start {
    /// All that has to be done, the last of it being the start of `process`.
    pub(crate) actions: Vec<Action>,
    pub(crate) process: ProcessId,
    /// The context identifier that the VM was given, if it is to become what it is now.
    pub(crate) cid: Option<u32>,
    pub(crate) stdio: Stdio,
    /// Whether our standard input goes to the process.
    pub(crate) input: bool,
    pub(crate) output: Output,
    /// Whether signals sent to us are for the process.
    pub(crate) proxy_signals: bool,
}

/// A process that did not come to its own end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// Its streams could not be connected.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent cannot be talked to.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent could not set the container up or start the process.
    #[error("{message}")]
    Agent { kind: Failure, message: String },
    /// It ran and its output did not get where it should.
    #[error(transparent)]
    Output(#[from] RelayError),
    /// The terminal cannot be made raw.
    #[error("Failed to put the terminal into raw mode")]
    Terminal(#[source] io::Error),
    /// The VM could be taken for another one: nothing must run in it.
    #[error(transparent)]
    NotPersonal(#[from] NotPersonal),
    /// hrun itself got stuck.
    #[error("Failed to wait for the container")]
    Wait(#[source] io::Error),
    /// The user asked not to pass signals on, and one came.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
    /// The user sends signals and the guest does not answer.
    #[error("The VM did not answer for seconds, so signal {0} ended it")]
    Hung(i32),
}

/// Connects a process's streams, starts it and stays with it until its end; `started` is called
/// once it runs.
pub(crate) fn run(
    vsock: &Path,
    start: Start,
    signals: &mut Signals,
    timeline: &Arc<Timeline>,
    started: &mut dyn FnMut(),
) -> Result<(Control, ExitStatus), SessionError> {
    let streams = connect_streams(vsock, &start)?;
    let mut progress = Progress {
        process: start.process,
        start_request: u32::try_from(start.actions.len())
            .expect("a start has a handful of actions")
            .saturating_sub(1),
        steps: start.actions.iter().map(step).collect(),
        identity: start.cid.map(Identity::new),
        status: None,
        started,
    };
    let mut control = Control::open(vsock, start.actions)?;
    let _raw = if start.input && matches!(start.stdio, Stdio::Terminal(_)) {
        Some(RawTerminal::enter().map_err(SessionError::Terminal)?)
    } else {
        None
    };
    let relay = Relay::start(streams, &start.output, timeline).map_err(SessionError::Wait)?;
    let proxy = Proxy {
        process: start.process,
        signals: start.proxy_signals,
        size: match start.stdio {
            Stdio::Terminal(size) => Some(size),
            Stdio::Pipes { .. } => None,
        },
        unanswered: None,
    };
    let status = attend(
        &mut control,
        &mut progress,
        proxy,
        &relay,
        signals,
        timeline,
    )?;
    match relay.failure() {
        Some(error) => Err(error.into()),
        None => Ok((control, status)),
    }
}

/// Has everything done that comes before a process, and waits until it is; `cid` as in [`Start`].
pub(crate) fn prepare(
    vsock: &Path,
    actions: Vec<Action>,
    cid: Option<u32>,
    signals: &mut Signals,
    timeline: &Timeline,
) -> Result<(), SessionError> {
    let steps: Vec<_> = actions.iter().map(step).collect();
    let last = u32::try_from(actions.len()).expect("there is a handful of actions");
    let mut progress = Progress {
        process: ProcessId(u32::MAX),
        start_request: last.saturating_sub(1),
        steps,
        identity: cid.map(Identity::new),
        status: None,
        started: &mut || {},
    };
    let mut control = Control::open(vsock, actions)?;
    let mut answered = 0;
    while answered < last {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&control, PollFlags::IN),
        ];
        poll::wait(&mut fds, None).map_err(SessionError::Wait)?;
        let came = !fds[1].revents().is_empty();
        if let Some(signal) = signals.ending() {
            return Err(SessionError::Interrupted(signal));
        }
        if !came {
            continue;
        }
        for event in control.receive()? {
            let is_answer = matches!(event, Event::Done { .. } | Event::Personalized { .. });
            progress.handle(event, timeline)?;
            answered += u32::from(is_answer);
        }
    }
    Ok(())
}

/// Opens the connections of a process's streams; the agent pairs them with the process.
fn connect_streams(vsock: &Path, start: &Start) -> Result<Streams, ConnectError> {
    let stream = |stream| {
        let open = Open::Stream {
            process: start.process,
            stream,
        };
        connect(vsock, &open, &[])
    };
    Ok(match start.stdio {
        Stdio::Terminal(_) => Streams::Terminal {
            stream: stream(Stream::Terminal)?,
            input: start.input,
        },
        Stdio::Pipes { stdin } => Streams::Pipes {
            stdin: stdin.then(|| stream(Stream::Stdin)).transpose()?,
            stdout: stream(Stream::Stdout)?,
            stderr: stream(Stream::Stderr)?,
        },
    })
}

/// What a request does, for the timeline.
fn step(action: &Action) -> &'static str {
    match action {
        Action::Personalize(_) => "clock and randomness set",
        Action::Create(_) => "container created",
        Action::Start(_) => "process started",
        Action::Signal { .. }
        | Action::Resize { .. }
        | Action::Shutdown
        | Action::Grow(_)
        | Action::Freeze { .. }
        | Action::Limit { .. }
        | Action::Remove { .. }
        | Action::Forget { .. }
        | Action::Prepare { .. }
        | Action::Transfer(_) => "request done",
    }
}

/// How far the process has come.
struct Progress<'a> {
    process: ProcessId,
    start_request: u32,
    steps: Vec<&'static str>,
    identity: Option<Identity>,
    status: Option<ExitStatus>,
    started: &'a mut dyn FnMut(),
}

impl Progress<'_> {
    fn handle(&mut self, event: Event, timeline: &Timeline) -> Result<(), SessionError> {
        match event {
            Event::Done { request } => {
                self.mark(request, timeline);
                if request == self.start_request {
                    (self.started)();
                }
            }
            Event::Personalized {
                request,
                cid,
                realtime_ns,
            } => {
                if let Some(identity) = &self.identity {
                    identity.verify(cid, realtime_ns)?;
                }
                self.mark(request, timeline);
            }
            Event::Failed {
                request,
                kind,
                message,
            } if request <= self.start_request => {
                return Err(SessionError::Agent { kind, message });
            }
            // A signal or a window size came too late: nobody minds.
            Event::Failed { .. } => {}
            Event::Exited { process, status } if process == self.process => {
                timeline.mark("process exited");
                self.status = Some(status);
            }
            Event::Exited { .. } | Event::Grown { .. } => {}
        }
        Ok(())
    }

    fn mark(&self, request: u32, timeline: &Timeline) {
        let step = usize::try_from(request)
            .ok()
            .and_then(|i| self.steps.get(i));
        if let Some(step) = step {
            timeline.mark(step);
        }
    }
}

/// Passes on to the process what comes to us.
struct Proxy {
    process: ProcessId,
    signals: bool,
    /// The size of its terminal, if it has one.
    size: Option<WindowSize>,
    /// Since when the agent owes an answer.
    unanswered: Option<Instant>,
}

impl Proxy {
    /// The agent said something, whatever it was.
    fn answered(&mut self) {
        self.unanswered = None;
    }

    fn pass(&mut self, signal: i32, control: &mut Control) -> Result<(), SessionError> {
        let action = match &mut self.size {
            Some(size) if signals::is_resize(signal) => {
                let new = terminal::window_size();
                if std::mem::replace(size, new) == new {
                    return Ok(());
                }
                Action::Resize {
                    process: self.process,
                    size: new,
                }
            }
            _ if !self.signals && signals::is_ending(signal) => {
                return Err(SessionError::Interrupted(signal));
            }
            _ if !self.signals => return Ok(()),
            _ if signals::is_ending(signal)
                && self
                    .unanswered
                    .is_some_and(|since| since.elapsed() >= HANG_TIMEOUT) =>
            {
                return Err(SessionError::Hung(signal));
            }
            _ => Action::Signal {
                process: self.process,
                signal,
                all: false,
            },
        };
        match control.send(action) {
            Ok(_) => {
                self.unanswered.get_or_insert_with(Instant::now);
                Ok(())
            }
            // Its last events may still be there to be read, and reading finds the end too.
            Err(ControlError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Stays with the process until its status is known and all its output is written.
fn attend(
    control: &mut Control,
    progress: &mut Progress<'_>,
    mut proxy: Proxy,
    relay: &Relay,
    signals: &mut Signals,
    timeline: &Timeline,
) -> Result<ExitStatus, SessionError> {
    let mut output_done = false;
    loop {
        if let (Some(status), true) = (progress.status, output_done) {
            return Ok(status);
        }
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        // What has come to its end stays ready for ever: it is not waited for again.
        if progress.status.is_none() {
            fds.push(PollFd::new(control, PollFlags::IN));
        }
        if !output_done {
            fds.push(PollFd::new(relay, PollFlags::IN));
        }
        poll::wait(&mut fds, None).map_err(SessionError::Wait)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter().skip(1);
        let mut receive = progress.status.is_none() && ready.next() == Some(true);
        output_done |= !output_done && ready.next() == Some(true);
        while let Some(signal) = signals.next() {
            if let Some(status) = progress.status {
                // The process is gone, somebody does not take its output, and somebody is tired
                // of waiting for that.
                if signals::is_ending(signal) {
                    return Ok(status);
                }
            } else {
                proxy.pass(signal, control)?;
            }
        }
        if std::mem::take(&mut receive) {
            let events = match control.receive() {
                Ok(events) => events,
                Err(error) => {
                    drain(relay);
                    return Err(error.into());
                }
            };
            if !events.is_empty() {
                proxy.answered();
            }
            if let Some(hello) = control.hello() {
                timeline.note_guest(hello);
            }
            for event in events {
                progress.handle(event, timeline)?;
            }
        }
    }
}

/// The guest is gone: lets what it still said get out.
fn drain(relay: &Relay) {
    let deadline = Some(Instant::now() + DRAIN_TIMEOUT);
    // If this fails there is an error already that says more.
    let _ = poll::wait(&mut [PollFd::new(relay, PollFlags::IN)], deadline);
}

#[cfg(test)]
mod tests;
