//! A registry in this process that says and does what a test wants.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::layout::Layout;

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    /// The same, where it is no text.
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// Where the range that is asked for begins.
    pub(crate) fn range(&self) -> Option<usize> {
        let range = self.header("range").strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// `Content-Length` is said.
    pub(crate) has_length: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            has_length: true,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// The registry; ends on drop.
pub(crate) struct Registry {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves the first image or index that `layout` lists, as `app:test`. `change` may turn each
    /// reply into another.
    pub(crate) fn serve(
        layout: &Layout,
        change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let layout = layout.clone();
        Self::start(move |request| change(request, reply(&layout, request)))
    }

    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let ended = Arc::<AtomicBool>::default();
        let (log, end) = (seen.clone(), ended.clone());
        let answer = Arc::new(answer);
        let listener = std::thread::spawn(move || {
            for connection in socket.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (log, answer) = (log.clone(), answer.clone());
                // What the client breaks off is its own business.
                std::thread::spawn(move || connect(connection.ok()?, &log, &*answer).ok());
            }
        });
        Self {
            port,
            seen,
            ended,
            listener: Some(listener),
        }
    }

    /// Its name in references.
    pub(crate) fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests for layers and configurations since the last call.
    pub(crate) fn take_blob_requests(&self) -> Vec<Request> {
        let mut requests = std::mem::take(&mut *self.seen.lock().unwrap());
        requests.retain(Request::is_blob);
        requests
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(listener) = self.listener.take() {
            listener.join().unwrap();
        }
    }
}

fn connect(
    stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    if input.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return Ok(());
    }
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    let body = String::from_utf8_lossy(&bytes).into_owned();
    let request = Request {
        method,
        path,
        headers,
        body,
        bytes,
    };
    log.lock().unwrap().push(request.clone());
    send(stream, &answer(&request))
}

fn send(mut stream: TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Any\r\nConnection: close\r\n", reply.status);
    if reply.has_length {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..end])
}

/// What an honest registry says.
fn reply(layout: &Layout, request: &Request) -> Reply {
    let not_found = || Reply::new(404, "{}");
    let path = request.path.as_str();
    if path == "/v2/" {
        return Reply::new(200, "{}");
    }
    let Some(name) = path.strip_prefix("/v2/app/") else {
        return not_found();
    };
    if let Some(reference) = name.strip_prefix("manifests/") {
        let top = layout.manifests[0]["digest"].as_str().unwrap();
        let digest = if reference == "test" { top } else { reference };
        return match file(layout, digest) {
            Some(bytes) => {
                let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
                let media_type = document["mediaType"].as_str().unwrap_or_default();
                Reply::new(200, bytes.as_slice()).with("Content-Type", media_type)
            }
            None => not_found(),
        };
    }
    let Some(bytes) = name.strip_prefix("blobs/").and_then(|d| file(layout, d)) else {
        return not_found();
    };
    match request.range() {
        Some(at) if at < bytes.len() => {
            let range = format!("bytes {at}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[at..]).with("Content-Range", range)
        }
        Some(_) => Reply::new(416, ""),
        None => Reply::new(200, bytes.as_slice()),
    }
}

fn file<'a>(layout: &'a Layout, digest: &str) -> Option<&'a Vec<u8>> {
    layout
        .files
        .get(&format!("blobs/{}", digest.replace(':', "/")))
}
