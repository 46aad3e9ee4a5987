//! `hrun system prune`: removes what nobody needs any more.

use std::{
    io::{self, BufRead},
    path::Path,
};

use image::{Image, Store};

use super::on_disk;
use crate::{
    commands::{
        image::{
            open_store,
            prune::{remove, used},
        },
        print,
    },
    container::{ContainerError, Containers, Record},
    dirs::Dirs,
    exit,
    options::size,
    terminal,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun system prune        Stopped containers, images without a name, interrupted downloads
  hrun system prune -a     All images that no container runs as well
  hrun system df           See first what there is to free

Volumes and the templates of VMs stay.")]
pub(crate) struct PruneArgs {
    /// Remove all images without containers, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(super) fn execute(args: &PruneArgs) -> anyhow::Result<()> {
    if !args.force && !confirmed(args.all)? {
        return Ok(());
    }
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let mut text = String::new();
    let mut freed = 0;
    let home = dirs.store.join("containers");
    for record in containers.list()? {
        if record.status.rests() {
            freed += container(&containers, &record, &home, &mut text)?;
        }
    }
    let store = open_store(&dirs)?;
    // Asked now: images of the containers that are gone may go with them.
    let used = used(&dirs)?;
    let is_unused =
        |image: &Image| (args.all || image.names.is_empty()) && !used.contains(image.id.as_ref());
    for image in store.images()?.into_iter().filter(is_unused) {
        freed += remove(&store, &image, &mut text)?.unwrap_or(0);
    }
    freed += downloads(&store, &mut text)?;
    text.push_str(&format!("{} freed\n", size::format(freed)));
    print(&text)
}

/// Removes a stopped container, unless somebody is at it; gives the bytes that this frees.
fn container(
    containers: &Containers,
    record: &Record,
    home: &Path,
    text: &mut String,
) -> anyhow::Result<u64> {
    let (_, bytes) = on_disk(&home.join(record.id.as_str()))?;
    match containers.remove(record, false) {
        Err(ContainerError::InUse(_) | ContainerError::Running(_)) => Ok(0),
        removed => {
            removed?;
            text.push_str(&format!("Removed container {}\n", record.name));
            Ok(bytes)
        }
    }
}

fn downloads(store: &Store, text: &mut String) -> anyhow::Result<u64> {
    let bytes = store.prune_downloads()?;
    if bytes > 0 {
        text.push_str("Removed interrupted downloads\n");
    }
    Ok(bytes)
}

/// Asks whoever sits at the terminal; a program has decided already.
fn confirmed(all: bool) -> anyhow::Result<bool> {
    if !terminal::stdin_is_terminal() {
        return Ok(true);
    }
    let images = if all {
        "all images without a container"
    } else {
        "images without a name"
    };
    exit::print_error(&format!(
        "Remove stopped containers, {images} and interrupted downloads? [y/N] "
    ));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
