//! Seeds for the image store's parsers: documents and layers as ordinary tools write them.

use std::io;

use serde_json::json;
use tar::{Builder, EntryType, Header};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An index, manifests of both families, a configuration, and names.
pub(crate) fn documents() -> Vec<Vec<u8>> {
    let descriptor =
        |media_type: &str| json!({"mediaType": media_type, "digest": DIGEST, "size": 0});
    let mut platform = descriptor("application/vnd.oci.image.manifest.v1+json");
    platform["platform"] = json!({"architecture": "amd64", "os": "linux", "variant": "v3"});
    let documents = [
        json!({"schemaVersion": 2, "manifests": [platform], "annotations": {"a": "b"}}),
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+zstd")],
        }),
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": descriptor("application/vnd.docker.container.image.v1+json"),
            "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip")],
        }),
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["sh"],
                "Entrypoint": ["/init"],
                "Env": ["PATH=/bin"],
                "ExposedPorts": {"80/tcp": {}},
                "User": "1:2",
                "Volumes": {"/data": {}},
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            "history": [{"created": "1970-01-01T00:00:00Z", "empty_layer": true}],
        }),
    ];
    let names = [
        "busybox",
        "localhost:5000/a/b:tag",
        &format!("[::1]:1/a__b--c@{DIGEST}"),
    ]
    .map(|name| name.as_bytes().to_vec());
    documents
        .iter()
        .map(|document| document.to_string().into_bytes())
        .chain(names)
        .collect()
}

/// Challenges and answers of token servers, and names of registries.
pub(crate) fn answers() -> Vec<Vec<u8>> {
    [
        r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull""#,
        r#"Negotiate, Basic realm="with \"quotes\"" , charset=UTF-8"#,
        r#"{"token": "a.b-c_d", "access_token": "e", "expires_in": 300}"#,
        "https://index.docker.io/v1/",
        "[::1]:5000",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Layers with every kind of entry that has a meaning of its own.
pub(crate) fn layers() -> io::Result<Vec<Vec<u8>>> {
    let plain = Layer::new()
        .add(EntryType::Directory, "dir/", "", b"")?
        .add(EntryType::Regular, "dir/file", "", b"contents")?
        .add(EntryType::Link, "dir/hard", "dir/file", b"")?
        .add(EntryType::Symlink, "link", "dir", b"")?
        .add(EntryType::Regular, "link/through", "", b"x")?
        .add(EntryType::Fifo, "pipe", "", b"")?
        .add(EntryType::Char, "dev/null", "", b"")?;
    let whiteouts = Layer::new()
        .add(EntryType::Regular, "a/.wh.gone", "", b"")?
        .add(EntryType::Regular, "b/.wh..wh..opq", "", b"")?
        .add(EntryType::Regular, "b/new", "", b"n")?
        .add(EntryType::Directory, "a/gone", "", b"")?
        .add(EntryType::Regular, "b", "", b"file")?
        .add(EntryType::Symlink, "up", "../..", b"")?
        .add(EntryType::Regular, "up/x", "", b"")?;
    let long = "long/".repeat(40);
    let mut extended = Layer::new().add(EntryType::Regular, &long, "", b"")?;
    extended.0.append_pax_extensions([
        ("path", &b"pax/path"[..]),
        ("mtime", b"1.5"),
        ("SCHILY.xattr.user.x", b"y"),
    ])?;
    let mut extended = extended.add(EntryType::Regular, "short", "", b"")?;
    extended.0.append_pax_extensions([
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.size", b"1000"),
        ("GNU.sparse.map", b"0,1,999,1"),
    ])?;
    let extended = extended.add(EntryType::Regular, "sparse", "", b"ab")?;
    [plain, whiteouts, extended]
        .into_iter()
        .map(|layer| layer.0.into_inner())
        .collect()
}

/// What comes out of a container, behind a byte that says where to and how.
pub(crate) fn copies() -> io::Result<Vec<Vec<u8>>> {
    let tree = Layer::new()
        .add(EntryType::Directory, "x/", "", b"")?
        .add(EntryType::Regular, "x/file", "", b"contents")?
        .add(EntryType::Link, "x/hard", "x/file", b"")?
        .add(EntryType::Symlink, "x/up", "../..", b"")?
        .add(EntryType::Regular, "x/up/through", "", b"x")?
        .add(EntryType::Fifo, "x/pipe", "", b"")?
        .add(EntryType::Char, "x/null", "", b"")?;
    let file = Layer::new().add(EntryType::Regular, "x", "", b"contents")?;
    let archives = [tree, file].map(|archive| archive.0.into_inner());
    let mut seeds = Vec::new();
    for archive in archives {
        let archive = archive?;
        seeds.extend((0..16).map(|how| [&[how], archive.as_slice()].concat()));
    }
    Ok(seeds)
}

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> io::Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            self.0.append_data(&mut header, path, data)?;
        } else {
            self.0.append_link(&mut header, path, link)?;
        }
        Ok(self)
    }
}
