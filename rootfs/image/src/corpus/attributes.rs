//! Kinds, modes, owners, times and extended attributes that could steer the host.

use super::*;
use Then::{Becomes, Refused};

/// A file with one extended attribute.
fn with_xattr(name: &str, value: &[u8]) -> Made {
    let key = format!("SCHILY.xattr.{name}");
    layer(Tar::new().pax(&[(&key, value)]).file("f", b"data"))
}

/// The attribute is not set, and a note says so.
fn left_out(seen: &Seen<'_>, name: &str) {
    assert_eq!(seen.read("f"), b"data");
    assert!(seen.xattr("f", name).is_none(), "{name}");
    seen.noted(&format!("extended attribute \"{name}\" of \"f\" left out"));
}

pub(super) const CASES: &[Case] = &[
    (
        "character device",
        |_| {
            layer(
                Tar::new()
                    .entry(b'3', "dev/kmem", "", 0o666, b"")
                    .file("z", b""),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.list(""), ["z"]);
            seen.noted("device node \"dev/kmem\" left out");
        }),
    ),
    (
        "block device",
        |_| layer(Tar::new().entry(b'4', "sda", "", 0o666, b"").file("z", b"")),
        Becomes(|seen| {
            assert_eq!(seen.list(""), ["z"]);
            seen.noted("device node \"sda\" left out");
        }),
    ),
    (
        "socket, or what else tar has no letter for",
        |_| {
            layer(
                Tar::new()
                    .entry(b's', "sock", "", 0o777, b"data")
                    .file("z", b""),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.list(""), ["z"]);
            seen.noted("entry \"sock\" of unknown kind 0x73 left out");
        }),
    ),
    (
        "mode of a socket on a file",
        |_| layer(Tar::new().entry(b'0', "f", "", 0o140_755, b"x")),
        Becomes(|seen| {
            assert_eq!(seen.read("f"), b"x");
            assert_eq!(seen.mode("f"), 0o755);
        }),
    ),
    (
        "fifo",
        |_| layer(Tar::new().entry(b'6', "fifo", "", 0o2622, b"")),
        Becomes(|seen| {
            let kind = seen.at("fifo").symlink_metadata().unwrap().file_type();
            assert!(kind.is_fifo());
            assert_eq!(seen.mode("fifo"), 0o2622);
        }),
    ),
    (
        "set-user-id program",
        |_| {
            let root = |header: &mut tar::Header| {
                header.set_uid(0);
                header.set_mode(0o6755);
            };
            layer(Tar::new().with_header("su", "", b"#!", root))
        },
        Becomes(|seen| {
            // It is kept, but nobody but root can get there.
            assert_eq!(seen.mode("su"), 0o6755);
            let layers = seen.image.layers()[0].parent().unwrap();
            for directory in [layers, layers.parent().unwrap()] {
                let mode = directory.metadata().unwrap().mode();
                assert_eq!(mode & 0o077, 0, "{directory:?}");
            }
        }),
    ),
    (
        "set-user-id program in the place of a link",
        |canary| {
            let link = Tar::new().symlink("su", &format!("{canary}/bird"));
            layer(link.entry(b'0', "su", "", 0o4777, b"x"))
        },
        Becomes(|seen| assert_eq!(seen.mode("su"), 0o4777)),
    ),
    (
        "set-group-id directory does not spread",
        |_| {
            let dir = Tar::new().entry(b'5', "d", "", 0o2777, b"");
            layer(dir.with_header("d/f", "", b"", |header| header.set_gid(7)))
        },
        Becomes(|seen| assert_eq!(seen.at("d/f").metadata().unwrap().gid(), 7)),
    ),
    (
        "owner that means no change",
        |_| {
            let nobody = |header: &mut tar::Header| header.set_uid(u64::from(u32::MAX));
            layer(Tar::new().with_header("id", "", b"", nobody))
        },
        Refused(&["entry \"id\" is refused: its owner is not a user or group id"]),
    ),
    (
        "group beyond all groups",
        |_| layer(Tar::new().with_header("id", "", b"", |header| header.set_gid(1 << 40))),
        Refused(&["entry \"id\" is refused: its owner is not a user or group id"]),
    ),
    (
        "negative owner",
        |_| {
            let negative = |header: &mut tar::Header| header.as_old_mut().uid = [0xff; 8];
            layer(Tar::new().with_header("id", "", b"", negative))
        },
        Refused(&["is not valid: user id"]),
    ),
    (
        "times at the ends of time",
        |_| {
            layer(
                Tar::new()
                    .pax(&[("mtime", b"9223372036854775807.999999999")])
                    .file("late", b"")
                    .pax(&[("mtime", b"-9223372036854775807.999999999")])
                    .file("early", b""),
            )
        },
        Becomes(|seen| assert_eq!(seen.list(""), ["early", "late"])),
    ),
    (
        "overlayfs: opaque directory",
        |_| {
            let pax = Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]);
            layer(pax.dir("below"))
        },
        Becomes(|seen| {
            assert!(!seen.is_opaque("below"));
            seen.noted("it belongs to overlayfs");
        }),
    ),
    (
        "overlayfs: redirect",
        |_| with_xattr("trusted.overlay.redirect", b"/etc"),
        Becomes(|seen| left_out(seen, "trusted.overlay.redirect")),
    ),
    (
        "overlayfs: metacopy",
        |_| with_xattr("trusted.overlay.metacopy", b""),
        Becomes(|seen| left_out(seen, "trusted.overlay.metacopy")),
    ),
    (
        "overlayfs: whiteout by attribute",
        |_| with_xattr("trusted.overlay.whiteout", b"y"),
        Becomes(|seen| left_out(seen, "trusted.overlay.whiteout")),
    ),
    (
        "overlayfs: attributes of users",
        |_| with_xattr("user.overlay.opaque", b"y"),
        Becomes(|seen| left_out(seen, "user.overlay.opaque")),
    ),
    (
        "label of a security module",
        |_| with_xattr("security.selinux", b"system_u:object_r:shadow_t:s0"),
        Becomes(|seen| left_out(seen, "security.selinux")),
    ),
    (
        "signature of the integrity measurement",
        |_| with_xattr("security.ima", b"\x03\x02"),
        Becomes(|seen| left_out(seen, "security.ima")),
    ),
    (
        "access list that is none",
        |_| with_xattr("system.posix_acl_access", b"rubbish"),
        Becomes(|seen| left_out(seen, "system.posix_acl_access")),
    ),
    (
        "attribute on a link to the canary",
        |canary| {
            let pax = Tar::new().pax(&[("SCHILY.xattr.trusted.x", b"y")]);
            layer(pax.symlink("l", &format!("{canary}/bird")))
        },
        Becomes(|seen| {
            let bird = Path::new(seen.canary).join("bird");
            let value = &mut [0; 8][..];
            assert!(rustix::fs::getxattr(bird, "trusted.x", value).is_err());
            seen.noted("extended attributes of \"l\" left out");
        }),
    ),
    (
        "attribute larger than any",
        |_| with_xattr("user.large", &[7; 70_000]),
        Refused(&["entry \"f\" is refused: it has an extended attribute too large"]),
    ),
    (
        "attribute with an endless name",
        |_| with_xattr(&format!("user.{}", "n".repeat(300)), b"x"),
        Refused(&["entry \"f\" is refused: it has an extended attribute too large"]),
    ),
    (
        "attribute without a name",
        |_| with_xattr("", b"x"),
        Refused(&["an extended attribute has no valid name"]),
    ),
    (
        "attributes with newlines",
        |_| {
            // A capability of version 2 that has a newline, which PAX readers have tripped over.
            let capability = [&[1, 0, 0, 2, 10, 0, 0, 0][..], &[0; 12]].concat();
            layer(
                Tar::new()
                    .pax(&[
                        ("SCHILY.xattr.user.note", b"a\n20 path=../canary/x\n"),
                        ("SCHILY.xattr.security.capability", &capability),
                    ])
                    .file("f", b"data"),
            )
        },
        Becomes(|seen| {
            let note = seen.xattr("f", "user.note").unwrap();
            assert_eq!(note, b"a\n20 path=../canary/x\n");
            assert_eq!(seen.xattr("f", "security.capability").unwrap()[4], 10);
        }),
    ),
];
