//! One layer blob on its way into the store: copied, hashed, decompressed, hashed again, unpacked,
//! all in one pass. A second thread decodes, so that hashing and inflating overlap with writing
//! files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;

use crate::digest::Hashing;
use crate::layer::{LayerError, Summary};
use crate::manifest::Compression;
use crate::{Digest, Progress};

/// Decoded bytes are handed over in pieces of this size,
const PIECE: usize = 256 << 10;
/// of which so many may wait.
const PIECES: usize = 8;

/// What a blob turned out to be.
pub(super) struct Passed {
    /// Digest of the blob as it is stored.
    pub(super) blob: Digest,
    pub(super) blob_bytes: u64,
    pub(super) compression: Compression,
    /// Digest of the tar archive in it.
    pub(super) diff_id: Digest,
    /// Nothing if it was not to be unpacked.
    pub(super) unpacked: Option<Result<Summary, LayerError>>,
}

/// Why a blob did not pass.
#[derive(Debug)]
pub(super) enum PassError {
    /// The source could not be read.
    Read(io::Error),
    /// The blob could not be written to the store.
    Write(io::Error),
    /// It is not of that compression, or damaged. Holds the digest of the blob.
    Decompress(io::Error, Digest),
    /// It decompresses to more bytes than the limit.
    TooLarge,
    /// It decompresses to too many bytes for its size.
    Bomb,
    Thread(io::Error),
}

/// How a blob is to pass.
pub(super) struct Pass<'a> {
    pub(super) compression: Compression,
    /// Where a copy of the blob goes, if one is wanted.
    pub(super) copy: Option<File>,
    /// Most bytes that the blob may decompress to, archive headers included,
    pub(super) limit: u64,
    /// and most that one of its size may.
    pub(super) expanded: u64,
    /// What the blob is called towards `progress`.
    pub(super) what: &'a Digest,
    pub(super) progress: &'a dyn Progress,
}

impl Pass<'_> {
    /// Reads `blob` to its end, whatever happens to it on the way: only the digest of all of it
    /// tells a damaged blob from a strange one.
    pub(super) fn run(
        self,
        blob: impl Read + Send,
        unpack: Option<impl FnOnce(Pieces) -> Result<Summary, LayerError>>,
    ) -> Result<Passed, PassError> {
        let compression = self.compression;
        thread::scope(|scope| {
            let (pieces, receiver) = sync_channel(PIECES);
            let decoder = thread::Builder::new()
                .name("layer-decode".to_owned())
                .spawn_scoped(scope, move || self.decode(blob, &pieces))
                .map_err(PassError::Thread)?;
            let pieces = Pieces {
                receiver,
                piece: Vec::new(),
                at: 0,
            };
            let unpacked = match unpack {
                Some(unpack) => Some(unpack(pieces)),
                None => {
                    drop(pieces);
                    None
                }
            };
            let decoded = decoder.join().expect("the decoder does not panic")?;
            Ok(Passed {
                blob: decoded.blob,
                blob_bytes: decoded.blob_bytes,
                compression,
                diff_id: decoded.diff_id,
                unpacked,
            })
        })
    }

    fn decode(
        self,
        blob: impl Read,
        pieces: &SyncSender<io::Result<Vec<u8>>>,
    ) -> Result<Decoded, PassError> {
        let tee = Tee {
            blob: Hashing::new(blob),
            copy: self.copy,
            failure: None,
            what: self.what,
            progress: self.progress,
        };
        let mut input = BufReader::with_capacity(PIECE, tee);
        let limit = self.limit.min(self.expanded);
        let result = decompress(&mut input, self.compression, limit, pieces);
        if result.is_err() {
            // Wakes the other side, which would take the end of the pieces for the end of the
            // archive.
            let _ = pieces.send(Err(io::Error::other("the layer's data ended early")));
        }
        let rest = io::copy(&mut input, &mut io::sink());
        let mut tee = input.into_inner();
        match tee.failure.take() {
            Some(Failure::Read(err)) => return Err(PassError::Read(err)),
            Some(Failure::Write(err)) => return Err(PassError::Write(err)),
            None => {}
        }
        rest.map_err(PassError::Read)?;
        let (blob, blob_bytes) = tee.blob.finish();
        match result {
            Ok(diff_id) => Ok(Decoded {
                blob,
                blob_bytes,
                diff_id,
            }),
            Err(DecodeError::TooLarge) if self.limit <= self.expanded => Err(PassError::TooLarge),
            Err(DecodeError::TooLarge) => Err(PassError::Bomb),
            Err(DecodeError::Decompress(err)) => Err(PassError::Decompress(err, blob)),
        }
    }
}

struct Decoded {
    blob: Digest,
    blob_bytes: u64,
    diff_id: Digest,
}

enum DecodeError {
    Decompress(io::Error),
    TooLarge,
}

/// Decompresses to the end, sending pieces as long as somebody takes them.
fn decompress(
    input: &mut impl BufRead,
    compression: Compression,
    limit: u64,
    pieces: &SyncSender<io::Result<Vec<u8>>>,
) -> Result<Digest, DecodeError> {
    let decoder: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => {
            Box::new(zstd::Decoder::with_buffer(input).map_err(DecodeError::Decompress)?)
        }
    };
    let mut decoder = Hashing::new(decoder);
    let mut wanted = true;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        (&mut decoder)
            .take(PIECE as u64)
            .read_to_end(&mut piece)
            .map_err(DecodeError::Decompress)?;
        if decoder.read_so_far() > limit {
            return Err(DecodeError::TooLarge);
        }
        if piece.is_empty() {
            return Ok(decoder.finish().0);
        }
        // The other side is gone after an error, or was never there.
        wanted = wanted && pieces.send(Ok(piece)).is_ok();
    }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// Hashes, copies and counts the blob as it is read.
struct Tee<'a, R> {
    blob: Hashing<R>,
    copy: Option<File>,
    /// Kept apart from what a decompressor makes of it.
    failure: Option<Failure>,
    what: &'a Digest,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the blob failed"));
        }
        let n = match self.blob.read(buf) {
            Ok(n) => n,
            Err(err) => {
                self.failure = Some(Failure::Read(err));
                return Err(io::Error::other("the blob could not be read"));
            }
        };
        if let Some(copy) = &mut self.copy
            && let Err(err) = copy.write_all(&buf[..n])
        {
            self.failure = Some(Failure::Write(err));
            return Err(io::Error::other("the blob could not be copied"));
        }
        self.progress.advanced(self.what, n as u64);
        Ok(n)
    }
}

/// The decoded bytes on the other side.
pub(super) struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => {
                    self.piece = piece?;
                    self.at = 0;
                }
                // The decoder is done.
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}
