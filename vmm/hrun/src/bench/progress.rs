//! How a benchmark tells where it is: a bar on a terminal, a line for each part otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::exit;

/// The bar.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    shown: bool,
    lines: bool,
}

impl Progress {
    /// A bar on standard error; nothing at all if it is not wanted.
    pub(crate) fn new(shown: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if shown && terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{elapsed_precise} [{bar:24}] {prefix}: {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        Self {
            bar: ProgressBar::with_draw_target(Some(1), target).with_style(style),
            shown,
            lines: shown && !terminal,
        }
    }

    /// A part begins, which has so many steps.
    pub(crate) fn part(&self, name: &str, steps: usize) {
        self.bar.set_prefix(name.to_owned());
        self.bar.set_message("");
        self.bar.set_position(0);
        self.bar.set_length(steps as u64);
        if self.lines {
            exit::print_error(&format!("hrun bench: {name}\n"));
        }
    }

    /// A step of it begins.
    pub(crate) fn step(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    /// Says something that stays.
    pub(crate) fn note(&self, text: &str) {
        if self.shown {
            self.bar
                .suspend(|| exit::print_error(&format!("hrun bench: {text}\n")));
        }
    }

    /// Nothing more to come.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
