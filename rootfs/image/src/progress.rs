//! What a load reports while it works; how that looks is the caller's business.

use oci_spec::image::Digest;

/// What is done with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// It comes from a registry.
    Download,
    /// It is verified and unpacked.
    Unpack,
    /// It goes to a registry.
    Upload,
}

/// Receives the progress of one [`Store::load`](crate::Store::load),
/// [`Store::pull`](crate::Store::pull) or [`Store::push`](crate::Store::push).
///
/// Calls may come from several threads. `()` is the silent implementation.
pub trait Progress: Sync {
    /// Work on the blob `what` begins, or begins again; it is `total_bytes` long as stored
    /// (compressed).
    fn started(&self, what: &Digest, task: Task, total_bytes: u64);
    /// `bytes` more of `what` were received, or read.
    fn advanced(&self, what: &Digest, bytes: u64);
    /// `what` is verified and needs no more work.
    fn finished(&self, what: &Digest);
    /// Something the user may want to know, such as an entry that was left out.
    fn note(&self, message: &str);
}

impl Progress for () {
    fn started(&self, _what: &Digest, _task: Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &Digest, _bytes: u64) {}
    fn finished(&self, _what: &Digest) {}
    fn note(&self, _message: &str) {}
}

/// How many notes one image may cause: a hostile archive could name millions of entries.
const MAX_NOTES: usize = 50;

/// Passes notes on until there are too many, then counts.
pub(crate) struct Notes<'a> {
    progress: &'a dyn Progress,
    seen: usize,
}

impl<'a> Notes<'a> {
    pub(crate) fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, seen: 0 }
    }

    /// Reports what `message` makes, unless the limit is reached.
    pub(crate) fn add(&mut self, message: impl FnOnce() -> String) {
        if self.seen < MAX_NOTES {
            self.progress.note(&message());
        }
        self.seen += 1;
    }
}

impl Drop for Notes<'_> {
    fn drop(&mut self) {
        if self.seen > MAX_NOTES {
            self.progress
                .note(&format!("and {} more such entries", self.seen - MAX_NOTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Recorder(Mutex<Vec<String>>);

    impl Progress for Recorder {
        fn started(&self, _what: &Digest, _task: Task, _total_bytes: u64) {}
        fn advanced(&self, _what: &Digest, _bytes: u64) {}
        fn finished(&self, _what: &Digest) {}
        fn note(&self, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
    }

    #[test]
    fn notes_beyond_the_limit_are_counted_not_repeated() {
        let recorder = Recorder(Mutex::default());
        let mut notes = Notes::new(&recorder);
        for n in 0..MAX_NOTES + 7 {
            notes.add(|| format!("note {n}"));
        }
        drop(notes);
        let seen = recorder.0.into_inner().unwrap();
        assert_eq!(seen.len(), MAX_NOTES + 1);
        assert_eq!(seen[MAX_NOTES], "and 7 more such entries");
    }
}
