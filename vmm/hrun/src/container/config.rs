//! What a container is to be, `config.json`: all that is needed to start it again, or to start a
//! further process in it. Written when the container is made, and by `hrun update`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{ContainerError, Containers, Record};
use crate::{
    log::LogOptions,
    restart::RestartPolicy,
    spec::{Process, RunOptions},
};

const VERSION: u32 = 1;
const FILE: &str = "config.json";
const NEW_FILE: &str = "config.json.new";

/// A container as it was asked for, with what its image said at that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    version: u32,
    pub(crate) options: RunOptions,
    pub(crate) process: Process,
    /// How it is asked to end.
    pub(crate) stop_signal: i32,
    /// Seconds that it is then given, if its user said so; forever if negative.
    pub(crate) stop_timeout: Option<i64>,
    /// What becomes of its output when nobody is there to take it.
    pub(crate) log: LogOptions,
    /// Whether the first who is done with its standard input ends it, as docker has it for what was
    /// not made in the background.
    #[serde(default)]
    pub(crate) stdin_once: bool,
    /// Whether it is started again when its command ends.
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
}

impl Config {
    pub(crate) fn new(
        options: RunOptions,
        process: Process,
        stop_signal: i32,
        stop_timeout: Option<i64>,
        log: LogOptions,
    ) -> Self {
        Self {
            version: VERSION,
            options,
            process,
            stop_signal,
            stop_timeout,
            log,
            stdin_once: false,
            restart: RestartPolicy::No,
        }
    }

    /// Its host name, in the container of this record.
    pub(crate) fn hostname(&self, record: &Record) -> String {
        let given = self.options.hostname.clone();
        given.unwrap_or_else(|| record.id.short().to_owned())
    }

    /// Writes it into a container's directory; `keep` if a power cut must not take it away.
    pub(super) fn write(&self, dir: &Path, keep: bool) -> io::Result<()> {
        let new = dir.join(NEW_FILE);
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if keep {
            file.sync_all()?;
        }
        fs::rename(new, dir.join(FILE))
    }

    /// Reads the one of a container's directory, if there is one that this hrun understands.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let json = match fs::read(dir.join(FILE)) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let config = serde_json::from_slice::<Self>(&json).ok();
        Ok(config.filter(|config| config.version == VERSION))
    }
}

impl Containers {
    /// What a container is to be.
    pub(crate) fn config(&self, record: &Record) -> Result<Config, ContainerError> {
        let dir = self.store.join(record.id.as_str());
        match Config::read(&dir) {
            Ok(Some(config)) => Ok(config),
            Ok(None) => Err(ContainerError::NoConfig(record.name.clone())),
            Err(source) => Err(ContainerError::Read { path: dir, source }),
        }
    }

    /// Has a container be something else: its policies at once, the rest from its next start on.
    pub(crate) fn reconfigure(
        &self,
        record: &Record,
        edit: impl FnOnce(&mut Config),
    ) -> Result<(), ContainerError> {
        let _lock = self.lock()?;
        let mut config = self.config(record)?;
        edit(&mut config);
        let path = self.store.join(record.id.as_str());
        config
            .write(&path, !record.auto_remove)
            .map_err(|source| ContainerError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_survives_the_way_to_disk_and_another_version_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::read(dir.path()).unwrap(), None);
        let options = RunOptions {
            command: vec!["sh".into()],
            ..RunOptions::default()
        };
        let process = Process::resolve(&options, None).unwrap();
        let mut config = Config::new(options, process, 15, Some(3), LogOptions::default());
        config.write(dir.path(), true).unwrap();
        assert_eq!(Config::read(dir.path()).unwrap(), Some(config.clone()));
        config.version += 1;
        config.write(dir.path(), false).unwrap();
        assert_eq!(Config::read(dir.path()).unwrap(), None);
    }
}
