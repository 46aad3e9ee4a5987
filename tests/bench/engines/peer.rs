//! The runtimes that are compared.

use std::path::{Path, PathBuf};

use tests::client;

use crate::bed::Bed;

/// A runtime as containerd's shim is told of it.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// What it says of itself.
    pub(crate) version: String,
    /// Whether its containers come from hrun's pool.
    pub(crate) is_hrun: bool,
}

impl Peer {
    /// hrun first; whether the others are there is seen when they are run.
    pub(crate) fn all(bed: &Bed) -> [Self; 3] {
        [
            Self::new("hrun", bed.hrun(), true),
            Self::new("runc", "runc".into(), false),
            Self::new("crun", "crun".into(), false),
        ]
    }

    fn new(name: &'static str, program: PathBuf, is_hrun: bool) -> Self {
        Self {
            name,
            version: version(&program),
            program,
            is_hrun,
        }
    }
}

fn version(program: &Path) -> String {
    let said = client::run(&program.display().to_string(), ["--version"], &[], "");
    let line = said.ok().and_then(|done| {
        let line = done.stdout.lines().next()?;
        Some(line.to_owned())
    });
    line.unwrap_or_default()
}
