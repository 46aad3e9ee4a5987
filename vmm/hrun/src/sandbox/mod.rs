//! The VM of a container: claims one, and takes it apart again.
//!
//! Today every VM is booted ([`boot`]). A template and a pool will be other ways to the same
//! [`Sandbox`].

mod boot;
mod process;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use agent_protocol::{Action, Event, Hello};
use rustix::event::{PollFd, PollFlags};
use vmm::{
    api::{Client, ClientError, Request, Status},
    config::VmConfig,
};

pub(crate) use boot::BootError;
pub(crate) use process::{Ended, SpawnError, VmProcess};

use crate::{
    agent::{Control, ControlError},
    parts::Parts,
    poll,
    signals::Signals,
    timeline::{By, Timeline},
};

/// How long the guest may take to end its processes and to write everything back. It answers as
/// soon as that is done, so this is for a guest that hangs.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the VMM may take to answer on its control socket.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// A VM whose agent is ready for work. Dropping it kills the VM.
#[derive(Debug)]
pub(crate) struct Sandbox {
    process: VmProcess,
    control: PathBuf,
    vsock: PathBuf,
    hello: Hello,
}

/// What claiming a VM needs besides the VM's own description.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) timeline: &'a Timeline,
    /// A VM that is not ready by then is given up.
    pub(crate) timeout: Duration,
}

/// Failure to claim a VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// The VMM could not be started.
    #[error("Failed to start the container's VM")]
    Spawn(#[from] SpawnError),
    /// The VM did not come up.
    #[error("Failed to start the container's VM")]
    Boot(#[from] BootError),
    /// Somebody has to be told about its process first, and that failed.
    #[error("Failed to write down the VM's process")]
    Announce(#[source] anyhow::Error),
}

impl Sandbox {
    /// Gives a VM with this description. `announce` gets its process as soon as there is one,
    /// so that it can be found should we die.
    pub(crate) fn claim(
        config: &VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: impl FnOnce(&VmProcess) -> anyhow::Result<()>,
    ) -> Result<Self, ClaimError> {
        let vsock = &config
            .vsock
            .as_ref()
            .expect("every container's VM has a vsock device")
            .socket;
        let deadline = Instant::now() + claim.timeout;
        let listener = boot::listen(vsock)?;
        let spawned_us = claim.timeline.now_us();
        let mut process = VmProcess::spawn(&claim.parts.vmm, config)?;
        claim.timeline.mark_at(By::Hrun, "VMM spawned", spawned_us);
        announce(&process).map_err(ClaimError::Announce)?;
        let hello = boot::wait_ready(&listener, &mut process, signals, deadline, claim.timeout)?;
        let sandbox = Self {
            process,
            control: config.control.clone(),
            vsock: vsock.clone(),
            hello,
        };
        sandbox.note_boot(claim.timeline, spawned_us);
        Ok(sandbox)
    }

    /// Where the guest's ports are reached.
    pub(crate) fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// The guest does not answer any more: if that is because the VM ended, says why it did.
    pub(crate) fn post_mortem(mut self) -> io::Result<Option<Ended>> {
        self.process.wait(Some(Instant::now() + CONTROL_TIMEOUT))
    }

    /// Ends the guest in an orderly way, so that all that was written is on the host's side, and
    /// then the VM, whatever the guest says.
    pub(crate) fn shutdown(mut self, control: &mut Control) -> io::Result<()> {
        // A guest that cannot be asked has nothing more to write; the VM ends either way.
        let _ = self.ask_to_shut_down(control);
        self.stop()
    }

    fn ask_to_shut_down(&mut self, control: &mut Control) -> Result<(), ControlError> {
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        let id = control.send(Action::Shutdown)?;
        loop {
            let mut fds = [
                PollFd::new(control, PollFlags::IN),
                PollFd::new(&self.process, PollFlags::IN),
            ];
            if !poll::wait(&mut fds, Some(deadline)).map_err(ControlError::Io)? {
                return Ok(());
            }
            if fds[0].revents().is_empty() {
                return Ok(());
            }
            let answered = |event: &Event| {
                matches!(event, Event::Done { request } | Event::Failed { request, .. }
                    if *request == id)
            };
            if control.receive()?.iter().any(answered) {
                return Ok(());
            }
        }
    }

    /// Ends the VM: over its control socket, which lets it write its profile, or by force.
    fn stop(&mut self) -> io::Result<()> {
        let asked = Client::connect(&self.control, CONTROL_TIMEOUT)
            .and_then(|mut client| client.request(Request::Stop));
        if asked.is_ok() {
            let deadline = Instant::now() + CONTROL_TIMEOUT;
            if self.process.wait(Some(deadline))?.is_some() {
                return Ok(());
            }
        }
        self.process.kill()
    }

    /// Puts the phases of the VMM and of the guest into the timeline.
    fn note_boot(&self, timeline: &Timeline, spawned_us: u64) {
        let ready_us = timeline.now_us();
        timeline.note_guest(&self.hello);
        let guest = |at_us: u64| ready_us.saturating_sub(self.hello.ready_us.saturating_sub(at_us));
        timeline.mark_at(By::Guest, "kernel started", guest(0));
        timeline.mark_at(By::Guest, "agent started", guest(self.hello.started_us));
        timeline.mark_at(By::Guest, "agent ready", ready_us);
        // The timeline is for people to look at: without it the container runs as well.
        let phases = self
            .status()
            .map_or_else(|_| Vec::new(), |status| status.timeline);
        for phase in phases {
            timeline.mark_at(By::Vmm, &phase.name, spawned_us + phase.at_us);
        }
    }

    fn status(&self) -> Result<Status, ClientError> {
        Client::connect(&self.control, CONTROL_TIMEOUT)?.request(Request::Status)
    }
}
