//! The OOM score of the agent, which outlives what a twin does to it.
//!
//! The kernel keeps the scores of all processes that share a memory the same. A twin that sets its
//! own therefore sets the agent's and those of the waiting twins, too: they get theirs back once
//! the twin has executed its program and with that left their memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use agent_protocol::Attributes;
use rustix::fs::OFlags;

use super::open_own;
use crate::file_system::NewFileSystem;
use crate::log;

/// What the agent's score is, to be set again when this is dropped.
#[derive(Debug)]
pub(super) struct KeptScore {
    file: File,
    score: Vec<u8>,
}

impl KeptScore {
    /// Reads it. The containers' `/proc` do not show the agent, and it has none of its own.
    pub(super) fn read() -> io::Result<Self> {
        let proc = NewFileSystem {
            kind: "proc",
            name: "proc",
            options: "",
        };
        let proc = proc.mount(Attributes::default(), None)?;
        let mut file = File::from(open_own(proc.as_fd(), c"self/oom_score_adj", OFlags::RDWR)?);
        let mut score = Vec::new();
        file.read_to_end(&mut score)?;
        Ok(Self { file, score })
    }

    fn restore(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.score)
    }
}

impl Drop for KeptScore {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            log::warn(format_args!("Failed to restore the OOM score: {error}"));
        }
    }
}
