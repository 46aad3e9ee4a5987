//! Archives in which readers would see different things, or nothing.

use super::*;
use Then::{Becomes, Refused};

/// A file of which header and PAX records say different sizes, with `data` behind the header.
fn two_sizes(header: u64, pax: &str, data: &[u8]) -> Tar {
    Tar::new()
        .pax(&[("size", pax.as_bytes())])
        .with_header("f", "", data, |h| h.set_size(header))
}

/// A sparse file in GNU's header.
fn sparse(segments: &[(u64, u64)], size: u64, data: &[u8]) -> Made {
    let fill = |header: &mut tar::Header| {
        header.as_old_mut().linkflag[0] = b'S';
        let gnu = header.as_gnu_mut().unwrap();
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(segments) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        gnu.set_real_size(size);
    };
    layer(Tar::new().with_header("sparse", "", data, fill))
}

/// A sparse file in PAX records of version 1.0, whose map is `map`.
fn sparse_map(size: &str, map: &str, data: &[u8]) -> Made {
    let mut body = map.as_bytes().to_vec();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend_from_slice(data);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    layer(Tar::new().pax(&records).file("GNUSparseFile.0/x", &body))
}

/// An archive of one file that can be the contents of another.
fn hidden() -> Vec<u8> {
    Tar::new().file("hidden", b"h").finish()
}

pub(super) const CASES: &[Case] = &[
    (
        // A reader that goes by the header takes the contents for entries.
        "PAX size larger than the header's",
        |_| layer(two_sizes(0, "2048", &hidden()[..2048]).file("after", b"a")),
        Becomes(|seen| {
            assert_eq!(seen.read("f").len(), 2048);
            assert_eq!(seen.list(""), ["after", "f"]);
        }),
    ),
    (
        // And one that goes by the header here does not see them.
        "PAX size smaller than the header's",
        |_| layer(two_sizes(1024, "0", &hidden()[..1024]).file("after", b"a")),
        Becomes(|seen| assert_eq!(seen.list(""), ["after", "f", "hidden"])),
    ),
    (
        "PAX size beyond the end of the archive",
        |_| layer(two_sizes(10, "1000000", b"0123456789")),
        Refused(&["Failed to read the layer's entry \"f\""]),
    ),
    (
        "PAX size that is no number",
        |_| layer(two_sizes(10, "-10", b"0123456789")),
        Refused(&["is not valid: PAX size"]),
    ),
    (
        "link with contents",
        |_| {
            let size = |header: &mut tar::Header| {
                header.as_old_mut().linkflag[0] = b'2';
                header.set_size(1024);
            };
            layer(
                Tar::new()
                    .with_header("l", "t", b"", size)
                    .file("after", b"a"),
            )
        },
        Becomes(|seen| assert_eq!(seen.list(""), ["after", "l"])),
    ),
    (
        "directory with contents",
        |_| {
            let size = |header: &mut tar::Header| {
                header.as_old_mut().linkflag[0] = b'5';
                header.set_size(1024);
            };
            layer(
                Tar::new()
                    .with_header("d", "", b"", size)
                    .file("after", b"a"),
            )
        },
        Becomes(|seen| assert_eq!(seen.list(""), ["after", "d"])),
    ),
    (
        "two PAX headers for one entry",
        |_| {
            let pax = Tar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]);
            layer(pax.file("x", b""))
        },
        Refused(&["two PAX headers for one entry"]),
    ),
    (
        "two long names for one entry",
        |_| {
            let name = Tar::new().entry(b'L', "././@LongLink", "", 0, b"one\0");
            layer(name.file(&"two".repeat(50), b""))
        },
        Refused(&["two long names for one entry"]),
    ),
    (
        "global header between an entry and its own",
        |_| {
            let pax = Tar::new().pax(&[("path", b"a")]);
            layer(
                pax.entry(b'g', "global", "", 0, b"9 path=b\n")
                    .file("x", b""),
            )
        },
        Refused(&["a global header between an entry and its own"]),
    ),
    (
        "global header with a path",
        |_| {
            let global = b"25 path=../../canary/bird\n";
            layer(
                Tar::new()
                    .entry(b'g', "global", "", 0, global)
                    .file("x", b"x"),
            )
        },
        Becomes(|seen| assert_eq!(seen.read("x"), b"x")),
    ),
    (
        "PAX header of no entry",
        |_| layer(Tar::new().file("x", b"").pax(&[("path", b"a")])),
        Refused(&["an extended header describes no entry"]),
    ),
    (
        "PAX records of a wrong length",
        |_| {
            layer(
                Tar::new()
                    .entry(b'x', "pax", "", 0, b"99 path=a\n")
                    .file("x", b""),
            )
        },
        Refused(&["a PAX record is malformed"]),
    ),
    (
        "PAX record of length 0",
        |_| {
            layer(
                Tar::new()
                    .entry(b'x', "pax", "", 0, b"0 path=a\n")
                    .file("x", b""),
            )
        },
        Refused(&["a PAX record is malformed"]),
    ),
    (
        "extended header of a terabyte",
        |_| {
            let huge = |header: &mut tar::Header| {
                header.as_old_mut().linkflag[0] = b'x';
                header.set_size(1 << 40);
            };
            layer(Tar::new().with_header("pax", "", b"", huge))
        },
        Refused(&["extended header of 1099511627776 bytes, more than the limit"]),
    ),
    (
        "entry after one block of zeros",
        |_| {
            let zeros = [vec![0; 512], hidden()].concat();
            bytes(&zeros)
        },
        Refused(&["something follows the end of the archive"]),
    ),
    (
        "entries after the end of the archive",
        |_| bytes(&[Tar::new().file("seen", b"s").finish(), hidden()].concat()),
        Becomes(|seen| assert_eq!(seen.list(""), ["seen"])),
    ),
    (
        "checksum of another header",
        |_| {
            let mut tar = hidden();
            tar[0] ^= 1;
            bytes(&tar)
        },
        Refused(&["its checksum is wrong, or this is no tar archive"]),
    ),
    (
        "negative size",
        |_| {
            let negative = |header: &mut tar::Header| header.as_old_mut().size = [0xff; 12];
            layer(Tar::new().with_header("f", "", b"", negative))
        },
        Refused(&["is not valid: size"]),
    ),
    (
        "largest size there is",
        |_| layer(Tar::new().with_header("f", "", b"", |header| header.set_size(u64::MAX))),
        Refused(&["With entry \"f\" the layer unpacks to more than 274877906944 bytes"]),
    ),
    (
        "cut in the middle of a file",
        |_| bytes(&Tar::new().file("a", &[1; 2000]).finish()[..1500]),
        Refused(&["Failed to read the layer's entry \"a\""]),
    ),
    (
        "cut in the middle of a header",
        |_| bytes(&hidden()[..300]),
        Refused(&["Failed to read the archive at byte 0"]),
    ),
    (
        "no archive at all",
        |_| bytes(&b"this is no archive, though it is long enough for one".repeat(20)),
        Refused(&["The archive's header at byte 0 is not valid"]),
    ),
    (
        "empty layer",
        |_| bytes(b""),
        Becomes(|seen| assert!(seen.list("").is_empty())),
    ),
    (
        "sparse file: segments that overlap",
        |_| sparse(&[(0, 3), (1, 3)], 100, b"abcdef"),
        Refused(&["the segments of a sparse file overlap"]),
    ),
    (
        "sparse file: data beyond its end",
        |_| sparse(&[(0, 3), (99, 3)], 100, b"abcdef"),
        Refused(&["a sparse file has data beyond its end"]),
    ),
    (
        "sparse file: more data than segments",
        |_| sparse(&[(0, 3)], 100, b"abcdef"),
        Refused(&["segments do not add up to its data"]),
    ),
    (
        "sparse file: segment at the end of numbers",
        |_| sparse(&[((1 << 63) - 1, u64::MAX >> 1)], u64::MAX, b""),
        Refused(&["a sparse file"]),
    ),
    (
        "sparse file: hole beyond the limit",
        |_| sparse(&[(0, 1)], 300 << 30, b"x"),
        Refused(&["With entry \"sparse\" the layer unpacks to more than"]),
    ),
    (
        "sparse file: hole of a GiB",
        |_| sparse(&[(1 << 30, 3)], 2 << 30, b"def"),
        Becomes(|seen| {
            let metadata = seen.at("sparse").metadata().unwrap();
            assert_eq!(metadata.len(), 2 << 30);
            assert!(metadata.blocks() * 512 < 1 << 20);
            assert_eq!(seen.image.size, (2 << 30) + 4);
        }),
    ),
    (
        "sparse file: kind without its header",
        |_| {
            let old = |header: &mut tar::Header| {
                header.as_old_mut().linkflag[0] = b'S';
                // No format that has such files.
                header.as_mut_bytes()[257..265].fill(0);
            };
            layer(Tar::new().with_header("s", "", b"", old))
        },
        Refused(&["a sparse file in no GNU header"]),
    ),
    (
        "sparse file: map that promises too many segments",
        |_| sparse_map("10", "999999999\n0\n1\n", b"x"),
        Refused(&["a sparse file has too many segments"]),
    ),
    (
        "sparse file: map longer than the data",
        |_| sparse_map("10", "200\n0\n1\n", b""),
        Refused(&["the map of a sparse file is not valid"]),
    ),
    (
        "sparse file: version of the future",
        |_| {
            let pax = [("GNU.sparse.major", &b"2"[..]), ("GNU.sparse.size", b"1")];
            layer(Tar::new().pax(&pax).file("s", b"x"))
        },
        Refused(&["a sparse file is in a format of the future"]),
    ),
    (
        "sparse file: version that is no number",
        |_| {
            let pax = [("GNU.sparse.major", &b"one"[..]), ("GNU.sparse.size", b"1")];
            layer(Tar::new().pax(&pax).file("s", b"x"))
        },
        Refused(&["is not valid: GNU.sparse.major"]),
    ),
    (
        "file in a file",
        |_| layer(Tar::new().file("f", b"").file("f/below", b"")),
        Refused(&["entry \"f/below\" is refused: something above it is no directory"]),
    ),
    (
        "one name as file, directory, link, fifo and file again",
        |canary| {
            layer(
                Tar::new()
                    .file("x", b"1")
                    .dir("x")
                    .file("x/in", b"2")
                    .symlink("x", canary)
                    .entry(b'6', "x", "", 0o600, b"")
                    .dir("x")
                    .file("x", b"last"),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.read("x"), b"last");
            assert_eq!(seen.list(""), ["x"]);
        }),
    ),
    (
        "directory twice, with other modes",
        |_| {
            let first = Tar::new()
                .entry(b'5', "d", "", 0o777, b"")
                .file("d/x", b"x");
            layer(first.entry(b'5', "d", "", 0o700, b""))
        },
        Becomes(|seen| {
            assert_eq!(seen.mode("d"), 0o700);
            assert_eq!(seen.read("d/x"), b"x");
        }),
    ),
];
