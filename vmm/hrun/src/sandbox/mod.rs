//! The VM of a container: claims one, and takes it apart again.
//!
//! There are five ways to the same [`Sandbox`]: a clone of a template for the container's image, a
//! clone that a pool keeps ready, a clone of a template for any container, a clone of a smaller
//! template that is made bigger, and a boot.

pub(crate) mod boot;
mod grow;
mod process;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use agent_protocol::Hello;
use clap::ValueEnum;
use vmm::{
    api::{Client, ClientError, Phase, Request, Status},
    channel,
    config::{Origin, VmConfig, VsockConfig},
    end::chain,
    exit::ExitReason,
};

pub(crate) use boot::BootError;
pub(crate) use process::{Ended, EventError, Handles, SpawnError, VmProcess};

use crate::{
    cgroup,
    clock::Moment,
    dirs::Dirs,
    exit,
    parts::Parts,
    pool::{
        PoolClass,
        client::{self, ClaimRefused},
    },
    signals::Signals,
    template::{Class, Got, Making, Rehearsal, Template, TemplateError, Templates},
    timeline::{By, Timeline},
    translate,
    turn::{Interrupted, Turn, Turns},
};

/// How long the VMM may take to answer on its control socket.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a template that turns out to be unusable is made anew.
const ATTEMPTS: u32 = 2;

/// A VM whose agent is ready for work. Dropping it kills the VM.
#[derive(Debug)]
pub(crate) struct Sandbox {
    process: VmProcess,
    control: PathBuf,
    vsock: PathBuf,
    cid: u32,
    moment: Moment,
    turn: Option<Turn>,
}

/// How a container comes to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Way {
    /// The fastest that is possible
    #[default]
    Auto,
    /// A clone of a template for the image, which is made if there is none
    Image,
    /// A clone that the pool keeps ready
    Pool,
    /// A clone of a template, which is made if there is none
    Template,
    /// A clone of a template for less memory or fewer CPUs, made bigger
    Grow,
    /// A boot
    Boot,
}

/// What claiming a VM needs besides the VM's own description.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) way: Way,
    pub(crate) class: Class,
    /// What a template for the container's image is made with, if it can use one: those have their
    /// root file system mounted already, and as the host's overlay.
    pub(crate) image: Option<&'a Rehearsal>,
    pub(crate) parts: &'a Parts,
    /// Where the pool is found.
    pub(crate) dirs: &'a Dirs,
    pub(crate) templates: &'a Templates,
    pub(crate) timeline: &'a Timeline,
    /// A VM that is not ready by then is given up.
    pub(crate) timeout: Duration,
    /// Whether somebody wants to see the guest boot.
    pub(crate) wants_boot: bool,
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
    /// A clone of a template did not come up.
    #[error("Failed to restore the container's VM from template {template}")]
    Restore {
        template: String,
        source: EventError,
    },
    /// The pool has no VM, and nothing else will do.
    #[error("Failed to take the container's VM from the pool")]
    Pool(#[source] NoPooledVm),
    /// No template can become what is asked for.
    #[error("There is no template that can be made bigger to {0}")]
    NotGrown(Class),
    /// There is no template, and none can be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// There is no random number for its address.
    #[error("Failed to read random numbers for the VM's address")]
    Random(#[source] io::Error),
    /// It cannot be moved into our control groups.
    #[error("Failed to start a thread that moves the pool's VM into our cgroups")]
    Adopt(#[source] io::Error),
    /// Somebody has to be told about its process first, and that failed.
    #[error("Failed to write down the VM's process")]
    Announce(#[source] anyhow::Error),
}

/// Why the container's VM does not come from the pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPooledVm {
    /// None was to be had.
    #[error(transparent)]
    Refused(#[from] ClaimRefused),
    /// The one that was handed over did not take its configuration.
    #[error("Failed to configure the pool's VM")]
    Configure(#[source] io::Error),
    /// The one that was handed over did not start.
    #[error("Failed to start the pool's VM")]
    Start(#[source] EventError),
}

/// A template is of no use.
enum CloneError {
    Unusable(Ended),
    Fatal(ClaimError),
}

impl<E: Into<ClaimError>> From<E> for CloneError {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

/// Who wants to know of a VM's process as soon as there is one, to find it should we die.
type Announce<'a> = &'a mut dyn FnMut(&VmProcess) -> anyhow::Result<()>;

/// How a template is come by.
type GetOrMake<'a> = &'a dyn Fn(Making<'_>) -> Result<(Template, Got), TemplateError>;

/// The template for any container.
fn for_any(claim: &Claim<'_>) -> impl Fn(Making<'_>) -> Result<(Template, Got), TemplateError> {
    |making| {
        claim
            .templates
            .get_or_make(claim.class, claim.parts, making)
    }
}

impl Sandbox {
    /// Waits for a turn and gives a VM; `config` describes it, given how it comes to be and its vsock
    /// address.
    pub(crate) fn claim(
        config: &dyn Fn(Origin, u32) -> VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: Announce<'_>,
    ) -> Result<Self, ClaimError> {
        let turn = Turns::of(&claim.dirs.state)
            .take(signals)
            .map_err(|Interrupted(signal)| BootError::Interrupted(signal))?;
        claim.timeline.mark("turn taken");
        let mut sandbox = Self::come_by(config, claim, signals, announce)?;
        sandbox.turn = Some(turn);
        Ok(sandbox)
    }

    fn come_by(
        config: &dyn Fn(Origin, u32) -> VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: Announce<'_>,
    ) -> Result<Self, ClaimError> {
        let cid = translate::random_cid().map_err(|error| ClaimError::Random(error.into()))?;
        let config = |origin| config(origin, cid);
        let boot = translate::boot(claim.parts);
        match claim.way {
            Way::Boot => claim.timeline.note_way("boot", "asked for"),
            Way::Auto if claim.wants_boot => claim.timeline.note_way("boot", "to show it"),
            Way::Template | Way::Image => {
                let image = claim.image.filter(|_| claim.way == Way::Image);
                let get = |making: Making<'_>| match image {
                    Some(image) => claim.templates.get_or_make_for_image(
                        claim.class,
                        claim.parts,
                        image,
                        making,
                    ),
                    None => for_any(claim)(making),
                };
                return Self::restore(&config, claim, signals, announce, &get, None);
            }
            Way::Grow => {
                let grown = Self::grown(&config, claim, signals, announce, "asked for")?;
                return grown.ok_or(ClaimError::NotGrown(claim.class));
            }
            Way::Auto | Way::Pool => {
                // A VM that knows the image is faster than one that is ready.
                if let Some(image) = claim.image
                    && let Some(sandbox) = Self::knowing(image, &config, claim, announce)?
                {
                    return Ok(sandbox);
                }
                let class = PoolClass::any(claim.class);
                let template = claim.templates.locate(claim.class, claim.parts, None)?;
                let refused = match Self::from_pool(&config, claim, class, &template, announce)? {
                    Ok(sandbox) => return Ok(sandbox),
                    Err(refused) if claim.way == Way::Pool => {
                        return Err(ClaimError::Pool(refused));
                    }
                    Err(refused) => chain(&refused),
                };
                // Making a template takes a boot. A pool makes the one that was missing meanwhile.
                if !template.dir.exists()
                    && let Some(sandbox) = Self::grown(&config, claim, signals, announce, &refused)?
                {
                    return Ok(sandbox);
                }
                let why = Some(refused.as_str());
                match Self::restore(&config, claim, signals, announce, &for_any(claim), why) {
                    Err(ClaimError::Template(error)) if !error.is_interrupt() => {
                        exit::print_error(&format!("hrun: {}; booting\n", chain(&error)));
                        claim.timeline.note_way("boot", "no template could be had");
                    }
                    claimed => return claimed,
                }
            }
        }
        Self::boot(&config(boot), claim, signals, announce)
    }

    fn boot(
        config: &VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: Announce<'_>,
    ) -> Result<Self, ClaimError> {
        let vsock = &vsock_of(config).socket;
        let deadline = Instant::now() + claim.timeout;
        let socket = boot::ReadySocket::listen(vsock)?;
        let spawned_us = claim.timeline.now_us();
        let mut process = VmProcess::spawn(&claim.parts.vmm, config)?;
        claim.timeline.mark_at(By::Hrun, "VMM spawned", spawned_us);
        announce(&process).map_err(ClaimError::Announce)?;
        let signals = Some(signals);
        let hello = boot::wait_ready(&socket, &mut process, signals, deadline, claim.timeout)?;
        let moment = Moment::now(hello.ready_us * 1000);
        let sandbox = Self::new(process, config, moment);
        sandbox.note_boot(&hello, claim.timeline, spawned_us);
        Ok(sandbox)
    }

    /// A clone that waits in the pool, made from the template that we would use ourselves; or why
    /// there is none.
    fn from_pool(
        config: &dyn Fn(Origin) -> VmConfig,
        claim: &Claim<'_>,
        class: PoolClass,
        template: &Template,
        announce: Announce<'_>,
    ) -> Result<Result<Self, NoPooledVm>, ClaimError> {
        let (mut process, of) = match client::claim(claim.dirs, class, &template.key) {
            Ok(claimed) => claimed.into_process(),
            Err(refused) => return Ok(Err(refused.into())),
        };
        claim.timeline.mark("VM claimed");
        announce(&process).map_err(ClaimError::Announce)?;
        let config = config(Origin::Restore(of.template));
        let configured_us = claim.timeline.now_us();
        let running = process
            .configure(&config)
            .map_err(NoPooledVm::Configure)
            .and_then(|()| {
                let event = process.next_event(Instant::now() + claim.timeout);
                event.map_err(NoPooledVm::Start)
            });
        let (phases, clocks_set_ns) = match running {
            Ok(channel::Event::Running {
                phases,
                clocks_set_ns,
            }) => (phases, clocks_set_ns),
            Ok(_) => return Ok(Err(NoPooledVm::Start(EventError::Malformed))),
            Err(unusable) => return Ok(Err(unusable)),
        };
        // While the guest starts: the kernel may take milliseconds for it.
        let pid = process.pid();
        let adoption = move || {
            if let Err(error) = cgroup::adopt(pid) {
                exit::print_error(&format!("hrun: {}\n", chain(&error)));
            }
        };
        let adopting = thread::Builder::new().name("cgroup".into()).spawn(adoption);
        adopting.map_err(ClaimError::Adopt)?;
        let why = match class.image {
            None => "it had one ready",
            Some(_) => "it had one ready for the image",
        };
        claim.timeline.note_way("pool", why);
        // It counts from its own start, long ago: what was before is not of this run.
        let waited_us = phases
            .iter()
            .find(|phase| phase.name == "configured")
            .map_or(0, |phase| phase.at_us);
        for phase in phases.iter().filter(|phase| phase.at_us >= waited_us) {
            let at_us = configured_us + (phase.at_us - waited_us);
            claim.timeline.mark_at(By::Vmm, &phase.name, at_us);
        }
        let moment = Moment::of_clone(of.monotonic_ns, clocks_set_ns);
        Ok(Ok(Self::new(process, &config, moment)))
    }

    /// A clone of the template for the container's image, out of the pool or restored here, if
    /// there is one that can be used.
    fn knowing(
        image: &Rehearsal,
        config: &dyn Fn(Origin) -> VmConfig,
        claim: &Claim<'_>,
        announce: Announce<'_>,
    ) -> Result<Option<Self>, ClaimError> {
        let known = Some(image.image());
        let template = claim.templates.locate(claim.class, claim.parts, known)?;
        match claim.templates.is_usable(&template) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(TemplateError::Snapshot(damage)) => {
                exit::print_error(&format!("hrun: {damage}; removed that template\n"));
                claim.templates.remove(&template)?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(class) = image.pool_class()
            && let Ok(sandbox) = Self::from_pool(config, claim, class, &template, announce)?
        {
            return Ok(Some(sandbox));
        }
        if claim.way == Way::Pool {
            return Ok(None);
        }
        claim
            .timeline
            .note_way("template", "there is one for the image");
        claim.timeline.mark("template found");
        let config = config(Origin::Restore(template.dir.clone()));
        match Self::clone_of(&template, &config, claim, announce) {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(CloneError::Unusable(ended)) => {
                exit::print_error(&format!(
                    "hrun: {ended}; removed the template for the image\n"
                ));
                claim.templates.remove(&template)?;
                Ok(None)
            }
            Err(CloneError::Fatal(error)) => Err(error),
        }
    }

    /// A clone of the template, which is made if it is not there, and made anew if it is not
    /// usable.
    fn restore(
        config: &dyn Fn(Origin) -> VmConfig,
        claim: &Claim<'_>,
        signals: &mut Signals,
        announce: Announce<'_>,
        get_or_make: GetOrMake<'_>,
        no_pool: Option<&str>,
    ) -> Result<Self, ClaimError> {
        let mut attempt = 1;
        loop {
            let making = Making {
                signals: Some(signals),
                timeout: claim.timeout,
                begins: &|| claim.timeline.mark("template missing"),
            };
            let (template, got) = get_or_make(making)?;
            let why = match got {
                Got::Found => "there is one",
                Got::Made { damage: None } => "made, as there was none",
                Got::Made {
                    damage: Some(damage),
                } => {
                    exit::print_error(&format!("hrun: {damage}; made a new template\n"));
                    "made, as it was damaged"
                }
            };
            let why = match no_pool {
                Some(no_pool) => format!("{why}; {no_pool}"),
                None => why.into(),
            };
            claim.timeline.note_way("template", why);
            claim.timeline.mark("template found");
            let config = config(Origin::Restore(template.dir.clone()));
            match Self::clone_of(&template, &config, claim, announce) {
                Ok(sandbox) => return Ok(sandbox),
                Err(CloneError::Unusable(ended)) if attempt < ATTEMPTS => {
                    exit::print_error(&format!("hrun: {ended}; making a new template\n"));
                    claim.templates.remove(&template)?;
                }
                Err(CloneError::Unusable(ended)) => {
                    return Err(ClaimError::Restore {
                        template: template.key,
                        source: EventError::Ended(ended),
                    });
                }
                Err(CloneError::Fatal(error)) => return Err(error),
            }
            attempt += 1;
        }
    }

    fn clone_of(
        template: &Template,
        config: &VmConfig,
        claim: &Claim<'_>,
        announce: Announce<'_>,
    ) -> Result<Self, CloneError> {
        let spawned_us = claim.timeline.now_us();
        let mut process = VmProcess::spawn(&claim.parts.vmm, config).map_err(ClaimError::Spawn)?;
        claim.timeline.mark_at(By::Hrun, "VMM spawned", spawned_us);
        announce(&process).map_err(ClaimError::Announce)?;
        match process.next_event(Instant::now() + claim.timeout) {
            Ok(channel::Event::Running {
                phases,
                clocks_set_ns,
            }) => {
                note_phases(&phases, claim.timeline, spawned_us);
                let moment = template.moment(clocks_set_ns);
                Ok(Self::new(process, config, moment))
            }
            Ok(channel::Event::Loaded | channel::Event::Ended { .. }) => {
                Err(restore_error(template, EventError::Malformed).into())
            }
            Err(EventError::Ended(ended)) if ended.exit == Some(ExitReason::BadSnapshot) => {
                Err(CloneError::Unusable(ended))
            }
            Err(error) => Err(restore_error(template, error).into()),
        }
    }

    fn new(process: VmProcess, config: &VmConfig, moment: Moment) -> Self {
        Self {
            process,
            control: config.control.clone(),
            vsock: vsock_of(config).socket.clone(),
            cid: vsock_of(config).cid,
            moment,
            turn: None,
        }
    }

    /// Its turn: when that is dropped, another container starts.
    pub(crate) fn turn(&mut self) -> Option<Turn> {
        self.turn.take()
    }

    /// A moment of the guest's life.
    pub(crate) fn moment(&self) -> Moment {
        self.moment
    }

    /// Its context identifier.
    pub(crate) fn cid(&self) -> u32 {
        self.cid
    }

    /// Where the guest's ports are reached.
    pub(crate) fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// The guest does not answer any more: if that is because the VM ended, says why it did.
    pub(crate) fn post_mortem(mut self) -> io::Result<Option<Ended>> {
        self.process.wait(Some(Instant::now() + CONTROL_TIMEOUT))
    }

    /// Begins to end the VM, without asking the guest: when the last process of a container is
    /// gone, all that it wrote is on the host's side. Writing goes through to the host, and what
    /// was written by way of memory does when the memory is unmapped. It is gone when this is
    /// dropped: the kernel takes tens of milliseconds, in which other things can be done.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.process.begin_kill()
    }

    /// Ends the VM over its control socket, which lets it write its profile, or by force.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
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
    fn note_boot(&self, hello: &Hello, timeline: &Timeline, spawned_us: u64) {
        let ready_us = timeline.now_us();
        let guest = |at_us: u64| ready_us.saturating_sub(hello.ready_us.saturating_sub(at_us));
        timeline.mark_at(By::Guest, "kernel started", guest(0));
        timeline.mark_at(By::Guest, "agent started", guest(hello.started_us));
        timeline.mark_at(By::Guest, "agent ready", ready_us);
        // The timeline is for people to look at: without it the container runs as well.
        let phases = self
            .status()
            .map_or_else(|_| Vec::new(), |status| status.timeline);
        note_phases(&phases, timeline, spawned_us);
    }

    fn status(&self) -> Result<Status, ClientError> {
        Client::connect(&self.control, CONTROL_TIMEOUT)?.request(Request::Status)
    }
}

/// Readable once the VM has ended.
impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

fn restore_error(template: &Template, source: EventError) -> ClaimError {
    ClaimError::Restore {
        template: template.key.clone(),
        source,
    }
}

fn note_phases(phases: &[Phase], timeline: &Timeline, spawned_us: u64) {
    for phase in phases {
        timeline.mark_at(By::Vmm, &phase.name, spawned_us + phase.at_us);
    }
}

fn vsock_of(config: &VmConfig) -> &VsockConfig {
    let vsock = config.vsock.as_ref();
    vsock.expect("every container's VM has a vsock device")
}
