//! `hrun diff`: what a container changed in the files of its image.

use anyhow::Context;
use image::{
    Image, Store,
    layer::{Change, ChangeKind, Changes, DiffError},
};
use serde::Serialize;

use super::image::open_store;
use crate::{
    cli::Format,
    container::{Containers, Record, Still},
    dirs::Dirs,
    table,
    translate::RUNTIME_PATHS,
};

/// How often a container that runs may change something under the eyes of who lists it.
const ATTEMPTS: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun diff web
  hrun diff --format json web | jq -r '.[] | select(.kind == \"added\").path'

A stands for what was added, C for what was changed, D for what was deleted. A directory in which
something changed has changed as well.")]
pub(crate) struct DiffArgs {
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Name or identifier, which may be shortened
    container: String,
}

/// A change as programs get to see it.
#[derive(Serialize)]
struct Listed {
    kind: &'static str,
    /// What is no UTF-8 in it is replaced.
    path: String,
}

pub(crate) fn execute(args: &DiffArgs) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let record = containers.find(&args.container)?;
    let store = open_store(&dirs)?;
    let image = image_of(&store, &record)?;
    let still = containers.still(&record, false)?;
    let changes = changes(&store, &image, &still)?.list();
    if args.format == Format::Json {
        let listed: Vec<Listed> = changes.iter().map(listed).collect();
        return super::print_json(&listed);
    }
    super::print(&changes.iter().map(line).collect::<String>())
}

/// The image that a container was made of.
pub(crate) fn image_of(store: &Store, record: &Record) -> anyhow::Result<Image> {
    store.find(&record.image_id).with_context(|| {
        format!(
            "Container {} has lost its image {}",
            record.name, record.image
        )
    })
}

/// What a container changed, but for the files that hrun itself puts there.
pub(crate) fn changes(store: &Store, image: &Image, still: &Still) -> Result<Changes, DiffError> {
    for _ in 1..ATTEMPTS {
        match store.changes(image, &still.upper, &RUNTIME_PATHS) {
            Err(DiffError::Changed { .. }) => {}
            done => return done,
        }
    }
    store.changes(image, &still.upper, &RUNTIME_PATHS)
}

fn listed(change: &Change) -> Listed {
    Listed {
        kind: match change.kind {
            ChangeKind::Added => "added",
            ChangeKind::Modified => "changed",
            ChangeKind::Deleted => "deleted",
        },
        path: String::from_utf8_lossy(&change.path).into_owned(),
    }
}

fn line(change: &Change) -> String {
    let letter = match change.kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Deleted => 'D',
    };
    let path = table::printable(&String::from_utf8_lossy(&change.path));
    format!("{letter} {path}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_a_container_do_not_reach_the_terminal_as_they_are() {
        let change = Change {
            path: b"/a\n\x1b[2J\xff".to_vec(),
            kind: ChangeKind::Added,
        };
        assert_eq!(line(&change), "A /a\\n\\u{1b}[2J\u{fffd}\n");
        assert_eq!(listed(&change).path, "/a\n\u{1b}[2J\u{fffd}");
    }
}
