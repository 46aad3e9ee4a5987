//! What the shim can be asked for as long as the container's program does not run: to start it, or
//! to give it up.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Longest line, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// How long somebody may take to say what he wants.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    Start,
    /// End, as if this signal had ended the program.
    End(i32),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Failed { text: String, status: u8 },
}

/// An order that was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("Failed to reach the container's shim through {path}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("The container's shim ended without an answer")]
    Silent,
    #[error("{text}")]
    Failed { text: String, status: u8 },
}

/// Gives an order and waits for the answer.
pub(crate) fn give(
    socket: &Path,
    order: Order,
    timeout: Option<Duration>,
) -> Result<(), OrderError> {
    let ask = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(timeout)?;
        send(&stream, &order)?;
        receive(&stream)
    };
    match ask() {
        Ok(Some(Answer::Done)) => Ok(()),
        Ok(Some(Answer::Failed { text, status })) => Err(OrderError::Failed { text, status }),
        Ok(None) => Err(OrderError::Silent),
        Err(source) => Err(OrderError::Connect {
            path: socket.into(),
            source,
        }),
    }
}

/// Takes the next order; none if whoever came had nothing to say.
pub(crate) fn take(listener: &UnixListener) -> io::Result<Option<(Order, Client)>> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(ORDER_TIMEOUT))?;
    let order = receive(&stream).ok().flatten();
    Ok(order.map(|order| (order, Client(stream))))
}

/// Who gave an order.
#[derive(Debug)]
pub(crate) struct Client(UnixStream);

impl Client {
    /// Answers. Who does not wait for it loses nothing.
    pub(crate) fn answer(&self, answer: &Answer) {
        let _ = send(&self.0, answer);
    }
}

fn send(mut stream: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> io::Result<Option<T>> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line).ok())
}

/// Writes the number of a process where the engine waits for it: in whole, or not at all.
pub(crate) fn write_pid(path: &Path, pid: u32) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let new = parent.join(format!(".{}.new", name.to_string_lossy()));
    File::create(&new)?.write_all(pid.to_string().as_bytes())?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn an_order_gets_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        let listener = UnixListener::bind(&path).unwrap();
        let shim = thread::spawn(move || {
            let (order, client) = take(&listener).unwrap().unwrap();
            assert_eq!(order, Order::Start);
            client.answer(&Answer::Failed {
                text: "no".into(),
                status: 127,
            });
            // Somebody who says nothing sensible.
            assert!(take(&listener).unwrap().is_none());
        });
        let refused = give(&path, Order::Start, None).unwrap_err();
        assert!(matches!(refused, OrderError::Failed { status: 127, .. }));
        let mut stranger = UnixStream::connect(&path).unwrap();
        stranger.write_all(b"hello\n").unwrap();
        shim.join().unwrap();
        let gone = give(&path, Order::End(15), None).unwrap_err();
        assert!(matches!(gone, OrderError::Connect { .. }));
    }

    #[test]
    fn a_pid_file_is_there_in_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid(&path, 42).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "42");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
