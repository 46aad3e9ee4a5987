//! How the loading and pulling of an image looks: a bar for each blob on a terminal, notes otherwise.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use image::{Digest, Progress, Task};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{exit, table};

/// Digits of a digest that are shown.
const SHORT: usize = 12;

/// Bars on standard error, if that is a terminal.
pub(crate) struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
    /// Notes are for who sits at the terminal, if there is one.
    notes_for_terminal: bool,
}

impl Bars {
    /// Bars, or nothing at all if they are not wanted.
    pub(crate) fn new(shown: bool) -> Self {
        // On anything but a terminal indicatif draws nothing by itself.
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            bars: Mutex::default(),
            notes_for_terminal: false,
        }
    }

    /// Bars before a container runs, whose standard error will be the same: whatever reads that
    /// reads nothing of the pull.
    pub(crate) fn before_a_run() -> Self {
        Self {
            notes_for_terminal: true,
            ..Self::new(true)
        }
    }

    /// Says something above them; to a terminal only.
    pub(crate) fn say(&self, text: &str) {
        // A terminal that is gone needs no words.
        let _ = self.all.println(text);
    }

    /// Takes them off the terminal.
    pub(crate) fn clear(self) {
        // A terminal that is gone shows none either.
        let _ = self.all.clear();
    }

    fn with_bar(&self, what: &Digest, action: impl FnOnce(&ProgressBar)) {
        let bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get(what.digest()) {
            action(bar);
        }
    }
}

impl Progress for Bars {
    fn started(&self, what: &Digest, task: Task, total_bytes: u64) {
        let message = match task {
            Task::Download => "downloading",
            Task::Unpack => "unpacking",
            Task::Upload => "uploading",
        };
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get(what.digest()) {
            bar.reset();
            bar.set_length(total_bytes);
            bar.set_message(message);
            return;
        }
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:30}] {binary_bytes:>11}/{binary_total_bytes:<11} {msg}",
        )
        .expect("the template is valid")
        .progress_chars("=> ");
        let short: String = what.digest().chars().take(SHORT).collect();
        let bar = self.all.add(
            ProgressBar::new(total_bytes)
                .with_style(style)
                .with_prefix(short)
                .with_message(message),
        );
        bars.insert(what.digest().to_owned(), bar);
    }

    fn advanced(&self, what: &Digest, bytes: u64) {
        self.with_bar(what, |bar| bar.inc(bytes));
    }

    fn finished(&self, what: &Digest) {
        self.with_bar(what, |bar| bar.finish_with_message("done"));
    }

    fn note(&self, message: &str) {
        if self.notes_for_terminal && self.all.is_hidden() {
            return;
        }
        // The message may carry names from the archive.
        let line = format!("note: {}\n", table::printable(message));
        self.all.suspend(|| exit::print_error(&line));
    }
}
