//! `hrun pull`: brings images from registries into the store.

use std::env;

use anyhow::Context;
use clap::ValueEnum;
use image::{
    Platform, PullOptions, Pulled, Reference, Store,
    registry::{Access, Mirrors},
};

use super::image::{open_store_to_fill, progress::Bars};
use crate::{dirs::Dirs, events};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun pull busybox                            docker.io/library/busybox:latest
  hrun pull quay.io/team/app:1.4
  hrun pull busybox@sha256:...                 This and no other
  hrun pull --platform linux/arm64 debian:12   For another machine, to look at
  hrun pull --insecure registry.lan:5000/app   From a registry without TLS

What was interrupted goes on where it stopped. Credentials are those of docker and podman
(REGISTRY_AUTH_FILE, auth.json, ~/.docker/config.json and credential helpers) and of `hrun login`;
proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

Mirrors that are asked before a registry are taken from HRUN_MIRRORS, as REGISTRY=MIRROR with commas
between, such as docker.io=http://localhost:5001,quay.io=https://mirror.example/quay. A registry's
mirrors are asked in their order, and the registry last. A mirror has logins of its own. With
http:// it is asked in plain text, which otherwise only one on this machine is.")]
pub(crate) struct PullArgs {
    /// Names, with a tag or digest if wanted
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<Reference>,
    /// The machine that the image is for, such as linux/arm64 [default: this one]
    #[arg(long)]
    platform: Option<Platform>,
    /// Allow a registry without encryption, or with a certificate that nobody vouches for
    #[arg(long)]
    insecure: bool,
    /// Show no progress and print identifiers only
    #[arg(short, long)]
    quiet: bool,
}

/// When `hrun run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum When {
    /// Each time: what did not change is not fetched again
    Always,
    /// If the image is not in the store
    #[default]
    Missing,
    /// Not at all
    Never,
}

pub(crate) fn execute(args: &PullArgs) -> anyhow::Result<()> {
    let store = open_store_to_fill(&Dirs::from_env()?)?;
    let options = options(args.platform.as_ref(), args.insecure)?;
    for name in &args.images {
        let pulled = pull(&store, name, &options, Bars::new(!args.quiet))?;
        super::print(&said(name, &pulled, args.quiet))?;
    }
    Ok(())
}

/// What the command line and the environment say about a pull.
pub(crate) fn options(platform: Option<&Platform>, insecure: bool) -> anyhow::Result<PullOptions> {
    let mirrors = match env::var_os(Mirrors::VARIABLE) {
        Some(text) => text.to_string_lossy().parse(),
        None => Ok(Mirrors::default()),
    };
    Ok(PullOptions {
        platform: platform.cloned().unwrap_or_else(Platform::host),
        access: Access { insecure },
        mirrors: mirrors
            .with_context(|| format!("Failed to read the variable {}", Mirrors::VARIABLE))?,
        ..PullOptions::default()
    })
}

/// Pulls one image.
pub(crate) fn pull(
    store: &Store,
    name: &Reference,
    options: &PullOptions,
    bars: Bars,
) -> anyhow::Result<Pulled> {
    bars.say(&format!("Pulling {name}"));
    let pulled = store.pull(name, options, &bars);
    bars.clear();
    let pulled = pulled.with_context(|| format!("Failed to pull {name}"))?;
    events::image("pull", name);
    Ok(pulled)
}

fn said(name: &Reference, pulled: &Pulled, quiet: bool) -> String {
    if quiet {
        format!("{}\n", pulled.image.id)
    } else if pulled.changed {
        format!("Pulled {name} ({})\n", pulled.digest)
    } else {
        format!("Image {name} is up to date ({})\n", pulled.digest)
    }
}
