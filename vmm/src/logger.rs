//! Messages of the VMM, to standard error: few, because a guest can provoke them.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicU32, Ordering},
};

use log::{LevelFilter, Log, Metadata, Record};

/// Messages of a VM's whole life: beyond them it is silent, so that no guest can fill a disk.
const MAX_MESSAGES: u32 = 200;

struct StandardError {
    messages: AtomicU32,
}

impl Log for StandardError {
    fn enabled(&self, _metadata: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let count = self.messages.fetch_add(1, Ordering::Relaxed);
        if count < MAX_MESSAGES {
            print(format_args!("{}: {}", record.level(), record.args()));
        } else if count == MAX_MESSAGES {
            print(format_args!("no further messages after {MAX_MESSAGES}"));
        } else {
            // Keeps the counter from wrapping around.
            self.messages.store(MAX_MESSAGES + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Says something on standard error. Whoever read it may be gone, as a pool's daemon is that was
/// killed: its VMs live on, and must not panic for that.
pub fn print(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "hrun-vmm: {text}");
}

static LOGGER: StandardError = StandardError {
    messages: AtomicU32::new(0),
};

/// Sends messages to standard error, those of the level that `HRUN_LOG` names and above
/// (`error`, `warn`, `info`, `debug` or `trace`; `warn` without it).
pub fn install() {
    let level = std::env::var("HRUN_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Warn));
    }
}
