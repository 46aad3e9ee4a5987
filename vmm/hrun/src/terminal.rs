//! hrun's own terminal: raw mode, undone on every way out, and the size of the window.

use std::{
    io::{self, Read},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use agent_protocol::WindowSize;
use rustix::{
    fd::{AsFd, BorrowedFd},
    stdio,
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};

/// What a terminal has been since the seventies, for when there is none to ask.
const DEFAULT_SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// How standard input's terminal was before it became raw.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input's terminal passes every key on, until this is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            // A release build aborts at a panic: nothing is dropped.
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                report(info);
            }));
        });
        let original = tcgetattr(stdio::stdin())?;
        let mut raw = original.clone();
        raw.make_raw();
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
        let terminal = Self(());
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let original = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(original) = original {
        // Not "drain": that waits for ever on a terminal that was stopped with Ctrl-S. If it
        // fails the terminal is gone, and there is nothing to restore.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &original);
    }
}

/// Reads a line of standard input's terminal without showing it. Ctrl-C is an error.
pub(crate) fn read_secret() -> io::Result<Vec<u8>> {
    // Raw, so that Ctrl-C comes as a byte and the terminal is always restored.
    let _raw = RawTerminal::enter()?;
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        if input.read(&mut byte)? == 0 {
            return Ok(line);
        }
        if !edit(&mut line, byte[0])? {
            return Ok(line);
        }
    }
}

/// Does to a line what a key stands for; false at its end.
fn edit(line: &mut Vec<u8>, key: u8) -> io::Result<bool> {
    const CTRL_C: u8 = 0x03;
    const CTRL_D: u8 = 0x04;
    const CTRL_U: u8 = 0x15;
    const BACKSPACE: [u8; 2] = [0x08, 0x7f];
    match key {
        b'\r' | b'\n' | CTRL_D => return Ok(false),
        CTRL_C => return Err(io::ErrorKind::Interrupted.into()),
        CTRL_U => line.clear(),
        key if BACKSPACE.contains(&key) => {
            // A character may have several bytes.
            while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
        }
        key => line.push(key),
    }
    Ok(true)
}

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdio::stdin())
}

/// The size of the terminal that hrun has on any of its standard streams.
pub(crate) fn window_size() -> WindowSize {
    [stdio::stdin(), stdio::stdout(), stdio::stderr()]
        .into_iter()
        .find_map(size_of)
        .unwrap_or(DEFAULT_SIZE)
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<WindowSize> {
    let size = tcgetwinsize(terminal.as_fd()).ok()?;
    // Terminals that do not know say zero.
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_edited_as_a_line_is() {
        let mut line = Vec::new();
        for key in "wrong\u{15}pä\u{7f}ass\u{8}t".bytes() {
            assert!(edit(&mut line, key).unwrap());
        }
        assert_eq!(line, b"past");
        assert!(!edit(&mut line, b'\r').unwrap());
        let interrupted = edit(&mut line, 3).unwrap_err();
        assert_eq!(interrupted.kind(), io::ErrorKind::Interrupted);
    }
}
