//! The check of a template's memory, once for each start of the host: it is read through and
//! compared with its checksums, and what it looked like then is noted. Whoever writes to the file
//! afterwards changes that.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vmm::snapshot::{self, Identity, SnapshotError};

use super::{Template, TemplateError, failed};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is noted. Another file, another content or another start of the host is something else.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trusted {
    boot_id: String,
    memory: Identity,
}

impl Trusted {
    fn now(template: &Template) -> Result<Self, TemplateError> {
        Ok(Self {
            boot_id: fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?,
            memory: Identity::of_memory(&template.dir)?,
        })
    }
}

fn note(state: &Path, template: &Template) -> PathBuf {
    state.join(format!("{}.trusted", template.key))
}

/// Checks a template's memory unless that was done already.
pub(super) fn establish(state: &Path, template: &Template) -> Result<(), TemplateError> {
    let path = note(state, template);
    let now = Trusted::now(template)?;
    let noted = fs::read(&path).ok();
    if noted.and_then(|json| serde_json::from_slice(&json).ok()) == Some(now) {
        return Ok(());
    }
    // What it looks like before it is read counts: a write meanwhile is one afterwards.
    let now = Trusted::now(template)?;
    if !now.memory.is_read_only() {
        return Err(TemplateError::Snapshot(SnapshotError::Damaged {
            path: template.dir.join("memory"),
            problem: "somebody made it writable".into(),
        }));
    }
    let snapshot = snapshot::read(&template.dir)?;
    snapshot::verify_memory(&template.dir, &snapshot)?;
    let write = || {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut new = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&mut new, &now)?;
        new.persist(&path)?;
        Ok(())
    };
    write().map_err(failed("write", &path))
}

/// Forgets that a template was checked.
pub(super) fn withdraw(state: &Path, template: &Template) -> Result<(), TemplateError> {
    let path = note(state, template);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &path)(error))
        }
        _ => Ok(()),
    }
}
