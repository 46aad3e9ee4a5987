//! The files of all layers together, as one tar archive: what `export` gives.

use std::io::Write;
use std::path::PathBuf;

use super::changes::join;
use super::error::DiffError;
use super::node::Node;
use super::stack::Stack;
use super::write::{Entries, Origin, origin};
use crate::{Limits, Progress};

/// Writes what the layers, topmost first, show together to `out`. Of the topmost layer the absolute
/// paths `ignored` do not count.
pub fn write_merged(
    layers: &[PathBuf],
    ignored: &[&str],
    out: impl Write,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<(), DiffError> {
    let stack = Stack::open(layers)?;
    let mut entries = Entries::new(out, limits, progress);
    entries.node(b"", &Node::root(stack.root(0))?, Origin::default())?;
    let is_ignored = |path: &[u8]| {
        ignored
            .iter()
            .any(|ignored| ignored.trim_matches('/').as_bytes() == path)
    };
    let mut count = 0u64;
    let mut pending = vec![(Vec::new(), stack.all())];
    while let Some((path, parts)) = pending.pop() {
        let directory = stack.directory(&path, &parts)?;
        let names = directory.names().map_err(DiffError::read("list", &path))?;
        let mut below = Vec::new();
        for name in names {
            let path = join(&path, &name);
            let look = |err| DiffError::read("look at", &path)(err);
            let found = if is_ignored(&path) {
                directory.lookup_without(0, &name).map_err(look)?
            } else {
                directory.lookup(&name).map_err(look)?
            };
            let Some(found) = found else {
                continue;
            };
            count += 1;
            if count > limits.entries {
                return Err(DiffError::TooManyEntries {
                    limit: limits.entries,
                });
            }
            let node = Node::read(directory.part(found.layer), &name, found.stat, &path)?;
            entries.node(&path, &node, origin(&node))?;
            if !found.parts.is_empty() {
                below.push((path, found.parts));
            }
        }
        pending.extend(below.into_iter().rev());
    }
    entries.finish()
}
