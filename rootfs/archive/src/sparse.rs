//! Files with holes as GNU tar stores them: in GNU headers, and in PAX headers of version 0.0,
//! 0.1 and 1.0.

use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

use super::number::number;
use super::pax::decimal;
use super::{Archive, ArchiveError, BLOCK, Input};

/// A sparse map is read into memory: 16 bytes for each segment.
const MAX_SEGMENTS: usize = 1 << 18;

/// A piece of a file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What PAX records say about holes.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    /// 1 for version 1.0, in which the map stands before the data.
    pub(super) major: Option<u64>,
    pub(super) path: Option<Vec<u8>>,
    /// Size of the file with its holes.
    pub(super) size: Option<u64>,
    pub(super) segments: Vec<Segment>,
}

/// The whole file: its size, and where the stored bytes go.
pub(super) struct SparseMap {
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks that segments are in order, lie within the file, and take the `stored` bytes.
    pub(super) fn check(&self, stored: u64) -> Result<(), &'static str> {
        let mut end = 0;
        let mut total: u64 = 0;
        for segment in &self.segments {
            if segment.offset < end {
                return Err("the segments of a sparse file overlap");
            }
            end = segment
                .offset
                .checked_add(segment.length)
                .ok_or("a sparse file is longer than files can be")?;
            total += segment.length;
        }
        if end > self.size {
            return Err("a sparse file has data beyond its end");
        }
        if total != stored {
            return Err("a sparse file's segments do not add up to its data");
        }
        Ok(())
    }
}

impl<I: Input> Archive<I> {
    /// The map in and after a GNU header; leaves the reader at the data.
    pub(super) fn read_gnu_sparse(
        &mut self,
        header: &GnuHeader,
        stored: u64,
    ) -> Result<SparseMap, ArchiveError> {
        let start = self.position - BLOCK as u64;
        let invalid = |problem| ArchiveError::Header {
            position: start,
            problem,
        };
        let size = number(&header.realsize)
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| invalid("size of a sparse file"))?;
        let mut segments = Vec::new();
        add_segments(&mut segments, &header.sparse).map_err(invalid)?;
        let mut extended = header.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            if !self.read_block(more.as_mut_bytes())? {
                return Err(invalid("the map of a sparse file is cut off"));
            }
            add_segments(&mut segments, more.sparse()).map_err(invalid)?;
            extended = more.is_extended();
        }
        self.set_data(stored);
        Ok(SparseMap { size, segments })
    }

    /// The map in PAX records or before the data; leaves the reader at the data.
    pub(super) fn read_pax_sparse(
        &mut self,
        pax: &PaxSparse,
    ) -> Result<Option<SparseMap>, ArchiveError> {
        let start = self.position;
        let invalid = |problem| ArchiveError::Header {
            position: start,
            problem,
        };
        let size = match (pax.size, pax.major) {
            (Some(size), _) => size,
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(invalid("a sparse file has no size")),
        };
        match pax.major {
            None | Some(0) => Ok(Some(SparseMap {
                size,
                segments: pax.segments.clone(),
            })),
            Some(1) => {
                let mut map = MapReader {
                    block: Vec::new(),
                    at: 0,
                };
                let count = map.number(self)?;
                if count > MAX_SEGMENTS as u64 {
                    return Err(invalid("a sparse file has too many segments"));
                }
                let mut segments = Vec::new();
                for _ in 0..count {
                    let offset = map.number(self)?;
                    let length = map.number(self)?;
                    segments.push(Segment { offset, length });
                }
                Ok(Some(SparseMap { size, segments }))
            }
            Some(_) => Err(invalid("a sparse file is in a format of the future")),
        }
    }
}

fn add_segments(
    segments: &mut Vec<Segment>,
    headers: &[GnuSparseHeader],
) -> Result<(), &'static str> {
    let value = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).ok());
    for header in headers.iter().filter(|header| !header.is_empty()) {
        let (Some(offset), Some(length)) = (value(&header.offset), value(&header.numbytes)) else {
            return Err("the map of a sparse file is not valid");
        };
        if segments.len() == MAX_SEGMENTS {
            return Err("a sparse file has too many segments");
        }
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// Reads the decimal lines of a map of version 1.0, which fills whole blocks.
struct MapReader {
    block: Vec<u8>,
    at: usize,
}

impl MapReader {
    fn number<I: Input>(&mut self, archive: &mut Archive<I>) -> Result<u64, ArchiveError> {
        let position = archive.position;
        let invalid = || ArchiveError::Header {
            position,
            problem: "the map of a sparse file is not valid",
        };
        let mut digits = Vec::new();
        loop {
            if self.at == self.block.len() {
                if archive.remaining < BLOCK as u64 {
                    return Err(invalid());
                }
                self.block.resize(BLOCK, 0);
                self.at = 0;
                if !archive.read_block(&mut self.block)? {
                    return Err(invalid());
                }
                archive.remaining -= BLOCK as u64;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or_else(invalid),
                _ if digits.len() >= 20 => return Err(invalid()),
                digit => digits.push(digit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(size: u64, segments: &[(u64, u64)], stored: u64) -> bool {
        let segments = segments
            .iter()
            .map(|&(offset, length)| Segment { offset, length })
            .collect();
        SparseMap { size, segments }.check(stored).is_ok()
    }

    #[test]
    fn only_maps_that_add_up_are_taken() {
        assert!(check(100, &[(0, 10), (50, 50)], 60));
        assert!(check(100, &[], 0));
        assert!(!check(100, &[(0, 10), (5, 10)], 20), "overlap");
        assert!(!check(100, &[(95, 10)], 10), "beyond the end");
        assert!(!check(100, &[(0, 10)], 11), "too few segments");
        assert!(!check(u64::MAX, &[(u64::MAX, 1)], 1), "overflow");
    }
}
