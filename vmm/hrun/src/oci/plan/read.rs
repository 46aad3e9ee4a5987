//! Reading `config.json` and the files of `exec --process`.
//!
//! oci-spec refuses names that it does not know. Of capabilities engines may know more than it
//! does; those are dropped with a warning, as runc does.
//!
//! Boundary: bytes come in; where they are from is the caller's business.

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Error, Map, Value};

use crate::options::capability;

/// Parses a bundle's configuration; gives warnings about what was left out.
pub(crate) fn spec(json: &[u8]) -> Result<(Spec, Vec<String>), Error> {
    parse(json, "/process")
}

/// Parses the description of a further process; gives warnings about what was left out.
pub(crate) fn process(json: &[u8]) -> Result<(Process, Vec<String>), Error> {
    parse(json, "")
}

fn parse<T: DeserializeOwned>(json: &[u8], process: &str) -> Result<(T, Vec<String>), Error> {
    let error = match serde_json::from_slice(json) {
        Ok(document) => return Ok((document, Vec::new())),
        Err(error) => error,
    };
    let Ok(mut document) = serde_json::from_slice::<Value>(json) else {
        // With the line in which it stands.
        return Err(error);
    };
    let warnings = match document.pointer_mut(process) {
        Some(Value::Object(process)) => complete(process),
        _ => Vec::new(),
    };
    match serde_json::from_value(document) {
        Ok(document) => Ok((document, warnings)),
        Err(_) if warnings.is_empty() => Err(error),
        Err(other) => Err(other),
    }
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
    use std::path::Path;

    use super::*;

    fn parsed(json: &str) -> (Process, Vec<String>) {
        process(json.as_bytes()).unwrap()
    }

    #[test]
    fn unknown_capabilities_are_left_out_with_a_warning() {
        let json = r#"{"cwd":"/","user":{},"args":["sh"],"capabilities":
            {"bounding":["CAP_CHOWN","CAP_FLY"],"effective":["CAP_KILL"]}}"#;
        let (process, warnings) = parsed(json);
        let sets = process.capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 1);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("bounding: \"CAP_FLY\""),
            "{warnings:?}"
        );
        let whole = format!(r#"{{"ociVersion":"1.2.0","process":{json}}}"#);
        let (spec, warnings) = spec(whole.as_bytes()).unwrap();
        assert!(spec.process().is_some() && warnings.len() == 1);
    }

    #[test]
    fn user_and_directory_need_not_be_said() {
        let (process, warnings) = parsed(r#"{"args":["sh"]}"#);
        assert_eq!(process.cwd(), Path::new("/"));
        assert_eq!(process.user().uid(), 0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"args":7}"#,
            r#"{"capabilities":{"bounding":[7]}}"#,
        ] {
            assert!(process(json.as_bytes()).is_err(), "{json}");
        }
        let error = process(b"{\n\"args\":7}").unwrap_err();
        assert_eq!(error.line(), 2, "{error}");
    }
}
