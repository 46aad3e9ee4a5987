//! `hrun run`: a command in a new container, in a VM of its own.
//!
//! [`execute`] is the recipe of a start, step by step; each step undoes itself if a later one
//! fails.

mod args;

use std::{env, path::Path, sync::Arc, time::Duration};

use agent_protocol::{ExitStatus, Stdio};
use anyhow::{Context, anyhow, bail};
use image::{FindError, Image, PullOptions, Store};

pub(crate) use args::{RunArgs, TimelineFormat, cpus, memory};

use super::{image::progress::Bars, pull::When};
use crate::{
    agent::Control,
    container::{Containers, NewRecord, VmmIdentity},
    dirs::Dirs,
    exit,
    host::{self, HostError},
    parts::Parts,
    sandbox::{Claim, Sandbox},
    session::{self, SessionError, Start},
    signals::Signals,
    spec::{Process, RunOptions},
    template::{Rehearsal, Templates},
    terminal,
    timeline::Timeline,
    translate::{self, Places, Ready},
    volumes::ReadyVolume,
};

/// How long a VM may take to become ready unless `HRUN_BOOT_TIMEOUT` says otherwise: a busy
/// machine that interprets the guest's kernel is slow.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A word that stands for nothing.
#[derive(Debug, thiserror::Error)]
#[error("{word:?} is neither a command of hrun nor an image in the store")]
pub(crate) struct ImageOrCommand {
    word: String,
}

/// The VM ended under the container.
#[derive(Debug, thiserror::Error)]
#[error("The container's VM ended: {0}")]
struct VmLost(crate::sandbox::Ended);

/// Runs a container; `implied` is the word in the place of a command that was taken for an image.
pub(crate) fn execute(
    args: &RunArgs,
    implied: Option<&str>,
    timeline: Timeline,
) -> anyhow::Result<u8> {
    let timeline = Arc::new(timeline);
    let result = run(args, implied, &timeline);
    if let Some(format) = args.timeline {
        timeline.mark("hrun done");
        exit::print_error(&match format {
            TimelineFormat::Table => timeline.table(),
            TimelineFormat::Json => timeline.json() + "\n",
        });
    }
    result
}

fn run(args: &RunArgs, implied: Option<&str>, timeline: &Arc<Timeline>) -> anyhow::Result<u8> {
    let options = args.validate()?;
    let dirs = Dirs::from_env()?;
    host::require_root()?;
    // A signal may end a pull at once: nothing but resumable downloads stays.
    let store = super::image::open_store_to_fill(&dirs)?;
    let image = find_image(&store, &options.image, implied, args.pull)?;
    // From here on every way out passes the drops below.
    let mut signals = Signals::catch().context("Failed to catch signals")?;
    let in_use = store.use_image(&image)?;
    let process = Process::resolve(&options, image.config.config().as_ref())?;
    timeline.mark("image found");

    host::require_kvm()?;
    let parts = Parts::find()?;
    let input = input(&options)?;

    let disk = match options.rootfs.needs_disk() {
        true => Some(store.erofs(&image, &in_use)?),
        false => None,
    };
    if disk.is_some() {
        timeline.mark("image's disk found");
    }

    let containers = Containers::open(&dirs)?;
    let record = NewRecord {
        image: options.image.clone(),
        image_id: image.id.to_string(),
        command: process.args.clone(),
        instructions: options.instructions(),
        auto_remove: args.rm,
    };
    let mut container = containers.create(record, args.name.as_deref())?;
    let layers = image.layers();
    let top = layers.first().context("The image has no layers")?;
    let writable = container.create_layer(top)?;
    let volumes = options
        .volumes
        .iter()
        .map(|volume| ReadyVolume::prepare(volume, &dirs))
        .collect::<Result<Vec<_>, _>>()?;
    timeline.mark("container directory made");

    let hostname = options
        .hostname
        .clone()
        .unwrap_or_else(|| container.record().id.short().to_owned());
    let name = container.record().name.clone();
    let machine_id = container.record().id.machine_id().to_owned();
    let ready = Ready {
        name: &name,
        hostname: &hostname,
        machine_id: &machine_id,
        options: &options,
        process: &process,
        layers,
        disk: disk.as_deref(),
        writable: &writable,
        volumes: &volumes,
    };
    let places = Places {
        control: container.control_socket(),
        vsock: container.vsock_socket(),
        console: absolute(args.console.as_deref())?,
        profile: absolute(args.profile.as_deref())?,
    };
    let config = |origin, cid| translate::vm_config(&ready, &parts, origin, cid, &places);
    config(translate::boot(&parts), translate::FIRST_CID).validate()?;

    let templates = Templates::open(&dirs)?;
    let rehearsal = Rehearsal::new(&options.image, &image, options.class(), &[])?;
    let claim = Claim {
        way: args.start,
        class: options.class(),
        image: &rehearsal,
        rootfs: options.rootfs,
        parts: &parts,
        dirs: &dirs,
        templates: &templates,
        timeline,
        timeout: boot_timeout()?,
        wants_boot: args.console.is_some(),
    };
    let sandbox = Sandbox::claim(&config, &claim, &mut signals, &mut |vmm| {
        Ok(container.running(VmmIdentity::of(vmm.pid())?)?)
    })?;

    let stdio = stdio(&options);
    let start = Start {
        actions: translate::start_actions(&ready, stdio, sandbox.moment())
            .context("Failed to read random numbers for the guest")?,
        process: translate::PROCESS,
        cid: sandbox.cid(),
        stdio,
        input,
        proxy_signals: args.sig_proxy,
    };
    let outcome = session::run(sandbox.vsock(), start, &mut signals, timeline);
    let mut sandbox = Some(sandbox);
    let (code, outcome) = finish(&mut sandbox, outcome, args.profile.is_some());
    match code {
        Some(code) => container.settle(code)?,
        // Nothing has run: nothing stays.
        None => drop(container),
    }
    timeline.mark("container settled");
    drop(sandbox);
    timeline.mark("VM gone");
    outcome
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

/// The image called `name`, from the store or pulled. A mere word in the place of a command may be
/// a typing error: no registry hears of it.
fn find_image(
    store: &Store,
    name: &str,
    implied: Option<&str>,
    pull: When,
) -> anyhow::Result<Image> {
    let found = match pull {
        When::Always => return pull_image(store, name),
        When::Missing | When::Never => store.find(name),
    };
    let image = match (found, implied) {
        (Err(FindError::NotFound { .. }), Some(word)) if !word.contains(['/', ':']) => {
            bail!(ImageOrCommand { word: word.into() })
        }
        (Err(FindError::NotFound { .. }), _) if pull == When::Missing => pull_image(store, name)?,
        (found, _) => found?,
    };
    match image.platform() {
        (_, true) => Ok(image),
        (platform, false) => bail!(
            "Image {name} is for {platform}, which this machine does not run: \
             `hrun pull {name}` gets the one for this machine"
        ),
    }
}

fn pull_image(store: &Store, name: &str) -> anyhow::Result<Image> {
    let reference = name.parse()?;
    let bars = Bars::before_a_run();
    let pulled = super::pull::pull(store, &reference, &PullOptions::default(), bars)?;
    Ok(pulled.image)
}

/// Whether standard input goes to the container. A terminal does with `-t` alone as well: what
/// else would somebody at the keyboard expect?
fn input(options: &RunOptions) -> Result<bool, HostError> {
    let terminal = terminal::stdin_is_terminal();
    if options.tty && options.interactive && !terminal {
        return Err(HostError::NoTerminal);
    }
    Ok(options.interactive || (options.tty && terminal))
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

fn absolute(path: Option<&Path>) -> anyhow::Result<Option<std::path::PathBuf>> {
    path.map(|path| {
        std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
    })
    .transpose()
}

/// How long a VM may take to become ready.
pub(crate) fn boot_timeout() -> anyhow::Result<Duration> {
    match env::var("HRUN_BOOT_TIMEOUT") {
        Err(_) => Ok(BOOT_TIMEOUT),
        Ok(text) => text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| anyhow!("HRUN_BOOT_TIMEOUT is {text:?}, which is no number of seconds")),
    }
}
