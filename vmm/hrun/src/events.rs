//! What happens to containers and images, for `hrun events`: a line of JSON for each event, which
//! whoever makes it happen appends.
//!
//! ```text
//! HRUN_STATE/events.json, events.json.1 (older)
//! {"time":1764360000000000000,"kind":"container","action":"start","id":"4f...","attributes":{...}}
//! ```
//!
//! No event is worth a failure: one that cannot be written is lost.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{dirs::Dirs, time};

/// Name of the newest file.
pub(crate) const FILE: &str = "events.json";
const OLDER_FILE: &str = "events.json.1";

/// How large a file becomes before another one is begun, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// What it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Container,
    Image,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When, in nanoseconds since the Unix epoch.
    pub(crate) time: i64,
    pub(crate) kind: Kind,
    /// docker's word for it.
    pub(crate) action: String,
    /// The container's identifier, or the image's name.
    pub(crate) id: String,
    /// What else is to be known.
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Event {
    /// One that happens now.
    pub(crate) fn now(kind: Kind, action: &str, id: &str, attributes: &[(&str, &str)]) -> Self {
        let attribute = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            time: time::now_ns(),
            kind,
            action: action.into(),
            id: id.into(),
            attributes: attributes.iter().map(attribute).collect(),
        }
    }

    /// Writes it down in the state directory.
    pub(crate) fn tell(&self, state: &Path) {
        // See above.
        let _ = append(state, self);
    }
}

/// Writes down what happened to an image.
pub(crate) fn image(action: &str, name: &impl ToString) {
    if let Ok(dirs) = Dirs::from_env() {
        let name = name.to_string();
        Event::now(Kind::Image, action, &name, &[("name", &name)]).tell(&dirs.state);
    }
}

fn append(state: &Path, event: &Event) -> io::Result<()> {
    let path = state.join(FILE);
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    // Who only deals with images may be the first.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)?;
    let mut file = open(&path)?;
    if file.metadata()?.len() >= MAX_SIZE {
        rotate(&file, state)?;
        file = open(&path)?;
    }
    // In one piece, wherever the others are.
    file.write_all(&line)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Makes a full file the older one, unless somebody else is about to or has.
fn rotate(full: &File, state: &Path) -> io::Result<()> {
    let path = state.join(FILE);
    if full.try_lock().is_ok() && fs::metadata(&path)?.ino() == full.metadata()?.ino() {
        fs::rename(path, state.join(OLDER_FILE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotated::Reader;

    fn all(state: &Path) -> Vec<Event> {
        let mut reader = Reader::open(state, FILE, false).unwrap();
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn an_event_survives_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let event = Event::now(Kind::Container, "die", "4f", &[("exitCode", "3")]);
        event.tell(dir.path());
        Event::now(Kind::Image, "pull", "busybox", &[]).tell(dir.path());
        let events = all(dir.path());
        assert_eq!(events[0], event);
        assert_eq!(events[1].kind, Kind::Image);
        assert_eq!(events.len(), 2);
    }

    #[test]
    fn the_files_are_bounded_and_the_newest_events_stay() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(64 << 10);
        for number in 0..50 {
            let attributes = [("long", long.as_str()), ("number", &number.to_string())];
            Event::now(Kind::Container, "exec_start", "4f", &attributes).tell(dir.path());
        }
        let events = all(dir.path());
        assert_eq!(events.last().unwrap().attributes["number"], "49");
        assert!(events.len() >= 16, "{}", events.len());
        let size: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size < 3 * MAX_SIZE, "{size}");
    }

    #[test]
    fn nothing_fails_where_nothing_can_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        Event::now(Kind::Image, "pull", "busybox", &[]).tell(&file.path().join("state"));
    }
}
