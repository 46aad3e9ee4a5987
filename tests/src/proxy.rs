//! A proxy in front of a registry that does what networks and servers do wrong.
//!
//! It speaks as much HTTP as is needed for that: one request for each connection, of which it may
//! change the answer. As a proxy that clients know of it connects everybody with that registry.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

/// The first byte of a TLS handshake: hrun tries whether localhost speaks it.
const TLS_HANDSHAKE: u8 = 0x16;
const BUFFER: usize = 16 << 10;

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(u64),
    /// So many bytes of the body come, and then nothing, but the connection stays.
    Stall(u64),
    /// One bit of this byte of the body is flipped.
    Flip(u64),
    /// Another answer, with these lines in its head.
    Status(u16, &'static str),
    /// Some KiB of the body come each time this has passed.
    Slow(Duration),
    /// Ranges that are asked for are not heard of.
    NoRanges,
}

/// A request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The path that was asked for.
    pub path: String,
    /// The first byte that was asked for, if it was for a range.
    pub range: Option<u64>,
    /// How many requests for this path came before.
    pub earlier: usize,
}

impl Request {
    /// Whether it is about a layer or a configuration.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// The proxy. Dropping it ends it; connections end with their clients.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens in front of the registry on `target`, and asks `fault` what shall go wrong.
    ///
    /// # Errors
    ///
    /// No port is free, or no thread.
    pub fn start(
        target: u16,
        fault: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static,
    ) -> Result<Self> {
        let socket = TcpListener::bind("127.0.0.1:0").context("Failed to listen")?;
        let port = socket.local_addr().context("Failed to listen")?.port();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let ended = Arc::<AtomicBool>::default();
        let fault: Arc<FaultOf> = Arc::new(fault);
        let (log, end) = (Arc::clone(&seen), Arc::clone(&ended));
        let listen = move || {
            for client in socket.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (log, fault, end) = (Arc::clone(&log), Arc::clone(&fault), Arc::clone(&end));
                let serve = move || {
                    // What breaks is what tests are about.
                    let _ = client.and_then(|client| serve(&client, target, &log, &*fault, &end));
                };
                let _ = thread::Builder::new().name("proxied".into()).spawn(serve);
            }
        };
        let listener = thread::Builder::new()
            .name("proxy".into())
            .spawn(listen)
            .context("Failed to start a thread")?;
        Ok(Self {
            port,
            seen,
            ended,
            listener: Some(listener),
        })
    }

    /// `NAME` in the registry, by way of the proxy.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// All requests since the last call.
    #[must_use]
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.seen))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes it up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

type FaultOf = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

fn lock(seen: &Mutex<Vec<Request>>) -> std::sync::MutexGuard<'_, Vec<Request>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    mut client: &TcpStream,
    target: u16,
    seen: &Mutex<Vec<Request>>,
    fault: &FaultOf,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut input = BufReader::new(client);
    if input.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return Ok(());
    }
    let mut head = read_head(&mut input)?;
    let Some(request) = note(&head, seen) else {
        return Ok(());
    };
    let fault = fault(&request);
    if let Some(Fault::Status(status, lines)) = fault {
        let answer = format!(
            "HTTP/1.1 {status} Fault\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return client.write_all(answer.as_bytes());
    }
    if head[0].starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        return tunnel(client, &mut input, target);
    }
    head.retain(|line| {
        let line = line.to_ascii_lowercase();
        let is_range = line.starts_with("range:") && fault == Some(Fault::NoRanges);
        !is_range && !line.starts_with("connection:")
    });
    head.push("Connection: close".into());
    let mut server = TcpStream::connect(("127.0.0.1", target))?;
    server.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
    let mut answer = BufReader::new(server);
    let head = read_head(&mut answer)?;
    client.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
    pass(&mut answer, client, fault.as_ref(), ended)
}

/// Passes all on, in both directions, until both sides are done.
fn tunnel(mut client: &TcpStream, input: &mut impl Read, target: u16) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", target))?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    let answering = thread::Builder::new()
        .name("answers".into())
        .spawn(move || {
            let _ = io::copy(&mut answers, &mut back);
            let _ = back.shutdown(Shutdown::Write);
        })?;
    let asked = io::copy(input, &mut &server);
    server.shutdown(Shutdown::Write)?;
    let _ = answering.join();
    client.flush()?;
    asked.map(drop)
}

/// Passes a body on as far as `fault` lets it.
fn pass(
    body: &mut impl Read,
    mut client: &TcpStream,
    fault: Option<&Fault>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    let mut at = 0;
    loop {
        let mut wanted = buffer.len();
        if let Some(Fault::Cut(end) | Fault::Stall(end)) = fault {
            wanted = wanted.min(usize::try_from(end - at).unwrap_or(wanted));
            if wanted == 0 {
                break;
            }
        }
        let n = body.read(&mut buffer[..wanted])?;
        if n == 0 {
            return Ok(());
        }
        let next = at + n as u64;
        match fault {
            Some(Fault::Flip(byte)) if (at..next).contains(byte) => {
                buffer[usize::try_from(byte - at).unwrap_or(0)] ^= 1;
            }
            Some(Fault::Slow(pause)) => thread::sleep(*pause),
            _ => {}
        }
        client.write_all(&buffer[..n])?;
        at = next;
    }
    while matches!(fault, Some(Fault::Stall(_))) && !ended.load(Ordering::Relaxed) {
        // Until the client is gone.
        client.set_read_timeout(Some(Duration::from_millis(100)))?;
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The lines of a head, without its end.
fn read_head(input: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

fn note(head: &[String], seen: &Mutex<Vec<Request>>) -> Option<Request> {
    let path = head.first()?.split_ascii_whitespace().nth(1)?.to_owned();
    let range = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let first = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
        name.eq_ignore_ascii_case("range")
            .then(|| first.parse().ok())?
    });
    let mut seen = lock(seen);
    let earlier = seen.iter().filter(|request| request.path == path).count();
    let request = Request {
        path,
        range,
        earlier,
    };
    seen.push(request.clone());
    Some(request)
}
