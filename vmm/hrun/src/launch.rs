//! The life of a container's first process, from a container that was made to one that has ended:
//! what `hrun run` does in the foreground and the process of the background does for `hrun run -d`
//! and `hrun start`.

use std::{os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use agent_protocol::{ExitStatus, Stdio};
use anyhow::{Context, anyhow};
use image::Image;

use crate::{
    agent::Control,
    container::{Config, Container},
    dirs::Dirs,
    exit,
    options::signal,
    parts::Parts,
    process::ProcessIdentity,
    relay::Output,
    rootfs::Rootfs,
    sandbox::{Claim, Sandbox, Way},
    session::{self, SessionError, Start},
    signals::Signals,
    spec::RunOptions,
    template::{Rehearsal, Templates},
    terminal,
    timeline::Timeline,
    translate::{self, Places, Ready},
    volumes::ReadyVolume,
};

/// How long a VM may take to become ready unless `HRUN_BOOT_TIMEOUT` says otherwise: a busy
/// machine that interprets the guest's kernel is slow.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// The VM ended under the container.
#[derive(Debug, thiserror::Error)]
#[error("The container's VM ended: {0}")]
struct VmLost(crate::sandbox::Ended);

/// What a start needs besides the container.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) dirs: &'a Dirs,
    pub(crate) config: &'a Config,
    pub(crate) image: &'a Image,
    /// The image's disk, if the root file system comes from one.
    pub(crate) disk: Option<PathBuf>,
    pub(crate) parts: &'a Parts,
    pub(crate) way: Way,
    pub(crate) console: Option<PathBuf>,
    pub(crate) profile: Option<PathBuf>,
    /// Whether our standard input goes to the process.
    pub(crate) input: bool,
    pub(crate) output: Output,
    /// Whether signals sent to us are for the process.
    pub(crate) proxy_signals: bool,
    pub(crate) timeline: &'a Arc<Timeline>,
}

/// A process that has come to its end.
#[derive(Debug)]
pub(crate) struct Run {
    /// The status to be written down, if anything ran.
    pub(crate) code: Option<u8>,
    /// hrun's own.
    pub(crate) outcome: anyhow::Result<u8>,
    /// The VM of a container that vanishes: to be taken apart when nobody waits any more.
    sandbox: Option<Sandbox>,
}

impl Launch<'_> {
    /// Gives the container its VM, starts its process and stays with it until all is over.
    /// `started` is called once it runs. The status is the process's own.
    pub(crate) fn run(
        &self,
        mut container: Container,
        signals: &mut Signals,
        started: &mut dyn FnMut(),
    ) -> anyhow::Result<u8> {
        let Run {
            code,
            outcome,
            sandbox,
        } = self.once(&mut container, signals, started)?;
        match code {
            Some(code) => container.settle(code)?,
            // Nothing has run: nothing stays.
            None => drop(container),
        }
        self.timeline.mark("container settled");
        drop(sandbox);
        self.timeline.mark("VM gone");
        outcome
    }

    /// The same, and leaves it to the caller what becomes of the container then. An error means that
    /// nothing has run.
    pub(crate) fn once(
        &self,
        container: &mut Container,
        signals: &mut Signals,
        started: &mut dyn FnMut(),
    ) -> anyhow::Result<Run> {
        let (options, timeline) = (&self.config.options, self.timeline);
        let layers = self.image.layers();
        let top = layers.first().context("The image has no layers")?;
        let writable = container.layer(top)?;
        let volumes = options
            .volumes
            .iter()
            .map(|volume| ReadyVolume::prepare(volume, self.dirs))
            .collect::<Result<Vec<_>, _>>()?;
        timeline.mark("container directory made");

        let hostname = self.config.hostname(container.record());
        let name = container.record().name.clone();
        let machine_id = container.record().id.machine_id().to_owned();
        let ready = Ready {
            name: &name,
            hostname: &hostname,
            machine_id: &machine_id,
            options,
            process: &self.config.process,
            layers,
            disk: self.disk.as_deref(),
            writable: &writable,
            volumes: &volumes,
        };
        let places = Places {
            control: container.control_socket(),
            vsock: container.vsock_socket(),
            console: self.console.clone(),
            profile: self.profile.clone(),
        };
        let vm = |origin, cid| translate::vm_config(&ready, self.parts, origin, cid, &places);
        vm(translate::boot(self.parts), translate::FIRST_CID).validate()?;

        let templates = Templates::open(self.dirs)?;
        let rehearsal = Rehearsal::new(&options.image, self.image, options.class(), &[])?;
        let claim = Claim {
            way: self.way,
            class: options.class(),
            image: (options.rootfs == Rootfs::Host).then_some(&rehearsal),
            parts: self.parts,
            dirs: self.dirs,
            templates: &templates,
            timeline,
            timeout: boot_timeout()?,
            wants_boot: self.console.is_some(),
        };
        let mut sandbox = Sandbox::claim(&vm, &claim, signals, &mut |vmm| {
            Ok(container.running(ProcessIdentity::of_fd(vmm.as_fd())?)?)
        })?;

        let stdio = stdio(options);
        let start = Start {
            actions: translate::start_actions(&ready, stdio, sandbox.moment())
                .context("Failed to read random numbers for the guest")?,
            process: translate::PROCESS,
            cid: Some(sandbox.cid()),
            stdio,
            input: self.input,
            output: self.output.clone(),
            proxy_signals: self.proxy_signals,
        };
        let mut turn = sandbox.turn();
        let mut started = || {
            drop(turn.take());
            container.record().tell("start", &[]);
            started();
        };
        let outcome = session::run(sandbox.vsock(), start, signals, timeline, &mut started);
        let mut sandbox = Some(sandbox);
        let (code, outcome) = finish(&mut sandbox, outcome, self.profile.is_some());
        let (code, outcome) = match code {
            // Whoever ended the VM did it in the place of a signal that no guest can refuse.
            Some(_) if outcome.is_err() && container.was_killed() => {
                let status = ExitStatus::Signaled(signal::KILL).code();
                (Some(status), Ok(status))
            }
            _ => (code, outcome),
        };
        if !container.record().auto_remove {
            // It may be started again at once, and then no other VM must have its files.
            drop(sandbox.take());
        }
        Ok(Run {
            code,
            outcome,
            sandbox,
        })
    }
}

/// Begins to take the VM apart. Gives the status to be written down, if anything ran, and hrun's
/// own.
fn finish(
    sandbox: &mut Option<Sandbox>,
    outcome: Result<(Control, ExitStatus), SessionError>,
    wants_profile: bool,
) -> (Option<u8>, anyhow::Result<u8>) {
    match outcome {
        Ok((_, status)) => {
            let code = status.code();
            let ended = sandbox.as_mut().map_or(Ok(()), |sandbox| {
                if wants_profile {
                    sandbox.stop()
                } else {
                    sandbox.end()
                }
            });
            let ended = ended.context("Failed to end the container's VM");
            (Some(code), ended.map(|()| code))
        }
        Err(error @ (SessionError::Connect(_) | SessionError::Control(_))) => {
            let started = matches!(error, SessionError::Control(_));
            let error = match sandbox.take().map(Sandbox::post_mortem) {
                Some(Ok(Some(ended))) => anyhow::Error::new(VmLost(ended)),
                _ => anyhow::Error::new(error),
            };
            (started.then_some(exit::HRUN_FAILED), Err(error))
        }
        Err(error) => {
            // The process may go on: the VM ends with its owner, right here.
            drop(sandbox.take());
            let error = anyhow::Error::new(error);
            let code = exit::status_of(&error, true);
            ((code != exit::HRUN_FAILED).then_some(code), Err(error))
        }
    }
}

fn stdio(options: &RunOptions) -> Stdio {
    if options.tty {
        Stdio::Terminal(terminal::window_size())
    } else {
        Stdio::Pipes {
            stdin: options.interactive,
        }
    }
}

/// How long a VM may take to become ready.
pub(crate) fn boot_timeout() -> anyhow::Result<Duration> {
    match std::env::var("HRUN_BOOT_TIMEOUT") {
        Err(_) => Ok(BOOT_TIMEOUT),
        Ok(text) => text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| anyhow!("HRUN_BOOT_TIMEOUT is {text:?}, which is no number of seconds")),
    }
}
