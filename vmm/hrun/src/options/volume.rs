//! `-v SRC:DST[:OPTIONS]`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A volume as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// What is shown.
    pub(crate) source: VolumeSource,
    /// Where in the container: absolute, without `.`, `..` and repeated slashes.
    pub(crate) target: String,
    /// Whether the container may not write.
    pub(crate) read_only: bool,
}

/// Where a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VolumeSource {
    /// A file or directory of the host, absolute.
    Path(PathBuf),
    /// A named volume of hrun's store.
    Named(String),
}

/// A volume that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Not of the form.
    #[error("Invalid volume {0:?}: give SRC:DST or SRC:DST:ro")]
    Form(String),
    /// DST is relative.
    #[error("Invalid volume {volume:?}: {target:?} in the container must be an absolute path")]
    RelativeTarget { volume: String, target: String },
    /// DST has `..` in it.
    #[error("Invalid volume {volume:?}: {target:?} must not contain \"..\"")]
    ParentTarget { volume: String, target: String },
    /// DST is the root.
    #[error("Invalid volume {0:?}: a volume cannot replace the container's root")]
    Root(String),
    /// SRC is neither a path nor a name.
    #[error(
        "Invalid volume {volume:?}: {name:?} is no volume name (letters, digits, '_', '.', '-'); \
         for a path of the host begin it with '/' or './'"
    )]
    Name { volume: String, name: String },
    /// An option is unknown.
    #[error("Invalid volume {volume:?}: option {option:?} is not known, only ro and rw are")]
    Option { volume: String, option: String },
    /// Two volumes have one place.
    #[error("Two volumes are to be mounted on {0}")]
    Duplicate(String),
}

/// Parses one volume; a relative source begins at `cwd`.
pub(crate) fn parse(text: &str, cwd: &Path) -> Result<Volume, VolumeError> {
    let volume = || text.to_owned();
    if text.contains('\0') {
        return Err(VolumeError::Form(volume()));
    }
    let mut parts = text.split(':');
    let (Some(source), Some(target), options, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(VolumeError::Form(volume()));
    };
    if source.is_empty() || target.is_empty() {
        return Err(VolumeError::Form(volume()));
    }
    let mut read_only = false;
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => read_only = true,
            // SELinux labels (z, Z) are for processes of the host: a guest's accesses are those
            // of the VMM, so there is nothing to relabel.
            "rw" | "z" | "Z" => {}
            option => {
                return Err(VolumeError::Option {
                    volume: volume(),
                    option: option.into(),
                });
            }
        }
    }
    Ok(Volume {
        source: parse_source(source, text, cwd)?,
        target: parse_target(target, text)?,
        read_only,
    })
}

fn parse_source(source: &str, volume: &str, cwd: &Path) -> Result<VolumeSource, VolumeError> {
    let relative =
        source == "." || source == ".." || source.starts_with("./") || source.starts_with("../");
    if source.starts_with('/') || relative {
        return Ok(VolumeSource::Path(cwd.join(source)));
    }
    let name_like = source.starts_with(|c: char| c.is_ascii_alphanumeric())
        && source
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if name_like {
        Ok(VolumeSource::Named(source.into()))
    } else {
        Err(VolumeError::Name {
            volume: volume.into(),
            name: source.into(),
        })
    }
}

fn parse_target(target: &str, volume: &str) -> Result<String, VolumeError> {
    if !target.starts_with('/') {
        return Err(VolumeError::RelativeTarget {
            volume: volume.into(),
            target: target.into(),
        });
    }
    let mut clean = String::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                return Err(VolumeError::ParentTarget {
                    volume: volume.into(),
                    target: target.into(),
                });
            }
            part => {
                clean.push('/');
                clean.push_str(part);
            }
        }
    }
    if clean.is_empty() {
        return Err(VolumeError::Root(volume.into()));
    }
    Ok(clean)
}

/// Puts volumes into the order in which they can be mounted: one inside another comes after it.
pub(crate) fn order(mut volumes: Vec<Volume>) -> Result<Vec<Volume>, VolumeError> {
    for (index, volume) in volumes.iter().enumerate() {
        if volumes[..index]
            .iter()
            .any(|other| other.target == volume.target)
        {
            return Err(VolumeError::Duplicate(volume.target.clone()));
        }
    }
    volumes.sort_by_key(|volume| volume.target.matches('/').count());
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Volume, VolumeError> {
        parse(text, Path::new("/home/me"))
    }

    #[test]
    fn absolute_and_relative_sources_are_paths() {
        for (text, path) in [
            ("/srv:/data", "/srv"),
            ("./src:/data", "/home/me/./src"),
            (".:/data", "/home/me/."),
            ("../x:/data", "/home/me/../x"),
        ] {
            let volume = parsed(text).unwrap();
            assert_eq!(volume.source, VolumeSource::Path(path.into()), "{text}");
            assert_eq!(volume.target, "/data");
            assert!(!volume.read_only);
        }
    }

    #[test]
    fn a_bare_word_is_a_named_volume() {
        let volume = parsed("cache.1:/data").unwrap();
        assert_eq!(volume.source, VolumeSource::Named("cache.1".into()));
        for bad in ["a/b:/data", "~:/data", "-x:/data", "ä:/data"] {
            assert!(
                matches!(parsed(bad), Err(VolumeError::Name { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn options_are_known_or_refused() {
        assert!(parsed("/a:/b:ro").unwrap().read_only);
        assert!(!parsed("/a:/b:rw").unwrap().read_only);
        assert!(parsed("/a:/b:ro,Z").unwrap().read_only);
        assert!(matches!(
            parsed("/a:/b:rox"),
            Err(VolumeError::Option { .. })
        ));
    }

    #[test]
    fn targets_are_absolute_and_clean() {
        assert_eq!(parsed("/a://b/./c/").unwrap().target, "/b/c");
        assert!(matches!(
            parsed("/a:b"),
            Err(VolumeError::RelativeTarget { .. })
        ));
        assert!(matches!(
            parsed("/a:/b/../c"),
            Err(VolumeError::ParentTarget { .. })
        ));
        assert!(matches!(parsed("/a:/"), Err(VolumeError::Root(_))));
    }

    #[test]
    fn incomplete_volumes_are_refused() {
        for bad in ["", "/a", "/a:", ":/b", "/a:/b:ro:x"] {
            assert!(matches!(parsed(bad), Err(VolumeError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn nested_volumes_come_after_what_they_are_in() {
        let volumes = ["/a:/x/y", "/b:/x", "/c:/z"].map(|text| parsed(text).unwrap());
        let ordered = order(volumes.to_vec()).unwrap();
        let targets: Vec<_> = ordered.iter().map(|v| v.target.as_str()).collect();
        assert_eq!(targets, ["/x", "/z", "/x/y"]);
    }

    #[test]
    fn one_place_takes_one_volume() {
        let volumes = ["/a:/x", "/b:/x/"].map(|text| parsed(text).unwrap());
        assert_eq!(
            order(volumes.to_vec()),
            Err(VolumeError::Duplicate("/x".into()))
        );
    }
}
