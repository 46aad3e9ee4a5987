//! `hrun image prune`: removes images that nobody names or uses.

use std::{
    collections::BTreeSet,
    io::{self, BufRead},
};

use image::{Image, RemoveError, Store};

use super::open_store;
use crate::{container::Containers, dirs::Dirs, exit, options::size, terminal};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun image prune        Images without a name, and interrupted downloads
  hrun image prune -a     All images that no container has")]
pub(crate) struct PruneArgs {
    /// Remove all images without containers, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn execute(args: &PruneArgs) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    let store = open_store(&dirs)?;
    let used = used(&dirs)?;
    let images: Vec<Image> = store
        .images()?
        .into_iter()
        .filter(|image| args.all || image.names.is_empty())
        .filter(|image| !used.contains(image.id.as_ref()))
        .collect();
    if !args.force && !images.is_empty() && !confirmed(images.len())? {
        return Ok(());
    }
    let mut freed = store.prune_downloads()?;
    let mut text = String::new();
    for image in &images {
        if let Some(bytes) = remove(&store, image, &mut text)? {
            freed += bytes;
        }
    }
    text.push_str(&format!("{} freed\n", size::format(freed)));
    crate::commands::print(&text)
}

/// The ids of the images that containers have, running or not.
pub(crate) fn used(dirs: &Dirs) -> anyhow::Result<BTreeSet<String>> {
    let records = Containers::open(dirs)?.list()?;
    Ok(records.into_iter().map(|record| record.image_id).collect())
}

/// Removes an image with all its names; gives the bytes that this frees, and nothing if a
/// container has begun to use it.
pub(crate) fn remove(
    store: &Store,
    image: &Image,
    text: &mut String,
) -> anyhow::Result<Option<u64>> {
    let mut names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        names.push(image.id.to_string());
    }
    let mut freed = None;
    for name in names {
        let removed = match store.remove(&name) {
            // Since it was looked up somebody else removed it, or uses it.
            Err(RemoveError::InUse { .. } | RemoveError::Find(_)) => return Ok(freed),
            other => other?,
        };
        for name in &removed.untagged {
            text.push_str(&format!("Untagged {name}\n"));
        }
        if let Some(id) = &removed.deleted {
            text.push_str(&format!("Deleted {id}\n"));
            freed = Some(removed.freed);
        }
    }
    Ok(freed)
}

/// Asks whoever sits at the terminal; a program has decided already.
fn confirmed(count: usize) -> anyhow::Result<bool> {
    if !terminal::stdin_is_terminal() {
        return Ok(true);
    }
    let plural = if count == 1 { "" } else { "s" };
    exit::print_error(&format!("Remove {count} image{plural}? [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
