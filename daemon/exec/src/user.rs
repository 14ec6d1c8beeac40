//! Whom a process runs as: names looked up in the root file system.

use std::io::Read;

use rustix::fs::FileType;
use sys::path::Root;

use crate::Error;

/// Size above which `/etc/passwd` and `/etc/group` are refused.
const LIMIT: u64 = 10 << 20;

/// Largest id that may be written in a number.
const MAX_ID: u32 = i32::MAX as u32;

/// The identity of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Finds `spec`, which is `user[:group]` by name or number, in the root file
/// system at `rootfs`. An empty `spec` is root, known there or not.
///
/// # Errors
/// When a name is not known there, or a file is larger than 10 MiB.
pub fn lookup(rootfs: &std::path::Path, spec: &str) -> Result<User, Error> {
    lookup_in(&Root::open(rootfs)?, spec)
}

pub(crate) fn lookup_in(rootfs: &Root, spec: &str) -> Result<User, Error> {
    if let Some(user) = numeric(spec) {
        return Ok(user);
    }
    let passwd = read(rootfs, "/etc/passwd")?;
    let group = read(rootfs, "/etc/group")?;
    if spec.is_empty() {
        return Ok(find("0", &passwd, &group).unwrap_or_default());
    }
    find(spec, &passwd, &group)
}

/// Both parts as numbers: no file is needed then.
fn numeric(spec: &str) -> Option<User> {
    let number = |s: &str| if s == "root" { Some(0) } else { s.parse().ok() };
    let (user, group) = spec.split_once(':')?;
    Some(User { uid: number(user)?, gid: number(group)?, groups: Vec::new() })
}

fn find(spec: &str, passwd: &str, group: &str) -> Result<User, Error> {
    let mut parts = spec.split(':');
    let user_part = parts.next().unwrap_or_default();
    let group_part = parts.next().unwrap_or_default();
    let user_id = id(user_part)?;
    let group_id = id(group_part)?;

    let wanted = |name: &str, uid: u32| match user_id {
        Some(id) => uid == id,
        None if user_part.is_empty() => uid == 0,
        None => name == user_part,
    };
    let mut user = User::default();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        wanted(name, uid).then_some((*name, uid, gid))
    });
    match (entry, user_id) {
        (Some((_, uid, gid)), _) => (user.uid, user.gid) = (uid, gid),
        (None, Some(uid)) => user.uid = uid,
        (None, None) if user_part.is_empty() => {}
        (None, None) => {
            return Err(Error::User { what: "user", name: user_part.into(), file: "passwd" });
        }
    }

    let groups = || {
        group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            let gid: u32 = fields.get(2)?.parse().ok()?;
            Some((fields.first().copied()?, gid, fields.get(3).copied().unwrap_or_default()))
        })
    };
    if !group_part.is_empty() {
        let found = groups().find(|(name, gid, _)| match group_id {
            Some(id) => *gid == id,
            None => *name == group_part,
        });
        user.gid = match (found, group_id) {
            (Some((_, gid, _)), _) | (None, Some(gid)) => gid,
            (None, None) => {
                return Err(Error::User { what: "group", name: group_part.into(), file: "group" });
            }
        };
    } else if let Some((name, ..)) = entry {
        user.groups = groups()
            .filter(|(_, _, members)| members.split(',').any(|m| m == name))
            .map(|(_, gid, _)| gid)
            .collect();
    }
    Ok(user)
}

fn id(text: &str) -> Result<Option<u32>, Error> {
    match text.parse::<i64>() {
        Ok(n) => match u32::try_from(n) {
            Ok(n) if n <= MAX_ID => Ok(Some(n)),
            _ => Err(Error::Invalid(format!("uids and gids must be in range 0-{MAX_ID}"))),
        },
        Err(_) => Ok(None),
    }
}

/// The text of a file; empty when it is missing or no regular file.
fn read(rootfs: &Root, path: &'static str) -> Result<String, Error> {
    let Ok(file) = rootfs.open_read(path) else { return Ok(String::new()) };
    let stat = rustix::fs::fstat(&file).map_err(|e| Error::file("stat", path)(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut text = Vec::new();
    let read = file.take(LIMIT + 1).read_to_end(&mut text).map_err(Error::file("read", path))?;
    if read as u64 > LIMIT {
        return Err(Error::TooLarge { path, limit: LIMIT });
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbad:x:nonsense:1::/:/bin/sh\ndev:x:1000:100:,,,:/home/dev:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,dev\nusers:x:100:\naudio:x:29:dev\n";

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn finds_names_and_numbers() {
        for (spec, expected) in [
            ("dev", user(1000, 100, &[10, 29])),
            ("1000", user(1000, 100, &[10, 29])),
            ("dev:audio", user(1000, 29, &[])),
            ("dev:77", user(1000, 77, &[])),
            ("4242", user(4242, 0, &[])),
            ("0", user(0, 0, &[10])),
            (":users", user(0, 100, &[])),
        ] {
            assert_eq!(find(spec, PASSWD, GROUP).unwrap(), expected, "{spec}");
        }
        assert_eq!(numeric("4294967295:root"), Some(user(u32::MAX, 0, &[])));
    }

    #[test]
    fn says_what_is_missing() {
        let text = |spec| find(spec, PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(text("nobody"), "unable to find user nobody: no matching entries in passwd file");
        assert_eq!(text("dev:cdrom"), "unable to find group cdrom: no matching entries in group file");
        assert_eq!(text("bad"), "unable to find user bad: no matching entries in passwd file");
        assert_eq!(text("2147483648"), "uids and gids must be in range 0-2147483647");
    }
}
