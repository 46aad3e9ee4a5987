//! `hrun image`: puts images into the store, shows them, takes them out.

mod history;
pub(super) mod progress;
pub(super) mod prune;
mod save;

use std::path::PathBuf;

use anyhow::{Context, bail};
use image::{Image, Reference, Store, oci_spec::image::ImageConfiguration};
use serde::Serialize;

use super::pull::{self, PullArgs};
use crate::{
    cli::Format,
    container::{Containers, now},
    dirs::Dirs,
    exit, hint,
    options::{limits, size},
    table,
};
use progress::Bars;

/// Digits of an identifier that are shown.
const SHORT_ID: usize = 12;

/// Manage images
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ImageCommand {
    /// Load images from an OCI archive or layout, or from what `docker save` writes
    Load(LoadArgs),
    /// Pull images from a registry
    Pull(PullArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show all that is known about images, as JSON
    Inspect(InspectArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Show the steps that made an image
    History(history::HistoryArgs),
    /// Write images to an archive
    Save(save::SaveArgs),
    /// Remove images that nobody names or uses
    Prune(prune::PruneArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  docker save alpine -o alpine.tar && hrun image load alpine.tar
  skopeo copy docker://alpine oci-archive:alpine.tar && hrun image load alpine.tar
  hrun image load ./layout-made-by-umoci")]
pub(crate) struct LoadArgs {
    /// Archives (plain, gzip or zstd) or directories with an OCI layout
    #[arg(required = true, value_name = "FILE|DIR")]
    sources: Vec<PathBuf>,
    /// Show no progress and print identifiers only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun image ls\n  hrun image ls --format json | jq '.[].id'")]
pub(crate) struct LsArgs {
    /// Show identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Show whole identifiers
    #[arg(long)]
    no_trunc: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun image rm busybox\n  hrun rmi 3f5ef9003cef")]
pub(crate) struct RmArgs {
    /// Names or identifiers
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun image inspect busybox | jq '.[0].config.config.Env'")]
pub(crate) struct InspectArgs {
    /// Names or identifiers
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun image tag busybox tools:1.0")]
pub(crate) struct TagArgs {
    /// Name or identifier of the image
    image: String,
    /// Its additional name
    name: String,
}

/// An image as programs get to see it.
#[derive(Serialize)]
struct Listed<'a> {
    id: String,
    /// The first of its names.
    name: Option<String>,
    names: Vec<String>,
    manifest_digest: String,
    /// Bytes of the unpacked files.
    size: u64,
    /// Bytes of the layers as they were loaded.
    compressed_size: u64,
    /// Seconds since the Unix epoch.
    loaded: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a ImageConfiguration>,
    /// Unpacked layers, topmost first.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<&'a [PathBuf]>,
}

pub(crate) fn execute(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Load(args) => load(args),
        ImageCommand::Pull(args) => pull::execute(args),
        ImageCommand::Ls(args) => ls(args),
        ImageCommand::Rm(args) => rm(args),
        ImageCommand::Inspect(args) => inspect(args),
        ImageCommand::Tag(args) => tag(args),
        ImageCommand::History(args) => history::execute(args),
        ImageCommand::Save(args) => save::execute(args),
        ImageCommand::Prune(args) => prune::execute(args),
    }
}

/// The image store.
pub(crate) fn open_store(dirs: &Dirs) -> Result<Store, image::StoreError> {
    Store::open(&dirs.store.join("images"))
}

/// The image store, to put images into: the environment may set how much those may ask for.
pub(crate) fn open_store_to_fill(dirs: &Dirs) -> anyhow::Result<Store> {
    let limits = limits::from_env()?;
    Ok(Store::open_with(&dirs.store.join("images"), limits)?)
}

pub(crate) fn load(args: &LoadArgs) -> anyhow::Result<()> {
    let store = open_store_to_fill(&Dirs::from_env()?)?;
    for source in &args.sources {
        let bars = Bars::new(!args.quiet);
        let images = store
            .load(source, &bars)
            .with_context(|| format!("Failed to load {}", source.display()))?;
        drop(bars);
        for image in images {
            super::print(&loaded(&image, args.quiet))?;
        }
    }
    Ok(())
}

fn loaded(image: &Image, quiet: bool) -> String {
    if quiet {
        return format!("{}\n", image.id);
    }
    if image.names.is_empty() {
        return format!("Loaded image {}, which has no name\n", image.id);
    }
    let line = |name: &Reference| format!("Loaded image {name}\n");
    image.names.iter().map(line).collect()
}

pub(crate) fn ls(args: &LsArgs) -> anyhow::Result<()> {
    let images = open_store(&Dirs::from_env()?)?.images()?;
    if args.format == Format::Json {
        let listed: Vec<Listed<'_>> = images.iter().map(|image| listed(image, false)).collect();
        return super::print_json(&listed);
    }
    let id = |image: &Image| {
        if args.no_trunc {
            image.id.to_string()
        } else {
            image.id.digest()[..SHORT_ID].to_owned()
        }
    };
    if args.quiet {
        return super::print(&images.iter().map(|i| id(i) + "\n").collect::<String>());
    }
    let now = now();
    let mut rows = Vec::new();
    for image in &images {
        let rest = [
            id(image),
            table::ago(now.saturating_sub(loaded_at(image))),
            size::format(image.size),
        ];
        let mut row = |repository: String, tag: &str| {
            rows.push(
                [repository, tag.into()]
                    .into_iter()
                    .chain(rest.clone())
                    .collect(),
            );
        };
        if image.names.is_empty() {
            row("<none>".into(), "<none>");
        }
        for name in &image.names {
            row(name.short_repository(), name.tag().unwrap_or("<none>"));
        }
    }
    let head = ["REPOSITORY", "TAG", "IMAGE ID", "LOADED", "SIZE"];
    super::print(&table::render(&head, &rows))
}

pub(crate) fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    let store = open_store(&dirs)?;
    let mut failures = Vec::new();
    for name in &args.images {
        match rm_one(&dirs, &store, name) {
            Ok(text) => super::print(&text)?,
            Err(error) => failures.push(error),
        }
    }
    // One that fails does not spare the others; the last of them is reported from the top.
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        exit::print_error(&format!("hrun: {failure:#}\n"));
    }
    Err(last)
}

fn rm_one(dirs: &Dirs, store: &Store, name: &str) -> anyhow::Result<String> {
    let image = store.find(name)?;
    // A stopped container does not hold the image fast, but its layer is nothing without it.
    if image.names.len() <= 1 {
        let id = image.id.to_string();
        let records = Containers::open(dirs)?.list()?;
        if let Some(record) = records.iter().find(|record| record.image_id == id) {
            bail!(hint::ImageInUse {
                image: name.into(),
                container: record.name.clone(),
            });
        }
    }
    let removed = store.remove(name)?;
    let mut text = String::new();
    for name in &removed.untagged {
        text.push_str(&format!("Untagged {name}\n"));
    }
    if let Some(id) = &removed.deleted {
        text.push_str(&format!(
            "Deleted {id}, {} freed\n",
            size::format(removed.freed)
        ));
    }
    Ok(text)
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let store = open_store(&Dirs::from_env()?)?;
    let images = args
        .images
        .iter()
        .map(|name| store.find(name))
        .collect::<Result<Vec<Image>, _>>()?;
    let listed: Vec<Listed<'_>> = images.iter().map(|image| listed(image, true)).collect();
    super::print_json(&listed)
}

fn tag(args: &TagArgs) -> anyhow::Result<()> {
    let name = open_store(&Dirs::from_env()?)?.tag(&args.image, &args.name)?;
    super::print(&format!("Tagged {name}\n"))
}

fn listed(image: &Image, whole: bool) -> Listed<'_> {
    Listed {
        id: image.id.to_string(),
        name: image.names.first().map(ToString::to_string),
        names: image.names.iter().map(ToString::to_string).collect(),
        manifest_digest: image.manifest_digest.to_string(),
        size: image.size,
        compressed_size: image.compressed_size,
        loaded: loaded_at(image),
        config: whole.then_some(&image.config),
        layers: whole.then_some(image.layers()),
    }
}

fn loaded_at(image: &Image) -> u64 {
    image
        .loaded
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
