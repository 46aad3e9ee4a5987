//! Warnings, to the kernel's log: there is no other place before a host listens, or when it
//! does not.
//!
//! Boundary: for what cannot be told to the host as the answer to a request.

use std::fmt::Arguments;
use std::fs::OpenOptions;
use std::io::Write;

/// A line in the kernel's log, at level `KERN_WARNING`.
pub(crate) fn warn(message: Arguments<'_>) {
    write("<4>", message);
}

/// A line in the kernel's log, at level `KERN_CRIT`.
pub(crate) fn critical(message: Arguments<'_>) {
    write("<2>", message);
}

fn write(level: &str, message: Arguments<'_>) {
    // Opened each time: it is rare, and a descriptor more is one more that could leak.
    let line = format!("{level}hrun-agent: {message}\n");
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(line.as_bytes());
    }
}
