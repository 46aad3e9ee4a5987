//! `hrun image`: puts images into the store, shows them, takes them out.

mod history;
pub(crate) mod import;
pub(super) mod output;
pub(super) mod progress;
pub(super) mod prune;
mod save;

use std::path::PathBuf;

use anyhow::{Context, bail};
use image::{Image, Reference, Removed, Store};
use serde::Serialize;
use serde_json::Value;

use super::{
    pull::{self, PullArgs},
    push::{self, PushArgs},
};
use crate::{
    cli::Format,
    container::{Containers, Record, now},
    dirs::Dirs,
    events, exit, hint,
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
    /// Push an image to a registry
    Push(PushArgs),
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
    /// Make an image of an archive of a root file system
    Import(import::ImportArgs),
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
#[command(after_help = "\
Examples:
  hrun image rm busybox
  hrun rmi 3f5ef9003cef
  hrun rmi -f 3f5ef9003cef    With all its names, and although a stopped container needs it")]
pub(crate) struct RmArgs {
    /// Remove it with all its names if an identifier is given, and also if stopped containers
    /// need it: they cannot be compared with it or committed any more
    #[arg(short, long)]
    force: bool,
    /// Names or identifiers
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun image inspect busybox | jq '.[0].config.config.Env'
  hrun image inspect busybox | jq '.[0].manifest.layers[].digest'")]
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
    #[serde(flatten)]
    whole: Option<Whole<'a>>,
}

/// What only `inspect` shows.
#[derive(Serialize)]
struct Whole<'a> {
    platform: String,
    /// As it is, as are the two documents.
    created: Option<String>,
    config: Value,
    /// Digests, sizes and media types of the blobs.
    manifest: Value,
    /// Unpacked layers, topmost first.
    layers: &'a [PathBuf],
    /// Bytes of the unpacked files of each layer in the manifest.
    layer_sizes: &'a [u64],
}

pub(crate) fn execute(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Load(args) => load(args),
        ImageCommand::Pull(args) => pull::execute(args),
        ImageCommand::Push(args) => push::execute(args),
        ImageCommand::Ls(args) => ls(args),
        ImageCommand::Rm(args) => rm(args),
        ImageCommand::Inspect(args) => inspect(args),
        ImageCommand::Tag(args) => tag(args),
        ImageCommand::History(args) => history::execute(args),
        ImageCommand::Save(args) => save::execute(args),
        ImageCommand::Import(args) => import::execute(args),
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
            match image.names.first() {
                Some(name) => events::image("load", name),
                None => events::image("load", &image.id),
            }
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
        let listed: Vec<Listed<'_>> = images.iter().map(|image| listed(image, None)).collect();
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
        match rm_one(&dirs, &store, name, args.force) {
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

fn rm_one(dirs: &Dirs, store: &Store, name: &str, force: bool) -> anyhow::Result<String> {
    let image = store.find(name)?;
    // Without this a stopped container would not hold the image fast: but its layer is nothing
    // without it.
    if image.names.len() <= 1 || (force && !is_name(&image, name)) {
        let id = image.id.to_string();
        let records = Containers::open(dirs)?.list()?;
        let holds = |record: &&Record| record.image_id == id && !(force && record.status.rests());
        if let Some(record) = records.iter().find(holds) {
            bail!(hint::ImageInUse {
                image: name.into(),
                container: record.name.clone(),
                runs: !record.status.rests(),
            });
        }
    }
    let mut text = String::new();
    if force && !is_name(&image, name) {
        for name in image.names.iter().skip(1) {
            text.push_str(&removed(&store.remove(&name.to_string())?));
        }
    }
    text.push_str(&removed(&store.remove(name)?));
    Ok(text)
}

/// Whether `text` is one of the image's names, not its identifier.
fn is_name(image: &Image, text: &str) -> bool {
    text.parse().is_ok_and(|name| image.names.contains(&name))
}

/// Says what was removed, here and to those who look on.
fn removed(removed: &Removed) -> String {
    let mut text = String::new();
    for name in &removed.untagged {
        events::image("untag", name);
        text.push_str(&format!("Untagged {name}\n"));
    }
    if let Some(id) = &removed.deleted {
        events::image("delete", id);
        text.push_str(&format!(
            "Deleted {id}, {} freed\n",
            size::format(removed.freed)
        ));
    }
    text
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let store = open_store(&Dirs::from_env()?)?;
    let images = args
        .images
        .iter()
        .map(|name| store.find(name))
        .collect::<Result<Vec<Image>, _>>()?;
    let listed = images
        .iter()
        .map(|image| Ok(listed(image, Some(whole(&store, image)?))))
        .collect::<anyhow::Result<Vec<Listed<'_>>>>()?;
    super::print_json(&listed)
}

fn tag(args: &TagArgs) -> anyhow::Result<()> {
    let name = open_store(&Dirs::from_env()?)?.tag(&args.image, &args.name)?;
    events::image("tag", &name);
    super::print(&format!("Tagged {name}\n"))
}

fn whole<'a>(store: &Store, image: &'a Image) -> anyhow::Result<Whole<'a>> {
    let (manifest, config) = store.documents(image)?;
    Ok(Whole {
        platform: image.platform().0,
        created: image.config.created().clone(),
        config,
        manifest,
        layers: image.layers(),
        layer_sizes: &image.layer_sizes,
    })
}

fn listed<'a>(image: &'a Image, whole: Option<Whole<'a>>) -> Listed<'a> {
    Listed {
        id: image.id.to_string(),
        name: image.names.first().map(ToString::to_string),
        names: image.names.iter().map(ToString::to_string).collect(),
        manifest_digest: image.manifest_digest.to_string(),
        size: image.size,
        compressed_size: image.compressed_size,
        loaded: loaded_at(image),
        whole,
    }
}

fn loaded_at(image: &Image) -> u64 {
    image
        .loaded
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
