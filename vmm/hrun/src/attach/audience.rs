//! The owner's side: takes watchers on, tells all of them what the process says, and the process
//! what they type.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    INPUT, OUTPUT,
    frame::{self, Kind, WELCOME},
};
use crate::agent::acknowledgement;

/// Who takes nothing for so long is let go: a container must not stand still for ever because
/// somebody stopped to look.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long somebody who connects may take to say what he wants.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Most watchers at a time: each has a thread.
const MAX_WATCHERS: usize = 64;

const CHUNK: usize = 64 << 10;

/// What watchers may do to the standard input of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// It has none.
    None,
    /// Write there. It stays open when they are done.
    Open,
    /// The first who is done with it ends it.
    Once,
}

/// Those who watch a container.
#[derive(Debug)]
pub(crate) struct Audience {
    input: Input,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watchers: Vec<UnixStream>,
    /// Whether there ever was one.
    any: bool,
    ended: bool,
    stdin: Stdin,
}

/// The process's standard input.
#[derive(Debug, Default)]
enum Stdin {
    /// The process is yet to be started.
    #[default]
    Expected,
    Connected(Arc<UnixStream>),
    Closed,
}

impl Audience {
    /// Begins to take watchers on at a socket.
    pub(crate) fn open(path: &Path, input: Input) -> io::Result<Arc<Self>> {
        let listener = UnixListener::bind(path)?;
        let audience = Arc::new(Self {
            input,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&audience);
        thread::Builder::new()
            .name("watchers".into())
            .spawn(move || {
                for watcher in listener.incoming() {
                    match watcher {
                        Ok(watcher) => own.admit(watcher),
                        // Too many open files, for instance: the container matters more.
                        Err(_) => thread::sleep(Duration::from_millis(100)),
                    }
                }
            })?;
        Ok(audience)
    }

    /// Waits for the first watcher, who must not miss a word; but not for ever.
    pub(crate) fn await_first(&self, timeout: Duration) {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| !state.any);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The process's standard input is connected; with `acknowledged` the VMM's line is somebody
    /// else's to read.
    pub(crate) fn connect_input(
        self: &Arc<Self>,
        mut stdin: UnixStream,
        acknowledged: bool,
    ) -> io::Result<()> {
        if self.input == Input::None {
            return Ok(());
        }
        let own = Arc::clone(self);
        let connect = move || {
            let connected = acknowledged || acknowledgement(&mut stdin).is_ok();
            own.lock().stdin = if connected {
                Stdin::Connected(Arc::new(stdin))
            } else {
                Stdin::Closed
            };
            own.changed.notify_all();
        };
        thread::Builder::new()
            .name("standard input".into())
            .spawn(connect)
            .map(drop)
    }

    /// The process said something, to its standard output or error.
    pub(crate) fn say(&self, is_error: bool, bytes: &[u8]) {
        let kind = if is_error { Kind::Stderr } else { Kind::Stdout };
        self.tell(kind, bytes);
    }

    /// All is over, with this status if there is one: watchers hear it and are let go.
    pub(crate) fn end(&self, code: Option<u8>) {
        if let Some(code) = code {
            self.tell(Kind::Exit, &[code]);
        }
        let mut state = self.lock();
        state.ended = true;
        state.stdin = Stdin::Closed;
        for watcher in state.watchers.drain(..) {
            dismiss(&watcher);
        }
        self.changed.notify_all();
    }

    /// Another process follows the one that has ended.
    pub(crate) fn begin_again(&self) {
        *self.lock() = State::default();
    }

    fn tell(&self, kind: Kind, bytes: &[u8]) {
        let mut state = self.lock();
        if state.watchers.is_empty() {
            return;
        }
        let frame = frame::encode(kind, bytes);
        state.watchers.retain_mut(|watcher| {
            let told = watcher.write_all(&frame).is_ok();
            if !told {
                dismiss(watcher);
            }
            told
        });
    }

    /// Gives a watcher a thread of his own.
    fn admit(self: &Arc<Self>, watcher: UnixStream) {
        let own = Arc::clone(self);
        // Without a thread he is let go, by dropping the connection.
        let _ = thread::Builder::new()
            .name("watcher".into())
            .spawn(move || {
                // Whatever failed, he is let go and everybody else goes on.
                let _ = own.attend(watcher);
            });
    }

    fn attend(&self, mut watcher: UnixStream) -> io::Result<()> {
        watcher.set_read_timeout(Some(HELLO_TIMEOUT))?;
        watcher.set_write_timeout(Some(PATIENCE))?;
        let mut hello = [0];
        watcher.read_exact(&mut hello)?;
        watcher.set_read_timeout(None)?;
        let types = match hello[0] {
            INPUT => self.input != Input::None,
            OUTPUT => false,
            _ => return Ok(()),
        };
        let mut told = watcher.try_clone()?;
        {
            let mut state = self.lock();
            if state.ended || state.watchers.len() >= MAX_WATCHERS {
                return Ok(());
            }
            told.write_all(&WELCOME)?;
            state.watchers.push(told);
            state.any = true;
            self.changed.notify_all();
        }
        if types {
            self.pass_input(watcher)?;
        }
        Ok(())
    }

    /// Carries what a watcher types to the process.
    fn pass_input(&self, mut watcher: UnixStream) -> io::Result<()> {
        let Some(stdin) = self.stdin() else {
            return Ok(());
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = match watcher.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // He is gone, in an orderly way or not.
                read => read.unwrap_or(0),
            };
            if length == 0 {
                if self.input == Input::Once {
                    stdin.shutdown(Shutdown::Write)?;
                }
                return Ok(());
            }
            // It fails if the process no longer reads: its good right.
            (&*stdin).write_all(&chunk[..length])?;
        }
    }

    /// The standard input, once the process has it.
    fn stdin(&self) -> Option<Arc<UnixStream>> {
        let state = self
            .changed
            .wait_while(self.lock(), |state| matches!(state.stdin, Stdin::Expected))
            .unwrap_or_else(PoisonError::into_inner);
        match &state.stdin {
            Stdin::Connected(stdin) => Some(Arc::clone(stdin)),
            Stdin::Expected | Stdin::Closed => None,
        }
    }

    /// Nothing panics with the lock held, and if it did the state would still be good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dismiss(watcher: &UnixStream) {
    // If it fails he is gone already.
    let _ = watcher.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(path: &Path, hello: u8) -> UnixStream {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(&[hello]).unwrap();
        stream
    }

    fn audience(input: Input) -> (tempfile::TempDir, std::path::PathBuf, Arc<Audience>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attach");
        let audience = Audience::open(&path, input).unwrap();
        (dir, path, audience)
    }

    #[test]
    fn a_watcher_hears_what_is_said_and_how_it_ended() {
        let (_dir, path, audience) = audience(Input::None);
        let mut watcher = connect(&path, OUTPUT);
        audience.await_first(Duration::from_secs(20));
        audience.say(false, b"out");
        audience.say(true, b"err");
        audience.end(Some(5));
        let mut heard = Vec::new();
        watcher.read_to_end(&mut heard).unwrap();
        let mut expected = WELCOME.to_vec();
        expected.extend(frame::encode(Kind::Stdout, b"out"));
        expected.extend(frame::encode(Kind::Stderr, b"err"));
        expected.extend(frame::encode(Kind::Exit, &[5]));
        assert_eq!(heard, expected);
        // Who comes too late is let go.
        let mut late = connect(&path, OUTPUT);
        assert_eq!(late.read_to_end(&mut Vec::new()).unwrap(), 0);
    }

    #[test]
    fn input_typed_early_arrives_and_ends_as_was_agreed() {
        let (_dir, path, audience) = audience(Input::Once);
        let mut watcher = connect(&path, INPUT);
        watcher.write_all(b"early").unwrap();
        watcher.shutdown(Shutdown::Write).unwrap();
        let (process, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"OK 3\n").unwrap();
        audience
            .connect_input(process.try_clone().unwrap(), false)
            .unwrap();
        let mut typed = String::new();
        guest.read_to_string(&mut typed).unwrap();
        assert_eq!(typed, "early");
    }

    #[test]
    fn one_watchers_end_of_input_is_not_the_next_ones() {
        let (_dir, path, audience) = audience(Input::Open);
        let (process, mut guest) = UnixStream::pair().unwrap();
        audience.connect_input(process, true).unwrap();
        for word in [b"one", b"two"] {
            let mut watcher = connect(&path, INPUT);
            // Who goes before he was welcomed was never there.
            let mut welcome = WELCOME;
            watcher.read_exact(&mut welcome).unwrap();
            watcher.write_all(word).unwrap();
            drop(watcher);
            let mut typed = [0; 3];
            guest.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, word);
        }
    }

    #[test]
    fn a_hello_that_is_none_gets_nothing() {
        let (_dir, path, audience) = audience(Input::None);
        let mut stranger = connect(&path, b'x');
        assert_eq!(stranger.read_to_end(&mut Vec::new()).unwrap(), 0);
        assert!(!audience.lock().any);
    }
}
