//! A script in the place of `hrun-vmm`, for tests: it loads at once and waits for its lifeline to
//! close.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Pid;

use super::{
    class::PoolClass,
    loader::{Loader, Source, SourceError},
};
use crate::template::{Class, Template, TemplateError};

pub(super) const CLASS: PoolClass = PoolClass::any(Class {
    cpus: 1,
    memory: 256 << 20,
});
pub(super) const OTHER_CLASS: PoolClass = PoolClass::any(Class {
    cpus: 2,
    memory: 1 << 30,
});

/// What the kernel's file says at first.
pub(super) const KEY: &str = "5e1f";

const SCRIPT: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --config-fd) channel=$2; shift ;;
        --lifeline-fd) lifeline=$2; shift ;;
    esac
    shift
done
[ -e "${0%/*}/broken" ] && { echo "hrun-vmm: broken" >&2; exit "$(cat "${0%/*}/broken")"; }
eval "echo '{\"event\":\"loaded\"}' >&$channel"
eval "read _ <&$lifeline"
"#;

/// The script, and what its templates are made from.
#[derive(Debug)]
pub(super) struct FakeVmm {
    dir: tempfile::TempDir,
}

/// Makes templates that are empty directories.
struct FakeTemplates {
    dir: PathBuf,
}

impl FakeVmm {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Self { dir };
        // Copied by another process: a file that this one has open for writing, if only for a
        // moment in a test that forks, cannot be executed.
        let script = fake.dir().join("script");
        fs::write(&script, SCRIPT).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let copied = Command::new("cp").arg(&script).arg(fake.vmm()).status();
        assert!(copied.unwrap().success());
        fake.has_kernel(KEY);
        fake
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn vmm(&self) -> PathBuf {
        self.dir().join("hrun-vmm")
    }

    pub(super) fn template(&self) -> PathBuf {
        self.dir().join("template")
    }

    /// From now on templates have this key.
    pub(super) fn has_kernel(&self, key: &str) {
        fs::write(self.dir().join("kernel"), key).unwrap();
    }

    /// From now on it fails to load, with this status.
    pub(super) fn breaks(&self, status: u8) {
        fs::write(self.dir().join("broken"), status.to_string()).unwrap();
    }

    /// From now on it loads again.
    pub(super) fn works(&self) {
        fs::remove_file(self.dir().join("broken")).unwrap();
    }

    /// Loads this one.
    pub(super) fn loader(&self) -> Loader {
        let dir = self.dir().to_owned();
        Loader::new(self.vmm(), Box::new(FakeTemplates { dir }))
    }

    /// Those of its processes that live.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let script = self.vmm();
        let script = script.as_os_str().as_encoded_bytes();
        let runs_it = |pid: Pid| {
            // What is left of a process that has ended has no command line.
            let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
            fs::read(path).is_ok_and(|line| line.split(|byte| *byte == 0).any(|arg| arg == script))
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .filter(|pid| runs_it(*pid))
            .collect()
    }
}

impl Source for FakeTemplates {
    fn key(&self, _class: PoolClass) -> Result<String, SourceError> {
        Ok(fs::read_to_string(self.dir.join("kernel")).unwrap())
    }

    fn get_or_make(&self, class: PoolClass) -> Result<Template, SourceError> {
        let dir = self.dir.join("template");
        fs::create_dir_all(&dir).unwrap();
        let key = self.key(class)?;
        Ok(Template {
            key,
            dir,
            class: class.vm,
        })
    }

    fn discard(&self, template: &Template) -> Result<(), TemplateError> {
        fs::remove_dir(&template.dir).unwrap();
        Ok(())
    }
}
