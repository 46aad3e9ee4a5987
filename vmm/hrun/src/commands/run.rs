//! `hrun run`: a command in a new container, in a VM of its own.
//!
//! [`execute`] is the recipe of a start, step by step; each step undoes itself if a later one
//! fails.

mod args;

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use image::{FindError, Image, Platform, Reference, Store};

pub(crate) use args::{ContainerArgs, RunArgs, TimelineFormat, cpus, memory};

use super::{
    attach::{self, HoldArgs},
    image::progress::Bars,
    pull::When,
    shim,
};
use crate::{
    container::Containers,
    dirs::Dirs,
    exit,
    host::{self, HostError},
    launch::Launch,
    log::LogOptions,
    parts::Parts,
    relay::Output,
    restart::RestartPolicy,
    signals::Signals,
    spec::Process,
    terminal,
    timeline::Timeline,
};

/// A word that stands for nothing.
#[derive(Debug, thiserror::Error)]
#[error("{word:?} is neither a command of hrun nor an image in the store")]
pub(crate) struct ImageOrCommand {
    word: String,
}

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
    let asked = &args.container;
    let options = asked.validate()?;
    let debugs = args.timeline.is_some() || args.console.is_some() || args.profile.is_some();
    if debugs && asked.restart != RestartPolicy::No {
        bail!("--timeline, --console and --profile are of one run: they do not go with --restart");
    }
    let dirs = Dirs::from_env()?;
    host::require_root()?;
    // A signal may end a pull at once: nothing but resumable downloads stays.
    let store = super::image::open_store_to_fill(&dirs)?;
    let image = find_image(&store, &options.image, implied, asked)?;
    // From here on every way out passes the drops below.
    let mut signals = Signals::catch().context("Failed to catch signals")?;
    let in_use = store.use_image(&image)?;
    let process = Process::resolve(&options, image.config.config().as_ref())?;
    timeline.mark("image found");

    host::require_kvm()?;
    let parts = Parts::find()?;
    let input = !args.detach && input(options.interactive, options.tty)?;
    let stop_signal = asked.stop_signal(image.config.config().as_ref())?;
    let log = LogOptions::parse(&asked.log_opt)?;

    let disk = options.rootfs.disk(&store, &image, &in_use)?;
    if disk.is_some() {
        timeline.mark("image's disk found");
    }

    let containers = Containers::open(&dirs)?;
    let once = options.interactive && !args.detach;
    let (record, config) = asked.describe(&image, options, process, stop_signal, log, once);
    let container = containers.create(record, asked.name.as_deref())?;
    container.configure(&config)?;
    if args.detach {
        let id = container.record().id.clone();
        shim::spawn(container, Some(args.start))?;
        super::print(&format!("{id}\n"))?;
        return Ok(0);
    }
    if asked.restart != RestartPolicy::No {
        // Whoever restarts it outlives us: it runs in the background and we look on.
        let record = container.record().clone();
        let hold = HoldArgs::new(args.sig_proxy);
        drop(signals);
        return attach::attach_to_start(&record, &config, input, &hold, || {
            shim::begin(container, Some(args.start), true)
        });
    }
    let launch = Launch {
        dirs: &dirs,
        config: &config,
        image: &image,
        disk,
        parts: &parts,
        way: args.start,
        console: absolute(args.console.as_deref())?,
        profile: absolute(args.profile.as_deref())?,
        input,
        output: Output::Stdio,
        proxy_signals: args.sig_proxy,
        timeline,
    };
    launch.run(container, &mut signals, &mut || {})
}

/// The image called `name`, from the store or pulled. A mere word in the place of a command may be
/// a typing error: no registry hears of it.
pub(super) fn find_image(
    store: &Store,
    name: &str,
    implied: Option<&str>,
    args: &ContainerArgs,
) -> anyhow::Result<Image> {
    let wanted = args.platform.as_ref();
    let host = Platform::host();
    if let Some(wanted) = wanted.filter(|wanted| !wanted.runs_here()) {
        bail!("Image {name} is wanted for {wanted}, which this machine, {host}, does not run");
    }
    let pull = || pull_image(store, name, wanted);
    let found = match args.pull {
        When::Always => return pull(),
        When::Missing | When::Never => store.find(name),
    };
    let image = match (found, implied) {
        (Err(FindError::NotFound { .. }), Some(word)) if !word.contains(['/', ':']) => {
            bail!(ImageOrCommand { word: word.into() })
        }
        (Err(FindError::NotFound { .. }), _) if args.pull == When::Missing => return pull(),
        (found, _) => found?,
    };
    let (platform, runs) = image.platform();
    match wanted {
        Some(wanted) if !image.is_for(wanted) => {
            // An identifier stands for nothing but the image that has it.
            if args.pull == When::Missing && is_name_of(&image, name) {
                return pull();
            }
            bail!(
                "Image {name} is here for {platform}, not for {wanted}: \
                 `hrun pull --platform {wanted} NAME` gets that"
            )
        }
        None if !runs => bail!(
            "Image {name} is for {platform}, which this machine, {host}, does not run: \
             `hrun pull {name}` gets the one for this machine"
        ),
        _ => Ok(image),
    }
}

/// Whether a registry may have other images by the name by which `image` was found.
fn is_name_of(image: &Image, name: &str) -> bool {
    name.parse::<Reference>()
        .is_ok_and(|name| name.digest().is_some() || image.names.contains(&name))
}

fn pull_image(store: &Store, name: &str, platform: Option<&Platform>) -> anyhow::Result<Image> {
    let reference = name.parse()?;
    let options = super::pull::options(platform, false)?;
    let pulled = super::pull::pull(store, &reference, &options, Bars::before_a_run())?;
    Ok(pulled.image)
}

/// Whether standard input goes to the process. A terminal does with `-t` alone as well: what else
/// would somebody at the keyboard expect?
pub(super) fn input(interactive: bool, tty: bool) -> Result<bool, HostError> {
    let terminal = terminal::stdin_is_terminal();
    if tty && interactive && !terminal {
        return Err(HostError::NoTerminal);
    }
    Ok(interactive || (tty && terminal))
}

fn absolute(path: Option<&Path>) -> anyhow::Result<Option<std::path::PathBuf>> {
    path.map(|path| {
        std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
    })
    .transpose()
}
