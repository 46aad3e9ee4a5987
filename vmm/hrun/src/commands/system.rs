//! `hrun system`: the store as a whole.

mod prune;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::image::{open_store, prune::used};
use crate::{
    cli::{Format, FormatArgs},
    container::Containers,
    dirs::Dirs,
    options::size,
    table,
};

/// Bytes in the unit of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

/// The store as a whole
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what images, containers, volumes and templates take on the disk
    #[command(after_help = "Examples:\n  hrun system df\n  hrun system df --format json")]
    Df(FormatArgs),
    /// Remove stopped containers, images that nobody names or uses, and interrupted downloads
    Prune(prune::PruneArgs),
}

/// What one kind of thing takes.
#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    count: usize,
    /// Bytes.
    size: u64,
    /// Bytes that `hrun system prune -a` and the like would free.
    reclaimable: u64,
}

#[derive(Debug, Serialize)]
struct ImageRow {
    id: String,
    /// Bytes that other images have as well.
    shared: u64,
    /// Bytes that go with it.
    unique: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    kinds: Vec<Row>,
    images: Vec<ImageRow>,
}

pub(crate) fn execute(command: &SystemCommand) -> anyhow::Result<()> {
    match command {
        SystemCommand::Df(args) => df(args),
        SystemCommand::Prune(args) => prune::execute(args),
    }
}

fn df(args: &FormatArgs) -> anyhow::Result<()> {
    let report = report(&Dirs::from_env()?)?;
    if args.format == Format::Json {
        return super::print_json(&report);
    }
    let rows: Vec<Vec<String>> = report
        .kinds
        .iter()
        .map(|row| {
            vec![
                row.kind.to_owned(),
                row.count.to_string(),
                size::format(row.size),
                size::format(row.reclaimable),
            ]
        })
        .collect();
    super::print(&table::render(
        &["TYPE", "COUNT", "SIZE", "RECLAIMABLE"],
        &rows,
    ))
}

fn report(dirs: &Dirs) -> anyhow::Result<Report> {
    let store = open_store(dirs)?;
    let used = used(dirs)?;
    let usage = store.usage()?;
    let images = Row {
        kind: "images",
        count: usage.images.len(),
        size: usage.bytes,
        reclaimable: store.reclaimable(&used)?,
    };
    let downloads = Row {
        kind: "downloads",
        count: usage.downloads,
        size: usage.download_bytes,
        reclaimable: usage.download_bytes,
    };
    let home = dirs.store.join("containers");
    let (count, size) = on_disk(&home)?;
    let mut stopped = 0;
    for record in Containers::open(dirs)?.list()? {
        // What is written in a container goes with it, and running ones do not go.
        if record.status.rests() {
            stopped += on_disk(&home.join(record.id.as_str()))?.1;
        }
    }
    let containers = Row {
        kind: "containers",
        count,
        size,
        reclaimable: stopped,
    };
    let (count, size) = on_disk(&dirs.volumes())?;
    let volumes = Row {
        kind: "volumes",
        count,
        size,
        reclaimable: 0,
    };
    let (count, size) = on_disk(&dirs.templates)?;
    let templates = Row {
        kind: "templates",
        count,
        size,
        // A start that needs one makes it again.
        reclaimable: size,
    };
    let of = |image: image::ImageSize| ImageRow {
        id: image.id.to_string(),
        shared: image.shared,
        unique: image.unique,
    };
    Ok(Report {
        kinds: vec![images, downloads, containers, volumes, templates],
        images: usage.images.into_iter().map(of).collect(),
    })
}

/// How many directories there are in `dir`, and the bytes of disk that all in it takes.
fn on_disk(dir: &Path) -> anyhow::Result<(usize, u64)> {
    let walk = || {
        let mut count = 0;
        let mut bytes = 0;
        let mut pending: Vec<(PathBuf, bool)> = vec![(dir.to_owned(), true)];
        while let Some((path, is_top)) = pending.pop() {
            let entries = match fs::read_dir(&path) {
                // Gone meanwhile, or never there.
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                bytes += metadata.blocks() * BLOCK;
                if metadata.is_dir() {
                    count += usize::from(is_top);
                    pending.push((entry.path(), false));
                }
            }
        }
        io::Result::Ok((count, bytes))
    };
    walk().with_context(|| format!("Failed to measure {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_counted_and_what_is_in_them_measured() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(on_disk(&dir.path().join("none")).unwrap(), (0, 0));
        for name in ["a/deep", "b"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("a/deep/file"), vec![1; 100_000]).unwrap();
        // Leads to itself, and is not followed.
        std::os::unix::fs::symlink(".", dir.path().join("a/link")).unwrap();
        let (count, bytes) = on_disk(dir.path()).unwrap();
        assert_eq!(count, 2);
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }
}
