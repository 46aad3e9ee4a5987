//! One blob into one file: continued where an earlier attempt, or process, was interrupted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use super::backoff::Backoff;
use super::{Client, RegistryError};
use crate::digest::Hasher;
use crate::progress::Task;
use crate::{Digest, Progress};

const BUFFER: usize = 256 << 10;

/// Why a blob is not complete.
#[derive(Debug)]
pub(crate) enum DownloadError {
    Registry(RegistryError),
    /// The file failed.
    File(io::Error),
}

impl From<RegistryError> for DownloadError {
    fn from(err: RegistryError) -> Self {
        Self::Registry(err)
    }
}

impl From<io::Error> for DownloadError {
    fn from(err: io::Error) -> Self {
        Self::File(err)
    }
}

/// A blob on its way.
struct Download<'a> {
    client: &'a Client<'a>,
    digest: &'a Digest,
    size: u64,
    file: &'a mut File,
    progress: &'a dyn Progress,
    what: String,
    /// Bytes in the file, and what they hash to.
    at: u64,
    hasher: Hasher,
    /// Whether the file has bytes of several answers.
    pieced: bool,
    /// The server was seen to refuse ranges, or to send other bytes for them.
    no_ranges: bool,
    /// The most bytes that the file ever had.
    furthest: u64,
}

impl Client<'_> {
    /// Completes `file`, which may hold the beginning of the blob `digest` of `size` bytes. The
    /// file is complete and verified if there is no error; after an error it holds what can be
    /// continued, or nothing.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        file: &mut File,
        progress: &dyn Progress,
    ) -> Result<(), DownloadError> {
        let mut download = Download {
            client: self,
            digest,
            size,
            file,
            progress,
            what: format!("blob {digest}"),
            at: 0,
            hasher: Hasher::new(),
            pieced: false,
            no_ranges: false,
            furthest: 0,
        };
        progress.started(digest, Task::Download, size);
        download.take_stock()?;
        download.run().await
    }
}

impl Download<'_> {
    /// Hashes what an earlier process left.
    fn take_stock(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.size {
            return self.begin_anew();
        }
        self.file.rewind()?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = self.file.read(&mut buffer)?;
            if n == 0 {
                self.pieced = self.at > 0;
                self.furthest = self.at;
                return Ok(());
            }
            self.took(&buffer[..n]);
        }
    }

    fn took(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.progress.advanced(self.digest, bytes.len() as u64);
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        if self.at > 0 {
            // The bar starts again, too.
            self.progress
                .started(self.digest, Task::Download, self.size);
        }
        self.at = 0;
        self.hasher = Hasher::new();
        self.pieced = false;
        Ok(())
    }

    async fn run(&mut self) -> Result<(), DownloadError> {
        let url = self.client.url("blobs", self.digest.as_ref())?;
        let mut backoff = Backoff::default();
        loop {
            if self.at == self.size {
                if self.is_right()? {
                    return Ok(());
                }
                // Only the pieces were wrong for each other: all of it once more, in one.
                self.no_ranges = true;
                continue;
            }
            let mut headers = HeaderMap::new();
            if self.at > 0 && !self.no_ranges {
                let range = format!("bytes={}-", self.at);
                let range = HeaderValue::from_str(&range).expect("digits are fine in a header");
                headers.insert(RANGE, range);
            } else {
                self.begin_anew()?;
            }
            let response = self
                .client
                .get(&url, &headers, &self.what, &mut backoff)
                .await?;
            if !self.accept(&response)? {
                continue;
            }
            let broken = self.receive(response).await?;
            if self.at < self.size {
                if self.at > self.furthest {
                    self.furthest = self.at;
                    backoff.progressed();
                }
                self.pieced = self.at > 0;
                self.client
                    .transport
                    .wait(&mut backoff, &self.what, broken)
                    .await?;
            }
        }
    }

    /// Whether all that was received is the blob. It is an error if it came in one piece and is
    /// not; if it came in several, the file is emptied.
    fn is_right(&mut self) -> Result<bool, DownloadError> {
        let found = self.hasher.clone().finish();
        if found == *self.digest {
            return Ok(true);
        }
        let pieced = self.pieced;
        self.begin_anew()?;
        if pieced {
            return Ok(false);
        }
        Err(DownloadError::Registry(RegistryError::Digest {
            registry: self.client.transport.registry.clone(),
            what: self.what.clone(),
            expected: self.digest.to_string(),
            found: found.to_string(),
        }))
    }

    /// Whether the body of `response` is what comes next. If not, ask without a range.
    fn accept(&mut self, response: &Response) -> Result<bool, DownloadError> {
        let announced = match response.status() {
            StatusCode::OK => {
                if self.at > 0 {
                    // It does not know ranges, and sends everything.
                    self.no_ranges = true;
                    self.begin_anew()?;
                }
                response.content_length()
            }
            StatusCode::PARTIAL_CONTENT
                if self.at > 0 && continues(response.headers(), self.at, self.size) =>
            {
                response
                    .content_length()
                    .map(|left| self.at.saturating_add(left))
            }
            // The range does not fit, or the answer to it: it was no range of this blob.
            _ if self.at > 0 => {
                self.no_ranges = true;
                return Ok(false);
            }
            status => {
                return Err(DownloadError::Registry(RegistryError::Status {
                    registry: self.client.transport.registry.clone(),
                    what: self.what.clone(),
                    status,
                    said: String::new(),
                }));
            }
        };
        match announced {
            Some(found) if found > self.size || (found < self.size && self.at == 0) => {
                Err(self.wrong_size(found))
            }
            _ => Ok(true),
        }
    }

    /// Writes what comes. Gives the error with which it ended early, if it was one.
    async fn receive(
        &mut self,
        mut response: Response,
    ) -> Result<Option<reqwest::Error>, DownloadError> {
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(err) => return Ok(Some(err)),
            };
            let found = self.at.saturating_add(chunk.len() as u64);
            if found > self.size {
                self.begin_anew()?;
                return Err(self.wrong_size(found));
            }
            self.file.write_all(&chunk)?;
            self.took(&chunk);
        }
    }

    fn wrong_size(&self, found: u64) -> DownloadError {
        DownloadError::Registry(RegistryError::Size {
            registry: self.client.transport.registry.clone(),
            what: self.what.clone(),
            expected: self.size,
            found,
        })
    }
}

/// Whether `Content-Range` says that the body goes on at `at` of `size` bytes.
fn continues(headers: &HeaderMap, at: u64, size: u64) -> bool {
    let parse = || {
        let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        let total = match total.trim() {
            "*" => size,
            total => total.parse().ok()?,
        };
        Some((first.trim().parse::<u64>().ok()?, total))
    };
    parse() == Some((at, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_range_continues_a_blob() {
        let fits = |value: &'static str| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(value))]);
            continues(&headers, 10, 30)
        };
        assert!(fits("bytes 10-29/30"));
        assert!(fits("bytes 10-29/*"));
        for other in [
            "bytes 0-29/30",
            "bytes 11-29/30",
            "bytes 10-29/31",
            "bytes */30",
            "pages 10-29/30",
            "bytes 10-29",
            "",
        ] {
            assert!(!fits(other), "{other:?}");
        }
        assert!(!continues(&HeaderMap::new(), 10, 30));
    }
}
