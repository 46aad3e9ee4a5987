//! The log of a container that runs in the background: docker's json-file format, a line of JSON
//! for each line of output, in files that are rotated before they grow too large.
//!
//! ```text
//! HRUN_STORE/containers/ID/log.json, log.json.1 (older), ...
//! {"log":"hello\n","stream":"stdout","time":"2026-01-31T12:00:00.000000000Z"}
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    options::size::{self, SizeError},
    time,
};

/// Name of the newest file.
pub(crate) const FILE: &str = "log.json";

/// Longest line of output in one entry, in bytes, as docker has it: what is longer continues in
/// the next one.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// What fits one file and how many there are, unless the user says otherwise: a container must not
/// fill the host's disk.
const MAX_SIZE: u64 = 10 << 20;
const MAX_FILES: u32 = 3;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogOptions {
    /// Bytes of one file.
    pub(crate) max_size: u64,
    /// Files, the one that is written among them.
    pub(crate) max_files: u32,
}

/// A `--log-opt` that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LogOptionError {
    #[error("Unknown log option {0:?}: max-size=SIZE and max-file=NUMBER are known")]
    Unknown(String),
    #[error("Invalid log option {0:?}")]
    Size(String, #[source] SizeError),
    #[error("Invalid log option {0:?}: it must be 1 to 1000")]
    Files(String),
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            max_size: MAX_SIZE,
            max_files: MAX_FILES,
        }
    }
}

impl LogOptions {
    /// Reads the values of `--log-opt`.
    pub(crate) fn parse(options: &[String]) -> Result<Self, LogOptionError> {
        let mut parsed = Self::default();
        for option in options {
            match option.split_once('=') {
                // docker's word for no limit.
                Some(("max-size", "-1")) => parsed.max_size = u64::MAX,
                Some(("max-size", value)) => {
                    parsed.max_size = size::parse(value)
                        .map_err(|error| LogOptionError::Size(option.clone(), error))?;
                }
                Some(("max-file", value)) => {
                    let files = value
                        .parse()
                        .ok()
                        .filter(|files| (1..=1000).contains(files));
                    parsed.max_files = files.ok_or(LogOptionError::Files(option.clone()))?;
                }
                _ => return Err(LogOptionError::Unknown(option.clone())),
            }
        }
        Ok(parsed)
    }
}

/// Something that a container said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Entry {
    /// As it was said, with the end of its line if it had one.
    pub(crate) log: String,
    pub(crate) stream: String,
    /// RFC 3339.
    pub(crate) time: String,
}

impl Entry {
    /// When it was said, in nanoseconds since the Unix epoch.
    pub(crate) fn time_ns(&self) -> i64 {
        time::rfc3339(&self.time).unwrap_or(0)
    }
}

/// A log that is written.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    options: LogOptions,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// Something could not be written, and the file may end in the middle of a line.
    broken: bool,
}

/// An entry as it is written.
#[derive(Serialize)]
struct Line<'a> {
    log: &'a str,
    stream: &'a str,
    time: &'a str,
}

impl Log {
    /// Opens the log of the container in `dir`, to write behind what is there.
    pub(crate) fn open(dir: &Path, options: LogOptions) -> io::Result<Self> {
        let path = dir.join(FILE);
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            options,
            open: Mutex::new(Open {
                file,
                size,
                // A host that lost its power may have left half a line.
                broken: size > 0,
            }),
        })
    }

    /// Writes an entry. One that finds the disk full is lost: the container shall not suffer.
    fn write(&self, stream: &str, text: &[u8]) {
        let line = Line {
            log: &String::from_utf8_lossy(text),
            stream,
            time: &time::format_ns(time::now_ns()),
        };
        let Ok(mut bytes) = serde_json::to_vec(&line) else {
            return;
        };
        bytes.push(b'\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if open.size > 0 && open.size.saturating_add(length) > self.options.max_size {
            // The same file goes on if that fails.
            if let Ok(file) = self.rotate() {
                *open = Open {
                    file,
                    size: 0,
                    broken: false,
                };
            }
        }
        if std::mem::take(&mut open.broken) {
            bytes.insert(0, b'\n');
        }
        match open.file.write_all(&bytes) {
            Ok(()) => open.size += length,
            Err(_) => open.broken = true,
        }
    }

    fn rotate(&self) -> io::Result<File> {
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            _ => self.path.with_file_name(format!("{FILE}.{number}")),
        };
        for number in (1..self.options.max_files).rev() {
            match fs::rename(numbered(number - 1), numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.options.max_files == 1 {
            fs::remove_file(&self.path)?;
        }
        append(&self.path)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// One stream on its way into a log, put together into lines.
#[derive(Debug)]
pub(crate) struct LogStream {
    log: std::sync::Arc<Log>,
    name: &'static str,
    line: Vec<u8>,
}

impl LogStream {
    pub(crate) fn new(log: std::sync::Arc<Log>, name: &'static str) -> Self {
        Self {
            log,
            name,
            line: Vec::new(),
        }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.line.len();
            let window = &bytes[..bytes.len().min(room)];
            let (taken, complete) = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (window.len(), window.len() == room),
            };
            self.line.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if complete {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.log.write(self.name, &self.line);
            self.line.clear();
        }
    }
}

/// What has no end of line at its end is an entry as well.
impl Drop for LogStream {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
