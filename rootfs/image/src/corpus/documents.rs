//! Indexes, manifests and configurations that lie.

use serde_json::{Value, json};

use super::*;
use crate::digest;
use crate::testing::layout::{CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE};
use Then::{Becomes, Refused};

const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const RESTRICTED: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

/// What cannot be read as a manifest. A registry that states no type leaves it to the document.
const NO_MANIFEST: &[&str] = &[
    "is not valid JSON of its kind",
    "which is no image manifest that hrun knows",
];

fn good() -> Layout {
    let mut layout = Layout::new();
    let layers = ["a", "b"].map(|name| Tar::new().file(name, name.as_bytes()).finish());
    layout.image(&[&layers[0], &layers[1]], None);
    layout
}

/// A good image whose manifest is `text`.
fn manifest_text(text: &str) -> Made {
    let mut layout = good();
    layout.manifests.clear();
    let manifest = layout.blob(MANIFEST_TYPE, text.as_bytes());
    layout.list(manifest, None);
    Made::layout(layout)
}

/// A good image with a changed manifest.
fn manifest(change: impl FnOnce(&mut Value)) -> Made {
    let layout = good();
    let mut document = layout.document(&layout.manifests[0]);
    change(&mut document);
    manifest_text(&document.to_string())
}

/// The same, changed as text: JSON that no writer makes.
fn rewritten(from: &str, to: &str) -> Made {
    let layout = good();
    let text = layout.document(&layout.manifests[0]).to_string();
    assert!(text.contains(from), "{text}");
    manifest_text(&text.replacen(from, to, 1))
}

/// A good image with another configuration, to which the manifest agrees.
fn configuration_text(change: impl FnOnce(String) -> String) -> Made {
    let mut layout = good();
    let mut document = layout.document(&layout.manifests[0]);
    let old = layout.document(&document["config"]).to_string();
    document["config"] = layout.blob(CONFIG_TYPE, change(old).as_bytes());
    layout.manifests.clear();
    let manifest = layout.blob(MANIFEST_TYPE, document.to_string().as_bytes());
    layout.list(manifest, None);
    Made::layout(layout)
}

fn configuration(change: impl FnOnce(&mut Value)) -> Made {
    configuration_text(|text| {
        let mut value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        value.to_string()
    })
}

/// A layout whose `index.json` is this.
fn index(text: &[u8]) -> Made {
    let mut layout = good();
    layout.files.insert("index.json".into(), text.to_vec());
    Made::layout(layout).not_pulled()
}

fn docker(manifest: &Value) -> Made {
    let layer = Tar::new().file("a", b"a").finish();
    let mut layout = Layout::docker(&[&layer], &["x"]);
    let text = manifest.to_string().into_bytes();
    layout.files.insert("manifest.json".into(), text);
    Made::layout(layout)
}

/// JSON that is `depth` arrays deep.
fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

pub(super) const CASES: &[Case] = &[
    (
        "manifests and layers in one document",
        |_| manifest(|m| m["manifests"] = json!([])),
        Refused(&["has both manifests and layers"]),
    ),
    (
        "image without layers",
        |_| manifest(|m| m["layers"] = json!([])),
        Refused(&["The image has no layers"]),
    ),
    (
        "manifest that does not speak of layers",
        |_| manifest(|m| drop(m.as_object_mut().unwrap().remove("layers"))),
        Refused(&["missing field `layers`"]),
    ),
    (
        "manifest of schema version 1",
        |_| manifest(|m| m["schemaVersion"] = json!(1)),
        Refused(&["has schema version 1; only version 2 is supported"]),
    ),
    (
        "manifest that calls itself an index",
        |_| manifest(|m| m["mediaType"] = json!(INDEX_TYPE)),
        Refused(&[
            "calls itself application/vnd.oci.image.index",
            "image index",
        ]),
    ),
    (
        "layer of an unknown type",
        |_| manifest(|m| m["layers"][1]["mediaType"] = json!("text/plain")),
        Refused(&["has the unsupported media type text/plain"]),
    ),
    (
        "foreign layer of docker",
        |_| manifest(|m| m["layers"][1]["mediaType"] = json!(FOREIGN)),
        Refused(&["is a foreign layer: its contents are not part of the image"]),
    ),
    (
        "layer that may not be distributed",
        |_| manifest(|m| m["layers"][0]["mediaType"] = json!(RESTRICTED)),
        Refused(&["is a foreign layer: its contents are not part of the image"]),
    ),
    (
        "foreign layer with an address",
        |_| {
            manifest(|m| {
                m["layers"][0]["mediaType"] = json!(FOREIGN);
                m["layers"][0]["urls"] = json!(["http://169.254.169.254/secret"]);
            })
        },
        Refused(&["is a foreign layer"]),
    ),
    (
        "artifact that is no image",
        |_| {
            manifest(|m| {
                m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
            })
        },
        Refused(&["The manifest is not of a container image"]),
    ),
    (
        "digest that is a path",
        |_| manifest(|m| m["layers"][0]["digest"] = json!("sha256:../../../canary/bird")),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "digest of an algorithm that nobody checks",
        |_| manifest(|m| m["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)))),
        Refused(&["is not a SHA-256 digest"]),
    ),
    (
        "digest of a configuration that is not there",
        |_| manifest(|m| m["config"]["digest"] = json!(digest::of(b"nothing"))),
        Refused(&["is missing", "has no blob"]),
    ),
    (
        "digest of a configuration that is a layer",
        |_| {
            manifest(|m| {
                m["config"]["digest"] = m["layers"][0]["digest"].clone();
                m["config"]["size"] = m["layers"][0]["size"].clone();
            })
        },
        Refused(&["is not valid JSON of its kind", "expected value"]),
    ),
    (
        "layers in another order than their diff ids",
        |_| manifest(|m| m["layers"].as_array_mut().unwrap().reverse()),
        Refused(&["as the configuration says"]),
    ),
    (
        "configuration of another size",
        |_| manifest(|m| m["config"]["size"] = json!(m["config"]["size"].as_u64().unwrap() + 1)),
        Refused(&["bytes long", "bytes where"]),
    ),
    (
        "layer of another size",
        |_| {
            manifest(|m| {
                m["layers"][1]["size"] = json!(m["layers"][1]["size"].as_u64().unwrap() - 1);
            })
        },
        Refused(&["bytes long", "bytes where", "are declared"]),
    ),
    (
        "layer of an exbibyte",
        |_| manifest(|m| m["layers"][0]["size"] = json!(1u64 << 60)),
        Refused(&[
            "bytes long",
            "larger than 274877906944 bytes (HRUN_LIMIT_LAYER_SIZE",
        ]),
    ),
    (
        "configuration of a tebibyte",
        |_| manifest(|m| m["config"]["size"] = json!(1u64 << 40)),
        Refused(&[
            "bytes long",
            "larger than 4194304 bytes (HRUN_LIMIT_MANIFEST_SIZE",
        ]),
    ),
    (
        "layer of a negative size",
        |_| manifest(|m| m["layers"][0]["size"] = json!(-1)),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "size beyond all numbers",
        |_| rewritten("\"size\":", "\"size\":1e400,\"s\":"),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "layers twice in one manifest",
        |_| rewritten("\"layers\":", "\"layers\":[],\"layers\":"),
        Refused(&["duplicate field `layers`"]),
    ),
    (
        "configuration twice in one manifest",
        |_| rewritten("\"config\":", "\"config\":{},\"config\":"),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "digest twice in one descriptor",
        |_| rewritten("\"digest\":", "\"digest\":\"sha256:00\",\"digest\":"),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "schema version twice",
        |_| {
            rewritten(
                "\"schemaVersion\":",
                "\"schemaVersion\":1,\"schemaVersion\":",
            )
        },
        Refused(&["duplicate field `schemaVersion`"]),
    ),
    (
        "diff ids twice",
        |_| {
            configuration_text(|text| {
                text.replacen("\"diff_ids\":", "\"diff_ids\":[],\"diff_ids\":", 1)
            })
        },
        Refused(&["duplicate field `diff_ids`"]),
    ),
    (
        "JSON without an end",
        |_| {
            manifest_text(&format!(
                "{{\"schemaVersion\": 2, \"x\": {}",
                "[".repeat(1 << 20)
            ))
        },
        Refused(NO_MANIFEST),
    ),
    (
        "JSON too deep where it counts",
        |_| {
            rewritten(
                "\"config\":",
                &format!("\"config\":{},\"x\":", deep(100_000)),
            )
        },
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "JSON too deep where nobody looks",
        |_| {
            rewritten(
                "\"config\":",
                &format!("\"x\":{},\"config\":", deep(100_000)),
            )
        },
        Becomes(|seen| assert_eq!(seen.read("b"), b"b")),
    ),
    (
        "configuration too deep in its own fields",
        |_| {
            configuration_text(|text| {
                text.replacen("\"Env\":", &format!("\"Env\":{},\"x\":", deep(100_000)), 1)
            })
        },
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "manifest that is a number",
        |_| manifest_text("7"),
        Refused(NO_MANIFEST),
    ),
    (
        "manifest that is nothing",
        |_| manifest_text(""),
        Refused(NO_MANIFEST),
    ),
    (
        "manifest larger than all",
        |_| manifest_text(&" ".repeat(5 << 20)),
        Refused(&[
            "more than the limit of 4194304 (HRUN_LIMIT_MANIFEST_SIZE",
            "larger than 4194304 bytes (HRUN_LIMIT_MANIFEST_SIZE",
        ]),
    ),
    (
        "diff id of another layer",
        |_| configuration(|c| c["rootfs"]["diff_ids"][0] = json!(digest::of(b"another"))),
        Refused(&["as the configuration says"]),
    ),
    (
        "diff id that is a path",
        |_| configuration(|c| c["rootfs"]["diff_ids"][0] = json!("../../../canary")),
        Refused(&["../../../canary is not a SHA-256 digest"]),
    ),
    (
        "fewer diff ids than layers",
        |_| configuration(|c| drop(c["rootfs"]["diff_ids"].as_array_mut().unwrap().pop())),
        Refused(&["The manifest lists 2 layers, the configuration 1"]),
    ),
    (
        "more diff ids than layers",
        |_| manifest(|m| drop(m["layers"].as_array_mut().unwrap().pop())),
        Refused(&["The manifest lists 1 layers, the configuration 2"]),
    ),
    (
        "root file system that is not of layers",
        |_| configuration(|c| c["rootfs"]["type"] = json!("squashfs")),
        Refused(&["is of type squashfs, not layers"]),
    ),
    (
        "configuration that is none",
        |_| configuration_text(|_| "[]".into()),
        Refused(&["is not valid JSON of its kind"]),
    ),
    (
        "image for another machine",
        |_| configuration(|c| c["architecture"] = json!("s390x")),
        Refused(&["only for linux/s390x"]),
    ),
    (
        "blob that is not what its name says",
        |_| {
            let mut layout = good();
            let document = layout.document(&layout.manifests[0]);
            let name = document["layers"][0]["digest"].as_str().unwrap();
            let file = format!("blobs/{}", name.replace(':', "/"));
            // The operating system in the header of gzip: it decompresses all the same.
            layout.files.get_mut(&file).unwrap()[9] ^= 1;
            Made::layout(layout)
        },
        Refused(&["is damaged: it is sha256:", "it was damaged or replaced"]),
    ),
    (
        "index of a thousand and one",
        |_| {
            let entry = json!({"mediaType": MANIFEST_TYPE, "digest": digest::of(b""), "size": 1});
            let many: Vec<_> = vec![entry; 1001];
            let mut layout = Layout::new();
            let text = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": many});
            let index = layout.blob(INDEX_TYPE, text.to_string().as_bytes());
            layout.list(index, None);
            Made::layout(layout)
        },
        Refused(&[
            "lists 1001 manifests, more than the limit of 1000",
            "it lists too much",
        ]),
    ),
    (
        "index in an index, and so on",
        |_| {
            let mut layout = good();
            let mut inner = layout.manifests[0].clone();
            for _ in 0..20 {
                let text =
                    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [inner]});
                inner = layout.blob(INDEX_TYPE, text.to_string().as_bytes());
            }
            layout.manifests.clear();
            layout.list(inner, None);
            Made::layout(layout)
        },
        Refused(&["too many indexes within indexes", "too many indexes in it"]),
    ),
    (
        "index that lists one large image a thousand times",
        |_| {
            let mut made = configuration_text(|text| text + &" ".repeat(1 << 20));
            let manifest = made.layout.manifests[0].clone();
            for _ in 0..999 {
                made.layout.manifests.push(manifest.clone());
            }
            made.layout.list(manifest, None);
            made.not_pulled()
                .limited(|limits| limits.document_bytes = 8 << 20)
        },
        Refused(&[
            "lists 1001 manifests",
            "has more than 8388608 bytes of manifests and configurations",
        ]),
    ),
    (
        "index that is a list of layers, too",
        |_| index(br#"{"schemaVersion": 2, "manifests": [], "layers": []}"#),
        Refused(&["has both manifests and layers"]),
    ),
    (
        "index with a byte order mark",
        |_| index(b"\xef\xbb\xbf{\"schemaVersion\": 2, \"manifests\": []}"),
        Refused(&["index.json in"]),
    ),
    (
        "index of nothing",
        |_| index(br#"{"schemaVersion": 2, "manifests": []}"#),
        Refused(&["holds no image"]),
    ),
    (
        "name of an image that steers the terminal",
        |_| {
            let mut made = manifest(|_| ());
            let mut first = made.layout.manifests.remove(0);
            first["annotations"] = json!({"io.containerd.image.name": "a\u{1b}[2J:b"});
            made.layout.list(first, None);
            made.not_pulled()
        },
        Becomes(|seen| {
            assert!(seen.image.names.is_empty());
            seen.noted("name left out");
            assert!(!seen.notes.contains('\x1b'), "{:?}", seen.notes);
        }),
    ),
    (
        "type of a layer that steers the terminal",
        |_| manifest(|m| m["layers"][0]["mediaType"] = json!("text/\u{1b}[2J")),
        Refused(&[r"has the unsupported media type text/\u{1b}[2J"]),
    ),
    (
        "machine that steers the terminal",
        |_| configuration(|c| c["architecture"] = json!("\u{1b}[2J")),
        Refused(&[r"only for linux/\u{1b}[2J"]),
    ),
    (
        "root file system that steers the terminal",
        |_| configuration(|c| c["rootfs"]["type"] = json!("\u{1b}[2J")),
        Refused(&[r"is of type \u{1b}[2J"]),
    ),
    (
        "docker: file that steers the terminal",
        |_| docker(&json!([{"Config": "\u{1b}[2J", "Layers": ["0/layer.tar"]}])),
        Refused(&[r"\u{1b}[2J is missing in"]),
    ),
    (
        "docker: configuration outside of the archive",
        |_| docker(&json!([{"Config": "../canary/bird", "Layers": ["0/layer.tar"]}])),
        Refused(&["../canary/bird in"]),
    ),
    (
        "docker: layer outside of the archive",
        |canary| {
            let made = docker(&json!([]));
            let config = made
                .layout
                .files
                .keys()
                .find(|name| name.ends_with(".json"))
                .unwrap();
            let bird = format!("{canary}/bird");
            docker(&json!([{"Config": config, "Layers": [bird]}]))
        },
        Refused(&["canary/bird in"]),
    ),
    (
        "docker: configuration that is not what its name says",
        |_| {
            let mut made = docker(&json!([]));
            let name = format!("{}.json", "ab".repeat(32));
            let config = config(&[&Tar::new().file("a", b"a").finish()]);
            made.layout
                .files
                .insert(name.clone(), config.to_string().into_bytes());
            let list = json!([{"Config": name, "Layers": ["0/layer.tar"]}]).to_string();
            made.layout
                .files
                .insert("manifest.json".into(), list.into_bytes());
            made
        },
        Refused(&["is damaged: it is sha256:"]),
    ),
    (
        "docker: one configuration a hundred thousand times",
        |_| {
            let made = docker(&json!([]));
            let mut names = made.layout.files.keys();
            let config = names.find(|name| name.ends_with(".json")).unwrap();
            let image = json!({"Config": config, "Layers": ["0/layer.tar"]});
            docker(&Value::from(vec![image; 20_000]))
                .limited(|limits| limits.document_bytes = 4 << 20)
        },
        Refused(&["has more than 4194304 bytes of manifests and configurations"]),
    ),
];
