//! How a template for an image is made: a clone of the template for its class gets the image as its
//! root file system and runs a command in it. What the guest has read and looked up by then,
//! it knows in every clone.

use std::{io, path::Path, thread, time::Instant};

use agent_protocol::{Action, Event, Failure, Open, Stdio, Stream};
use image::Image;
use rustix::event::{PollFd, PollFlags};
use vmm::{api::ClientError, channel, config::Origin};

use super::{
    About, Class, ForImage, MakeError, Making, Template, Templates,
    make::{self, Scratch},
};
use crate::{
    agent::{ConnectError, Control, ControlError, connect},
    clock::Moment,
    container::{LayerError, WritableLayer},
    parts::Parts,
    poll,
    pool::{ImageId, PoolClass},
    sandbox::{EventError, VmProcess},
    signals::Signals,
    spec::{Process, RunOptions, SpecError},
    translate::{self, Places, Ready},
};

/// How often the command runs: a page that is used for the second time is moved to the list of
/// those that are worth keeping, and that is to be done by then.
const REHEARSALS: u32 = 3;

/// What runs in a VM before that is saved for an image.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    image: ForImage,
    id: Option<ImageId>,
    options: RunOptions,
    process: Process,
}

impl Rehearsal {
    /// A command in an image called `name`, in VMs of this class; `true` if none is named. The
    /// image's entrypoint is left out: it may be a server, which does not end.
    ///
    /// # Errors
    ///
    /// The image's configuration is not one that a container can have.
    pub(crate) fn new(
        name: &str,
        image: &Image,
        class: Class,
        command: &[String],
    ) -> Result<Self, SpecError> {
        let command = match command {
            [] => vec!["true".into()],
            words => words.to_vec(),
        };
        let options = RunOptions {
            image: name.into(),
            command,
            entrypoint: Some(String::new()),
            memory: class.memory,
            cpus: class.cpus,
            ..RunOptions::default()
        };
        Ok(Self {
            image: ForImage::of(name, image),
            id: ImageId::of(&image.id),
            process: Process::resolve(&options, image.config.config().as_ref())?,
            options,
        })
    }

    /// What VMs of a pool are that know the image.
    pub(crate) fn pool_class(&self) -> Option<PoolClass> {
        let image = Some(self.id?);
        let vm = self.options.class();
        Some(PoolClass { vm, image })
    }

    /// What it is for.
    pub(crate) fn image(&self) -> &ForImage {
        &self.image
    }
}

/// Failure to rehearse a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalError {
    /// The container's directories cannot be made.
    #[error("Failed to make a writable layer for it")]
    Layer(#[from] LayerError),
    /// There are no random numbers.
    #[error("Failed to read random numbers for its VM")]
    Random(#[source] io::Error),
    /// The clone did not come up.
    #[error("Failed to restore its VM from template {template}")]
    Restore {
        template: String,
        source: EventError,
    },
    /// The agent cannot be talked to.
    #[error("Failed to run its command")]
    Control(#[from] ControlError),
    /// The command's output cannot be had.
    #[error("Failed to run its command")]
    Connect(#[from] ConnectError),
    /// Waiting failed.
    #[error("Failed to wait for its command")]
    Wait(#[source] io::Error),
    /// The agent could not do it.
    #[error("Failed to run its command: {0}")]
    Agent(String),
    /// What the command did cannot be had in every clone.
    #[error("Failed to save the VM in which its command ran")]
    Save(#[source] ClientError),
    /// The command goes on and on.
    #[error("Its command did not end in time")]
    Timeout,
    /// A signal told us to end.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
}

/// Makes the template for an image out of `base`, the one for its class; the lock must be held.
pub(super) fn make(
    templates: &Templates,
    template: &Template,
    base: &Template,
    parts: &Parts,
    rehearsal: &Rehearsal,
    making: Making<'_>,
) -> Result<(), MakeError> {
    (making.begins)();
    let mut about = About::new(template.class, parts, Some(rehearsal.image()))?;
    let new = Scratch::new(templates.new_dir(template))?;
    let sockets = Scratch::new(templates.state.join(&template.key))?;
    // Beside the images, as the writable layers of containers are.
    let layer = Scratch::new(templates.store.join(format!(".{}-layer.new", template.key)))?;
    let places = make::places(&sockets);
    let top = rehearsal.image.layers.first();
    let top = top.expect("an image has a layer, or it would not have been found");
    let writable = WritableLayer::create(&layer.path, top).map_err(RehearsalError::Layer)?;
    let ready = Ready {
        name: "template",
        hostname: "template",
        machine_id: "",
        options: &rehearsal.options,
        process: &rehearsal.process,
        layers: &rehearsal.image.layers,
        disk: None,
        writable: &writable,
        volumes: &[],
    };
    let (process, moment) = restore(&ready, base, parts, &places, &new.path)?;
    let mut waiting = Waiting {
        process: &process,
        signals: making.signals,
        deadline: Instant::now() + making.timeout,
    };
    for _ in 0..REHEARSALS {
        rehearse(&ready, &places, moment, &mut waiting)?;
    }
    let saved = make::save(process, &places, moment);
    about.monotonic_ns = saved.map_err(RehearsalError::Save)?;
    make::place(templates, template, &about, &new.path)
}

/// A clone of `base` that has the image's layers as its root share and will be saved.
fn restore(
    ready: &Ready<'_>,
    base: &Template,
    parts: &Parts,
    places: &Places,
    snapshot: &Path,
) -> Result<(VmProcess, Moment), MakeError> {
    let cid = translate::random_cid().map_err(|error| RehearsalError::Random(error.into()))?;
    let origin = Origin::Restore(base.dir.clone());
    let mut config = translate::vm_config(ready, parts, origin, cid, places);
    config.snapshot = Some(snapshot.into());
    // They are a container's own: no clone shall remember what was in them.
    config.shares[0].files.clear();
    let mut process = VmProcess::spawn(&parts.vmm, &config)?;
    match process.next_event(Instant::now() + make::SNAPSHOT_TIMEOUT) {
        Ok(channel::Event::Running { clocks_set_ns, .. }) => {
            let moment = base.moment(clocks_set_ns);
            Ok((process, moment))
        }
        Ok(_) => Err(restore_error(base, EventError::Malformed).into()),
        Err(error) => Err(restore_error(base, error).into()),
    }
}

fn restore_error(base: &Template, source: EventError) -> RehearsalError {
    RehearsalError::Restore {
        template: base.key.clone(),
        source,
    }
}

/// Runs the command in the VM and waits until it is as ready for a container as before.
fn rehearse(
    ready: &Ready<'_>,
    places: &Places,
    moment: Moment,
    waiting: &mut Waiting<'_>,
) -> Result<(), RehearsalError> {
    let prepare = || Action::Prepare {
        root: translate::ROOT_TAG.into(),
    };
    let start = translate::start_actions(ready, Stdio::Pipes { stdin: false }, moment)
        .map_err(|error| RehearsalError::Random(error.into()))?;
    for stream in [Stream::Stdout, Stream::Stderr] {
        let open = Open::Stream {
            process: translate::PROCESS,
            stream,
        };
        let mut output = connect(&places.vsock, &open, &[])?;
        thread::Builder::new()
            .name("rehearsal".into())
            .spawn(move || io::copy(&mut output, &mut io::sink()))
            .map_err(RehearsalError::Wait)?;
    }
    let actions: Vec<_> = [prepare()].into_iter().chain(start).collect();
    let last_action = u32::try_from(actions.len() - 1).expect("there are four");
    let mut control = Control::open(&places.vsock, actions)?;
    waiting.until(&mut control, |event| match event {
        Event::Exited { .. } => Some(Ok(())),
        // An image without this command has nothing to be known but its root.
        Event::Failed {
            request,
            kind: Failure::NotFound | Failure::NotExecutable,
            ..
        } if request == last_action => Some(Ok(())),
        Event::Failed { message, .. } => Some(Err(RehearsalError::Agent(message))),
        Event::Done { .. } | Event::Personalized { .. } | Event::Grown { .. } => None,
    })?;
    let again = control.send(prepare())?;
    waiting.until(&mut control, |event| match event {
        Event::Done { request } if request == again => Some(Ok(())),
        Event::Failed { message, .. } => Some(Err(RehearsalError::Agent(message))),
        _ => None,
    })
}

/// Whoever waits for the agent must notice all else that can happen.
struct Waiting<'a> {
    process: &'a VmProcess,
    signals: Option<&'a mut Signals>,
    deadline: Instant,
}

impl Waiting<'_> {
    /// Receives events until `decide` has an answer.
    fn until(
        &mut self,
        control: &mut Control,
        mut decide: impl FnMut(Event) -> Option<Result<(), RehearsalError>>,
    ) -> Result<(), RehearsalError> {
        loop {
            let ending = self.signals.as_mut().and_then(|signals| signals.ending());
            if let Some(signal) = ending {
                return Err(RehearsalError::Interrupted(signal));
            }
            let mut fds = vec![PollFd::new(control, PollFlags::IN)];
            fds.push(PollFd::new(self.process, PollFlags::IN));
            fds.extend(
                self.signals
                    .iter()
                    .map(|signals| PollFd::new(&**signals, PollFlags::IN)),
            );
            if !poll::wait(&mut fds, Some(self.deadline)).map_err(RehearsalError::Wait)? {
                return Err(RehearsalError::Timeout);
            }
            let [spoke, ended] = [0, 1].map(|index: usize| !fds[index].revents().is_empty());
            if !spoke {
                if ended {
                    return Err(ControlError::Closed.into());
                }
                continue;
            }
            for event in control.receive()? {
                if let Some(decided) = decide(event) {
                    return decided;
                }
            }
        }
    }
}
