//! Blobs and manifests on their way into a registry.

use std::fs::File;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use oci_spec::image::MediaType;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
};
use reqwest::{Body, RequestBuilder, Response, StatusCode, Url};

use super::backoff::Backoff;
use super::endpoint::SILENCE_MAX;
use super::transport::{is_final, is_temporary};
use super::{CONTENT_DIGEST, Client, MANIFEST_TYPES, RegistryError};
use crate::progress::Task;
use crate::{Digest, Progress, digest};

const PIECE: usize = 128 << 10;
/// How long a registry may take to verify what it was sent.
const VERIFICATION_MAX: Duration = Duration::from_secs(600);

/// Why a blob did not arrive.
#[derive(Debug)]
pub(crate) enum UploadError {
    Registry(RegistryError),
    /// The file failed.
    File(io::Error),
}

impl From<RegistryError> for UploadError {
    fn from(err: RegistryError) -> Self {
        Self::Registry(err)
    }
}

impl From<io::Error> for UploadError {
    fn from(err: io::Error) -> Self {
        Self::File(err)
    }
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// It was there.
    Known,
    /// Taken over from another repository of the registry.
    Mounted,
    /// Sent.
    Sent,
}

/// What the registry says to the announcement of a blob.
enum Session {
    Mounted,
    /// Where it wants it.
    At(Url),
}

impl Client<'_> {
    /// Whether the repository has a blob.
    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let what = format!("blob {digest}");
        let url = self.url("blobs", digest.as_ref())?;
        let request = || self.transport.http.head(url.clone());
        let response = self.send(request, &what, &mut Backoff::default()).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.transport.status(response, &what).await),
        }
    }

    /// Whether the repository has a manifest, or an index.
    pub(crate) async fn has_manifest(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let what = format!("manifest {digest}");
        let url = self.url("manifests", digest.as_ref())?;
        let http = &self.transport.http;
        let request = || http.head(url.clone()).header(ACCEPT, MANIFEST_TYPES);
        let response = self.send(request, &what, &mut Backoff::default()).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.transport.status(response, &what).await),
        }
    }

    /// Brings a blob of `size` bytes into the repository: `file`, unless it is there, or can be
    /// taken over from `other`, a repository that should have it.
    pub(crate) async fn upload(
        &self,
        digest: &Digest,
        size: u64,
        file: &File,
        other: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Uploaded, UploadError> {
        if self.has_blob(digest).await? {
            progress.finished(digest);
            return Ok(Uploaded::Known);
        }
        let what = format!("an upload of blob {digest}");
        let mut backoff = Backoff::default();
        let mut other = other;
        loop {
            // Each attempt begins anew: what a broken one left there is the registry's to clear.
            let url = match self
                .announce(digest, other.take(), &what, &mut backoff)
                .await?
            {
                Session::Mounted => {
                    progress.finished(digest);
                    return Ok(Uploaded::Mounted);
                }
                Session::At(url) => url,
            };
            progress.started(digest, Task::Upload, size);
            if self
                .put(url, digest, size, file, &what, &mut backoff, progress)
                .await?
            {
                progress.finished(digest);
                return Ok(Uploaded::Sent);
            }
        }
    }

    /// Asks the registry to take a blob over from `other`, or where it wants it.
    async fn announce(
        &self,
        digest: &Digest,
        other: Option<&str>,
        what: &str,
        backoff: &mut Backoff,
    ) -> Result<Session, RegistryError> {
        let mut url = self.url("blobs", "uploads/")?;
        if let Some(other) = other {
            url.query_pairs_mut()
                .append_pair("mount", digest.as_ref())
                .append_pair("from", other);
        }
        let request = || {
            let request = self.transport.http.post(url.clone());
            request.header(CONTENT_LENGTH, HeaderValue::from_static("0"))
        };
        let response = self.send(request, what, backoff).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Session::Mounted),
            StatusCode::ACCEPTED => self.location(&url, response.headers()).map(Session::At),
            _ => Err(self.transport.status(response, what).await),
        }
    }

    /// Where an answer sends us.
    fn location(&self, asked: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
        let text = headers
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        // An empty one would be the address that was asked.
        let url = match text {
            "" => None,
            text => asked.join(text).ok(),
        };
        let url = url.ok_or_else(|| RegistryError::Address(text.to_owned()))?;
        if !self.transport.permits(&url) {
            return Err(RegistryError::Plain {
                registry: self.transport.registry.clone(),
                url: url.origin().ascii_serialization(),
            });
        }
        Ok(url)
    }

    /// Sends a blob. False if that is to be tried again, which was waited for.
    #[expect(clippy::too_many_arguments, reason = "one call, from the loop above")]
    async fn put(
        &self,
        mut url: Url,
        digest: &Digest,
        size: u64,
        file: &File,
        what: &str,
        backoff: &mut Backoff,
        progress: &dyn Progress,
    ) -> Result<bool, UploadError> {
        url.query_pairs_mut().append_pair("digest", digest.as_ref());
        let sent = Arc::<AtomicU64>::default();
        let body = FileBody::new(file, size, sent.clone())?;
        let mut request = self
            .transport
            .uploads
            .put(url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap(body));
        // Elsewhere the address is the permission.
        if url.origin() == self.base.origin()
            && let Some(value) = self.authorization.current().await
        {
            request = request.header(AUTHORIZATION, value);
        }
        let answer = watch(request, size, &sent, |bytes| {
            progress.advanced(digest, bytes);
        })
        .await;
        match answer {
            Some(Ok(response)) if response.status() == StatusCode::CREATED => Ok(true),
            Some(Ok(response)) if is_temporary(response.status()) => {
                self.transport.later(response, what, backoff).await?;
                Ok(false)
            }
            // The session is gone, or the token too old.
            Some(Ok(response))
                if matches!(
                    response.status(),
                    StatusCode::NOT_FOUND
                        | StatusCode::UNAUTHORIZED
                        | StatusCode::RANGE_NOT_SATISFIABLE
                ) =>
            {
                self.transport.wait(backoff, what, None).await?;
                Ok(false)
            }
            Some(Ok(response)) => Err(self.transport.status(response, what).await.into()),
            Some(Err(err)) if is_final(&err) => Err(self.transport.unreachable(what, err).into()),
            Some(Err(err)) => {
                self.transport.wait(backoff, what, Some(err)).await?;
                Ok(false)
            }
            None => {
                self.transport.wait(backoff, what, None).await?;
                Ok(false)
            }
        }
    }

    /// Puts a manifest under `reference`, a tag or its digest.
    pub(crate) async fn put_manifest(
        &self,
        reference: &str,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let what = format!("the manifest of {}:{reference}", self.repository);
        let url = self.url("manifests", reference)?;
        let request = || {
            let request = self.transport.http.put(url.clone());
            request
                .header(CONTENT_TYPE, media_type.to_string())
                .body(bytes.to_vec())
        };
        let response = self.send(request, &what, &mut Backoff::default()).await?;
        if !response.status().is_success() {
            return Err(self.transport.status(response, &what).await);
        }
        let stated = response
            .headers()
            .get(CONTENT_DIGEST)
            .and_then(|value| digest::parse(value.to_str().ok()?));
        let expected = digest::of(bytes);
        match stated {
            Some(found) if found != expected => Err(RegistryError::Stated {
                registry: self.transport.registry.clone(),
                what,
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// Sends a request with a long body; nothing if neither side makes any progress.
async fn watch(
    request: RequestBuilder,
    size: u64,
    sent: &AtomicU64,
    advanced: impl Fn(u64),
) -> Option<Result<Response, reqwest::Error>> {
    const TICK: Duration = Duration::from_millis(200);
    let mut answer = pin!(request.send());
    let (mut seen, mut silence) = (0, Duration::ZERO);
    loop {
        let ended = tokio::time::timeout(TICK, &mut answer).await;
        let now = sent.load(Ordering::Relaxed);
        silence = if now > seen {
            Duration::ZERO
        } else {
            silence + TICK
        };
        advanced(now - seen);
        seen = now;
        if let Ok(answer) = ended {
            return Some(answer);
        }
        let patience = if now == size {
            VERIFICATION_MAX
        } else {
            SILENCE_MAX
        };
        if silence >= patience {
            return None;
        }
    }
}

/// The contents of a file, of a length that is known before.
struct FileBody {
    file: File,
    left: u64,
    /// Bytes that were handed over.
    sent: Arc<AtomicU64>,
}

impl FileBody {
    fn new(file: &File, size: u64, sent: Arc<AtomicU64>) -> io::Result<Self> {
        let mut file = file.try_clone()?;
        io::Seek::rewind(&mut file)?;
        Ok(Self {
            file,
            left: size,
            sent,
        })
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = Vec::with_capacity(PIECE);
        let wanted = self.left.min(PIECE as u64);
        let n = match (&mut self.file).take(wanted).read_to_end(&mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other.map(|n| n as u64),
        };
        Poll::Ready(Some(n.map(|n| {
            self.left -= n;
            self.sent.fetch_add(n, Ordering::Relaxed);
            Frame::data(piece.into())
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
