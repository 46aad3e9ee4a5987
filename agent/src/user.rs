//! Who a process runs as: an image's user, looked up in the container's own passwd and group.
//!
//! The rules are docker's (moby/sys/user, `GetExecUser`): a number is an identifier even if a name
//! looks like it, the first match wins, and groups that list the user count only if no group is
//! asked for. Static glibc has no name service switch, so the files are parsed here.
//!
//! Boundary: files are handed in as they are needed, as every one costs several trips to the host.

use std::io;

/// Docker's greatest user or group identifier.
const MAX_ID: u32 = i32::MAX as u32;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The supplementary groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    /// From passwd; None if it was not looked up.
    pub(crate) home: Option<String>,
}

/// Nobody of that name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("user or group identifier {0} is beyond {MAX_ID}")]
    Range(String),
    #[error("Failed to read the container's {path}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
}

/// The container's user database, read when it is needed.
pub(crate) trait Database {
    /// Content of a file, empty if there is none.
    fn read(&mut self, path: &'static str) -> io::Result<Vec<u8>>;
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Resolves `spec` (`""`, `user`, `uid`, `user:group`, ...) and `additional` groups. The home
/// directory is looked up only if `want_home`.
pub(crate) fn resolve(
    spec: &str,
    additional: &[String],
    want_home: bool,
    database: &mut impl Database,
) -> Result<Identity, UserError> {
    let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let uid = number(user)?;
    let gid = number(group)?;

    let mut identity = Identity {
        uid: uid.unwrap_or(0),
        gid: gid.unwrap_or(0),
        groups: Vec::new(),
        home: None,
    };
    let mut name = None;
    // Identifiers on both sides say it all.
    if uid.is_none() || gid.is_none() || want_home {
        let passwd = read(database, PASSWD)?;
        let entry = entries(&passwd).find_map(|fields| {
            let entry = Passwd::parse(&fields)?;
            let matches = match uid {
                Some(uid) => entry.uid == uid,
                None => entry.name == user,
            };
            matches.then_some(entry)
        });
        match entry {
            Some(entry) => {
                identity.uid = entry.uid;
                identity.gid = entry.gid;
                identity.home = Some(entry.home.to_owned());
                name = Some(entry.name.to_owned());
            }
            None if uid.is_none() => return Err(UserError::NoUser(user.to_owned())),
            None => identity.home = Some("/".to_owned()),
        }
    }

    let lookup_members = group.is_empty() && name.is_some();
    let lookup_group = !group.is_empty() && gid.is_none();
    let lookup_additional = additional
        .iter()
        .any(|group| !matches!(number(group), Ok(Some(_))));
    let groups = if lookup_members || lookup_group || lookup_additional {
        read(database, GROUP)?
    } else {
        Vec::new()
    };
    let find_group = |wanted: &str| {
        entries(&groups)
            .filter_map(|fields| Group::parse(&fields))
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
    };
    if let Some(gid) = gid {
        identity.gid = gid;
    } else if lookup_group {
        identity.gid = find_group(group)?;
    }
    identity.groups.push(identity.gid);
    if lookup_members {
        identity.groups.extend(
            entries(&groups)
                .filter_map(|fields| Group::parse(&fields))
                .filter(|entry| {
                    entry
                        .members
                        .split(',')
                        .any(|member| Some(member) == name.as_deref())
                })
                .map(|entry| entry.gid),
        );
    }
    for group in additional {
        let gid = match number(group)? {
            Some(gid) => gid,
            None => find_group(group)?,
        };
        identity.groups.push(gid);
    }
    let mut seen = Vec::new();
    identity.groups.retain(|gid| {
        let new = !seen.contains(gid);
        seen.push(*gid);
        new
    });
    Ok(identity)
}

fn read(database: &mut impl Database, path: &'static str) -> Result<Vec<u8>, UserError> {
    database
        .read(path)
        .map_err(|source| UserError::Read { path, source })
}

/// The identifier if `text` is one, None if it is a name or empty.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(UserError::Range(text.to_owned())),
    }
}

/// The lines of a file, taken apart at the colons; lines that are no UTF-8 are passed over.
fn entries(content: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    content
        .split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim().split(':').collect())
}

/// passwd(5)
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(fields: &[&'a str]) -> Option<Self> {
        let [name, _, uid, gid, rest @ ..] = fields else {
            return None;
        };
        Some(Self {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: rest
                .get(1)
                .copied()
                .filter(|home| !home.is_empty())
                .unwrap_or("/"),
        })
    }
}

/// group(5)
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(fields: &[&'a str]) -> Option<Self> {
        let [name, _, gid, rest @ ..] = fields else {
            return None;
        };
        Some(Self {
            name,
            gid: gid.parse().ok()?,
            members: rest.first().copied().unwrap_or(""),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Files {
        reads: Vec<&'static str>,
        empty: bool,
    }

    impl Database for Files {
        fn read(&mut self, path: &'static str) -> io::Result<Vec<u8>> {
            self.reads.push(path);
            if self.empty {
                return Ok(Vec::new());
            }
            Ok(match path {
                PASSWD => b"root:x:0:0:root:/root:/bin/sh\n\
                    \n# comment\nbroken\nbad:x:a:b::/:\n\xff\xfe:x:5:5::/:\n\
                    daemon:x:1:1::/usr/sbin:/bin/false\n\
                    app:x:1000:1001:,,,:/home/app:/bin/sh\n\
                    app:x:2000:2000::/second:/bin/sh\n\
                    1000:x:7:7::/seven:\n\
                    short:x:8:9\n"
                    .to_vec(),
                _ => b"root:x:0:\nadm:x:4:app,root\nstaff:x:50:app\nempty\n\
                    wheel:x:10:root,apple\nnolist:x:60\n"
                    .to_vec(),
            })
        }
    }

    fn identity(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(spec, &[], true, &mut Files::default()).unwrap();
        let home = identity.home.unwrap();
        (identity.uid, identity.gid, identity.groups, home)
    }

    #[test]
    fn no_user_is_root_with_its_groups() {
        let root = (0, 0, vec![0, 4, 10], "/root".to_owned());
        assert_eq!(identity(""), root);
        assert_eq!(identity("root"), root);
        assert_eq!(identity("0"), root);
    }

    #[test]
    fn the_first_entry_of_a_name_counts() {
        let app = (1000, 1001, vec![1001, 4, 50], "/home/app".to_owned());
        assert_eq!(identity("app"), app);
    }

    #[test]
    fn a_number_is_an_identifier_even_if_it_is_a_name_too() {
        assert_eq!(identity("1000").0, 1000);
    }

    #[test]
    fn an_explicit_group_replaces_all_others() {
        assert_eq!(
            identity("app:staff"),
            (1000, 50, vec![50], "/home/app".to_owned())
        );
        assert_eq!(identity("app:4242").1, 4242);
        assert_eq!(identity(":staff").1, 50);
    }

    #[test]
    fn an_unknown_number_is_taken_as_it_is() {
        assert_eq!(identity("4242"), (4242, 0, vec![0], "/".to_owned()));
        assert_eq!(identity("4242:1"), (4242, 1, vec![1], "/".to_owned()));
    }

    #[test]
    fn an_unknown_name_is_named_in_the_error() {
        let resolve = |spec| resolve(spec, &[], true, &mut Files::default()).unwrap_err();
        assert_eq!(
            resolve("nobody").to_string(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            resolve("root:nogroup").to_string(),
            "unable to find group nogroup: no matching entries in group file"
        );
        assert!(matches!(resolve("4294967295"), UserError::Range(_)));
        assert!(matches!(resolve("0:2147483648"), UserError::Range(_)));
    }

    #[test]
    fn additional_groups_come_by_name_or_number() {
        let additional = ["staff", "77", "4"].map(String::from);
        let identity = resolve("app", &additional, false, &mut Files::default()).unwrap();
        assert_eq!(identity.groups, [1001, 4, 50, 77]);
        let unknown = ["what".to_owned()];
        assert!(resolve("0", &unknown, false, &mut Files::default()).is_err());
    }

    #[test]
    fn identifiers_alone_need_no_file() {
        let mut files = Files::default();
        let additional = ["5".to_owned()];
        let identity = resolve("1000:1000", &additional, false, &mut files).unwrap();
        assert_eq!((identity.uid, identity.gid), (1000, 1000));
        assert_eq!(identity.groups, [1000, 5]);
        assert!(files.reads.is_empty());
    }

    #[test]
    fn an_image_without_users_has_root_all_the_same() {
        let mut files = Files {
            empty: true,
            ..Files::default()
        };
        let identity = resolve("", &[], true, &mut files).unwrap();
        assert_eq!((identity.uid, identity.gid), (0, 0));
        assert_eq!(identity.home.as_deref(), Some("/"));
        assert!(resolve("root", &[], true, &mut files).is_err());
    }

    #[test]
    fn entries_may_lack_their_last_fields() {
        assert_eq!(identity("short"), (8, 9, vec![9], "/".to_owned()));
    }
}
