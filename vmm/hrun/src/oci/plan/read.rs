//! Reading `config.json` and the files of `exec --process`.
//!
//! oci-spec refuses names that it does not know. Of capabilities engines may know more than it
//! does; those are dropped with a warning, as runc does.

use std::{fs, io, path::Path};

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::options::capability;

/// Longest document that is read, in bytes: many times what an engine writes.
const MAX_SIZE: u64 = 16 << 20;

/// A document that is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It cannot be read.
    #[error("Failed to read {path}")]
    Read { path: String, source: io::Error },
    /// It is too long.
    #[error("{path} has more than {MAX_SIZE} bytes")]
    Size { path: String },
    /// It is none of the specification's.
    #[error("Failed to parse {path}")]
    Parse {
        path: String,
        source: serde_json::Error,
    },
}

/// Reads a bundle's configuration, with warnings about what was left out.
pub(crate) fn read_spec(path: &Path) -> Result<(Spec, Vec<String>), ReadError> {
    parse(path, &read(path)?, "/process")
}

/// Reads the description of a further process, with warnings about what was left out.
pub(crate) fn read_process(path: &Path) -> Result<(Process, Vec<String>), ReadError> {
    parse(path, &read(path)?, "")
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let name = || path.display().to_string();
    let failed = |source| ReadError::Read {
        path: name(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > MAX_SIZE {
        return Err(ReadError::Size { path: name() });
    }
    fs::read(path).map_err(failed)
}

fn parse<T: DeserializeOwned>(
    path: &Path,
    json: &[u8],
    process: &str,
) -> Result<(T, Vec<String>), ReadError> {
    let refused = |source| ReadError::Parse {
        path: path.display().to_string(),
        source,
    };
    let error = match serde_json::from_slice(json) {
        Ok(document) => return Ok((document, Vec::new())),
        Err(error) => error,
    };
    let Ok(mut document) = serde_json::from_slice::<Value>(json) else {
        return Err(refused(error));
    };
    let warnings = match document.pointer_mut(process) {
        Some(Value::Object(process)) => complete(process),
        _ => Vec::new(),
    };
    let document = serde_json::from_value(document).map_err(refused)?;
    Ok((document, warnings))
}

/// Makes of a process what oci-spec takes: runc does not insist on these either.
fn complete(process: &mut Map<String, Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, default) in [("user", serde_json::json!({})), ("cwd", "/".into())] {
        process.entry(name).or_insert(default);
    }
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        let Value::Array(names) = names else { continue };
        names.retain(|name| {
            let known = name
                .as_str()
                .is_none_or(|name| capability::parse(name).is_ok());
            if !known {
                warnings.push(format!(
                    "process.capabilities.{set}: {name} is unknown and left out"
                ));
            }
            known
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_process(json: &str) -> Result<(Process, Vec<String>), ReadError> {
        parse(Path::new("p.json"), json.as_bytes(), "")
    }

    #[test]
    fn unknown_capabilities_are_left_out_with_a_warning() {
        let json = r#"{"cwd":"/","user":{},"args":["sh"],"capabilities":
            {"bounding":["CAP_CHOWN","CAP_FLY"],"effective":["CAP_KILL"]}}"#;
        let (process, warnings) = parse_process(json).unwrap();
        let sets = process.capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 1);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("bounding: \"CAP_FLY\""),
            "{warnings:?}"
        );
    }

    #[test]
    fn user_and_directory_need_not_be_said() {
        let (process, warnings) = parse_process(r#"{"args":["sh"]}"#).unwrap();
        assert_eq!(process.cwd(), Path::new("/"));
        assert_eq!(process.user().uid(), 0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_is_no_process_is_refused_by_its_name() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"args":7}"#,
            r#"{"capabilities":{"bounding":[7]}}"#,
        ] {
            let error = parse_process(json).unwrap_err().to_string();
            assert!(error.contains("p.json"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_spec(Path::new("/no/such/config.json")).unwrap_err();
        assert!(error.to_string().contains("/no/such/config.json"));
    }
}
