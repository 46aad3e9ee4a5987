//! Too much of everything.

use super::*;
use crate::testing::layout::compress;
use Then::{Becomes, Refused};

/// A layer of zeros: small as long as it is compressed.
fn zeros(size: usize) -> Vec<u8> {
    Tar::new().file("zeros", &vec![0; size]).finish()
}

fn bomb(compression: Compression, size: usize) -> Made {
    let tar = zeros(size);
    let packed = compress(&tar, compression);
    assert!(packed.len() * 100 < tar.len());
    blob(&tar, compression, &packed)
}

pub(super) const CASES: &[Case] = &[
    (
        "too many entries",
        |_| {
            let tar = (0..20).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b""));
            layer(tar).limited(|limits| limits.entries = 10)
        },
        Refused(&[
            "With entry \"f10\" the layer has more than 10 files and directories (HRUN_LIMIT_ENTRIES",
        ]),
    ),
    (
        "too many entries that are only implied",
        |_| layer(Tar::new().file("a/b/c/d/e", b"")).limited(|limits| limits.entries = 3),
        Refused(&["With entry \"a/b/c/d/e\" the layer has more than 3 files"]),
    ),
    (
        "too many entries of one name",
        |_| {
            let tar = (0..20).fold(Tar::new(), |tar, _| tar.file("same", b""));
            layer(tar).limited(|limits| limits.entries = 10)
        },
        Refused(&["With entry \"same\" the layer has more than 10 files"]),
    ),
    (
        "too many whiteouts",
        |_| {
            let tar = (0..20).fold(Tar::new(), |tar, n| tar.file(&format!(".wh.{n}"), b""));
            layer(tar).limited(|limits| limits.entries = 10)
        },
        Refused(&["the layer has more than 10 files"]),
    ),
    (
        "files larger than the limit together",
        |_| {
            let tar = Tar::new().file("a", &[1; 6000]).file("b", &[2; 6000]);
            layer(tar).limited(|limits| limits.layer_bytes = 10_240)
        },
        Refused(&["decompresses to more than 10240 bytes (HRUN_LIMIT_LAYER_SIZE"]),
    ),
    (
        "file that says to be larger than the limit",
        |_| {
            let large = |header: &mut tar::Header| header.set_size(20_000);
            let tar = Tar::new().with_header("large", "", b"", large);
            layer(tar).limited(|limits| limits.layer_bytes = 10_240)
        },
        Refused(&[
            "With entry \"large\" the layer unpacks to more than 10240 bytes (HRUN_LIMIT_LAYER_SIZE",
        ]),
    ),
    (
        "gzip bomb, by its size",
        |_| bomb(Compression::Gzip, 4 << 20).limited(|limits| limits.layer_bytes = 1 << 20),
        Refused(&["decompresses to more than 1048576 bytes (HRUN_LIMIT_LAYER_SIZE"]),
    ),
    (
        "gzip bomb, by its ratio",
        |_| {
            bomb(Compression::Gzip, 4 << 20).limited(|limits| {
                limits.free_bytes = 1 << 20;
                limits.ratio = 100;
            })
        },
        Refused(&["more than 100 times its size, as a bomb does (HRUN_LIMIT_RATIO"]),
    ),
    (
        "Zstandard bomb, by its ratio",
        |_| bomb(Compression::Zstd, 4 << 20).limited(|limits| limits.free_bytes = 1 << 20),
        Refused(&["more than 200 times its size, as a bomb does (HRUN_LIMIT_RATIO"]),
    ),
    (
        "what a user allows is no bomb",
        |_| {
            bomb(Compression::Gzip, 4 << 20).limited(|limits| {
                limits.free_bytes = 1 << 20;
                limits.ratio = 2000;
            })
        },
        Becomes(|seen| assert_eq!(seen.image.size, 4 << 20)),
    ),
    (
        "archive of images that is a bomb",
        |_| {
            let made = stack(&[b""]).limited(|limits| limits.free_bytes = 1 << 20);
            Made {
                file: Some(compress(&zeros(4 << 20), Compression::Zstd)),
                ..made.not_pulled()
            }
        },
        Refused(&["source decompresses to more than 200 times its size"]),
    ),
    (
        "archive of images larger than the limit",
        |_| {
            let made = stack(&[b""]).limited(|limits| limits.layer_bytes = 1 << 20);
            Made {
                file: Some(compress(&zeros(4 << 20), Compression::Gzip)),
                ..made.not_pulled()
            }
        },
        Refused(&["source decompresses to more than 1048576 bytes (HRUN_LIMIT_LAYER_SIZE"]),
    ),
    (
        "archive of too many members",
        |_| {
            let tar = (0..20).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b""));
            let made = stack(&[b""]).limited(|limits| limits.archive_members = 10);
            Made {
                file: Some(tar.finish()),
                ..made.not_pulled()
            }
        },
        Refused(&["source has more than 10 files: it is no archive of images"]),
    ),
    (
        "endless members of gzip",
        |_| {
            let tar = Tar::new().file("f", b"x").finish();
            let nothing = compress(b"", Compression::Gzip).repeat(20_000);
            let packed = [nothing, compress(&tar, Compression::Gzip)].concat();
            blob(&tar, Compression::Gzip, &packed)
        },
        Becomes(|seen| assert_eq!(seen.read("f"), b"x")),
    ),
    (
        "garbage behind gzip",
        |_| {
            let tar = Tar::new().file("f", b"x").finish();
            let packed = [compress(&tar, Compression::Gzip), vec![7; 100]].concat();
            blob(&tar, Compression::Gzip, &packed)
        },
        Refused(&["Failed to decompress layer sha256:"]),
    ),
    (
        "gzip cut short",
        |_| {
            let tar = Tar::new().file("f", &[7; 3000]).finish();
            let packed = compress(&tar, Compression::Gzip);
            blob(&tar, Compression::Gzip, &packed[..packed.len() - 9])
        },
        Refused(&["Failed to decompress layer sha256:"]),
    ),
    (
        "Zstandard that can be skipped as a whole",
        |_| {
            let frame = [&0x184D_2A50u32.to_le_bytes()[..], &[3, 0, 0, 0], b"abc"].concat();
            blob(b"", Compression::Zstd, &frame.repeat(1000))
        },
        Becomes(|seen| assert!(seen.list("").is_empty())),
    ),
    (
        "long name beyond the limit",
        |_| {
            layer(Tar::new().file(&"n".repeat(150), b""))
                .limited(|limits| limits.extension_bytes = 100)
        },
        Refused(&["extended header of 151 bytes, more than the limit of 100"]),
    ),
    (
        "too many layers",
        |_| {
            let layers: Vec<&[u8]> = vec![b""; 501];
            stack(&layers)
        },
        Refused(&["501 layers, more than the limit of 500 (HRUN_LIMIT_LAYERS"]),
    ),
];
