//! Environment variables: `-e`, `--env-file` and how they change an image's environment.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A change to an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EnvEdit {
    /// Add the variable or replace its value.
    Set { name: String, value: String },
    /// `-e NAME` for a variable that hrun's own environment lacks: take it out.
    Remove(String),
}

/// An environment option that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    /// `-e =x` and the like.
    #[error("Invalid environment variable {0:?}: it has no name")]
    NoName(String),
    /// A NUL byte cannot be in an environment.
    #[error("Invalid environment variable {0:?}: it contains a NUL byte")]
    Nul(String),
    /// The file of `--env-file` cannot be read.
    #[error("Failed to read environment file {path}")]
    Read { path: PathBuf, source: io::Error },
    /// A line of the file is no variable.
    #[error("{path}:{line}: variable {name:?} contains white space")]
    WhiteSpace {
        path: PathBuf,
        line: usize,
        name: String,
    },
    /// A line of the file has no name.
    #[error("{path}:{line}: no variable name before '='")]
    FileNoName { path: PathBuf, line: usize },
}

/// Parses the value of `-e`: `NAME=value`, or `NAME` to take it from `own`, hrun's environment.
pub(crate) fn parse(text: &str, own: impl Fn(&str) -> Option<String>) -> Result<EnvEdit, EnvError> {
    if text.contains('\0') {
        return Err(EnvError::Nul(text.into()));
    }
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, own(text)),
    };
    if name.is_empty() {
        return Err(EnvError::NoName(text.into()));
    }
    Ok(match value {
        Some(value) => EnvEdit::Set {
            name: name.into(),
            value,
        },
        None => EnvEdit::Remove(name.into()),
    })
}

/// Reads an `--env-file`.
pub(crate) fn read_file(
    path: &Path,
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<EnvEdit>, EnvError> {
    let text = fs::read_to_string(path).map_err(|source| EnvError::Read {
        path: path.into(),
        source,
    })?;
    parse_file(&text, path, own)
}

/// docker's rules: a line is `NAME=value`, the value taken literally, quotes and all; or `NAME`,
/// taken from hrun's environment and left out if it is not there; `#` starts a comment line.
fn parse_file(
    text: &str,
    path: &Path,
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<EnvEdit>, EnvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut edits = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.is_empty() {
            return Err(EnvError::FileNoName {
                path: path.into(),
                line: index + 1,
            });
        }
        if name.contains(char::is_whitespace) {
            return Err(EnvError::WhiteSpace {
                path: path.into(),
                line: index + 1,
                name: name.into(),
            });
        }
        match parse(line, &own)? {
            EnvEdit::Remove(_) => {}
            edit => edits.push(edit),
        }
    }
    Ok(edits)
}

/// Applies `edits` to `base`, a list of `NAME=value`: a variable keeps its place when its value
/// changes, new ones come last.
pub(crate) fn merge(base: &[String], edits: &[EnvEdit]) -> Vec<String> {
    let mut merged = base.to_vec();
    let position = |list: &[String], name: &str| {
        list.iter().position(|entry| {
            entry
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    for edit in edits {
        match edit {
            EnvEdit::Set { name, value } => {
                let entry = format!("{name}={value}");
                match position(&merged, name) {
                    Some(index) => merged[index] = entry,
                    None => merged.push(entry),
                }
            }
            EnvEdit::Remove(name) => {
                while let Some(index) = position(&merged, name) {
                    merged.remove(index);
                }
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Option<String> {
        (name == "HOST").then(|| "here".to_owned())
    }

    fn set(name: &str, value: &str) -> EnvEdit {
        EnvEdit::Set {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn a_value_may_be_empty_or_contain_equals_signs() {
        assert_eq!(parse("A=", own).unwrap(), set("A", ""));
        assert_eq!(parse("A=b=c", own).unwrap(), set("A", "b=c"));
    }

    #[test]
    fn a_name_alone_takes_the_value_from_our_environment() {
        assert_eq!(parse("HOST", own).unwrap(), set("HOST", "here"));
        assert_eq!(parse("GONE", own).unwrap(), EnvEdit::Remove("GONE".into()));
    }

    #[test]
    fn a_variable_without_name_is_refused() {
        assert!(matches!(parse("=x", own), Err(EnvError::NoName(_))));
        assert!(matches!(parse("", own), Err(EnvError::NoName(_))));
    }

    #[test]
    fn merging_replaces_in_place_appends_and_removes() {
        let base = ["PATH=/bin".to_owned(), "A=1".into(), "GONE=x".into()];
        let edits = [
            set("B", "2"),
            set("PATH", "/usr/bin"),
            EnvEdit::Remove("GONE".into()),
            set("B", "3"),
        ];
        assert_eq!(merge(&base, &edits), ["PATH=/usr/bin", "A=1", "B=3"]);
    }

    #[test]
    fn a_longer_name_with_the_same_beginning_is_another_variable() {
        let base = ["PATHS=x".to_owned()];
        assert_eq!(merge(&base, &[set("PATH", "y")]), ["PATHS=x", "PATH=y"]);
    }

    #[test]
    fn an_env_file_is_read_as_docker_reads_it() {
        let text = "\u{feff}# comment\n\n  A=1 \nB=\"quoted\"\nHOST\nGONE\nC=a b # no comment\n";
        assert_eq!(
            parse_file(text, Path::new("f"), own).unwrap(),
            [
                set("A", "1 "),
                set("B", "\"quoted\""),
                set("HOST", "here"),
                set("C", "a b # no comment"),
            ]
        );
    }

    #[test]
    fn a_bad_line_of_an_env_file_is_named() {
        let error = parse_file("A=1\nB C=2\n", Path::new("my.env"), own).unwrap_err();
        assert!(error.to_string().starts_with("my.env:2:"), "{error}");
        let error = parse_file("=2\n", Path::new("my.env"), own).unwrap_err();
        assert!(error.to_string().starts_with("my.env:1:"), "{error}");
    }
}
