//! The options of a mount, as mount(8) and runc have them: what the mount permits, how it spreads,
//! and what is for its file system.

use agent_protocol::{Attributes, Propagation};

/// `MOUNT_ATTR_*` of linux/mount.h.
pub(super) const RDONLY: u64 = 0x1;
pub(super) const NOSUID: u64 = 0x2;
pub(super) const NODEV: u64 = 0x4;
pub(super) const NOEXEC: u64 = 0x8;
pub(super) const ATIME: u64 = 0x70;
const RELATIME: u64 = 0;
const NOATIME: u64 = 0x10;
pub(super) const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// mount(2)
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

/// What the options of a mount say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Of the mount itself: those that are named.
    pub(super) attributes: Attributes,
    /// Of it and the mounts below it: those that are named.
    pub(super) recursive: Attributes,
    pub(super) propagation: Option<Propagation>,
    /// It is a bind mount.
    pub(super) bind: bool,
    /// What is there is to be changed.
    pub(super) remount: bool,
    /// What the mount hides is to be in it.
    pub(super) copy_up: bool,
    /// Owners are to be mapped.
    pub(super) id_mapped: bool,
    /// What is left, for the file system, in the order in which it was said.
    pub(super) data: Vec<String>,
}

impl Options {
    pub(super) fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        for option in options {
            all.add(option);
        }
        all
    }

    fn add(&mut self, option: &str) {
        if let Some((set, mask)) = attribute(option) {
            return change(&mut self.attributes, set, mask);
        }
        if let Some((set, mask)) = option.strip_prefix('r').and_then(attribute) {
            return change(&mut self.recursive, set, mask);
        }
        if let Some(propagation) = propagation(option) {
            self.propagation = Some(propagation);
            return;
        }
        match option {
            "bind" | "rbind" => self.bind = true,
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" | "ridmap" => self.id_mapped = true,
            // They change nothing, or nothing that a guest has.
            "" | "defaults" | "async" | "noiversion" | "iversion" | "loud" | "silent"
            | "nolazytime" | "nomand" | "mand" | "acl" | "noacl" | "nofail" => {}
            data => self.data.push(data.into()),
        }
    }

    /// What they say of the mount alone.
    pub(super) fn without_data(&self) -> Self {
        Self {
            attributes: self.attributes,
            recursive: self.recursive,
            propagation: self.propagation,
            ..Self::default()
        }
    }

    /// The attributes of the mount, if it begins with these.
    pub(super) fn applied_to(&self, base: u64) -> u64 {
        let apply = |bits: u64, change: Attributes| bits & !change.clear | change.set;
        apply(apply(base, self.recursive), self.attributes)
    }

    /// The value of an option of the file system.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let mut values = self
            .data
            .iter()
            .rev()
            .filter_map(|option| option.split_once('='));
        values.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// The bits of an option and the mask in which they are.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, RDONLY),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, NOSUID),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, NODEV),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, NOEXEC),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, NODIRATIME),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, NOSYMFOLLOW),
        "symfollow" => (0, NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "relatime" | "atime" | "nostrictatime" => (RELATIME, ATIME),
        "norelatime" => (STRICTATIME, ATIME),
        _ => return None,
    })
}

fn change(attributes: &mut Attributes, set: u64, mask: u64) {
    attributes.set = attributes.set & !mask | set;
    attributes.clear = attributes.clear & !mask | (mask & !set);
    // The kernel wants all bits of the field to be cleared when one of its values is set.
    if mask == ATIME {
        attributes.clear |= ATIME;
    }
}

/// How a mount spreads, by its name in the specification.
pub(super) fn propagation(name: &str) -> Option<Propagation> {
    let kind = |name: &str| {
        Some(match name {
            "shared" => MS_SHARED,
            "slave" => MS_SLAVE,
            "private" => MS_PRIVATE,
            "unbindable" => MS_UNBINDABLE,
            _ => return None,
        })
    };
    let alone = kind(name).map(|kind| (kind, false));
    let below = || Some((kind(name.strip_prefix('r')?)?, true));
    let (kind, recursive) = alone.or_else(below)?;
    Some(Propagation { kind, recursive })
}

/// Whether it is anything but what mounts in a guest are from the beginning: private, and so is a
/// slave that has no master.
pub(super) fn is_special(propagation: &Propagation) -> bool {
    matches!(propagation.kind, MS_SHARED | MS_UNBINDABLE)
}

/// Whether mounts of the host are to be seen in it, which no guest sees as such.
pub(super) fn is_of_the_host(propagation: &Propagation) -> bool {
    matches!(propagation.kind, MS_SHARED | MS_SLAVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Options {
        Options::parse(options.split(','))
    }

    #[test]
    fn attributes_are_told_from_data_and_the_last_word_counts() {
        let options = parse("nosuid,rw,mode=755,strictatime,size=64k,ro,noswap");
        assert_eq!(options.attributes.set, NOSUID | STRICTATIME | RDONLY);
        assert_eq!(options.attributes.clear, ATIME);
        assert_eq!(options.data, ["mode=755", "size=64k", "noswap"]);
        assert_eq!(options.value("size"), Some("64k"));
        assert_eq!(parse("ro,rw").applied_to(RDONLY), 0);
        assert_eq!(parse("").applied_to(RDONLY), RDONLY);
        assert_eq!(parse("relatime").applied_to(NOATIME), 0);
    }

    #[test]
    fn what_is_for_all_below_has_an_r() {
        let options = parse("rbind,rro,rnosuid,rnoatime,rrelatime,relatime");
        assert!(options.bind);
        assert_eq!(options.recursive.set, RDONLY | NOSUID);
        assert_eq!(options.recursive.clear, ATIME);
        assert_eq!(
            options.attributes,
            Attributes {
                set: 0,
                clear: ATIME
            }
        );
        // That one begins with an r by itself.
        assert_eq!(parse("remount").recursive, Attributes::NONE);
        assert!(parse("remount").remount && parse("tmpcopyup").copy_up);
        assert!(parse("idmap").id_mapped && parse("ridmap").id_mapped);
    }

    #[test]
    fn propagation_is_the_one_named_last() {
        let spread = |options| parse(options).propagation.unwrap();
        assert!(is_special(&spread("private,rshared")) && spread("rshared").recursive);
        assert!(!is_special(&spread("rslave")) && is_of_the_host(&spread("rslave")));
        assert!(is_special(&spread("unbindable")) && !spread("unbindable").recursive);
        assert!(!is_special(&spread("rprivate")) && !is_of_the_host(&spread("rprivate")));
        assert_eq!(propagation("rrshared"), None);
    }
}
