//! File actions. `actions.golden` says what moby/buildkit v0.32.2 makes of each
//! case: lines that go and come in the target, and the error. It differs from
//! that in two places: directories that are only made for what is in them get
//! the agreed time too, and two errors say more or less about their place.

use base::Timestamp;
use base::task::Scope;
use sys::path::{Owner, Root};
use tree::fileop::{Copy, Error, MkDir, MkFile, Rm, Symlink, Who, copy, mkdir, mkfile, owner, rm, symlink};

use crate::fixture;

const GOLDEN: &str = include_str!("actions.golden");
const STAMP: Timestamp = Timestamp::from_secs(1_000_000_000);
const SOMEBODY: Option<Owner> = Some(Owner { uid: 11, gid: 12 });

/// Runs an action and compares it with the golden case of that name.
fn check(name: &str, action: impl FnOnce(&Root, &Root) -> Result<(), Error>) {
    let (src, dest) = (fixture::source(), fixture::target());
    let before = fixture::dump(dest.path());
    let result = action(&Root::open(src.path()).unwrap(), &Root::open(dest.path()).unwrap());
    let after = fixture::dump(dest.path());
    let mut got = String::new();
    if let Err(e) = result {
        got.push_str(&format!("! {e}\n"));
    }
    for line in before.lines().filter(|line| !after.lines().any(|l| l == *line)) {
        got.push_str(&format!("-{}\n", &line[1..]));
    }
    for line in after.lines().filter(|line| !before.lines().any(|l| l == *line)) {
        got.push_str(&format!("+{}\n", &line[1..]));
    }
    let want = GOLDEN.split("# ").find_map(|case| case.strip_prefix(&format!("{name}\n"))).unwrap();
    assert_eq!(got, want, "{name}");
}

type Change = fn(&mut Copy);
type Case = (&'static str, &'static str, &'static str, &'static [Change], Option<Owner>);

const CREATE: Change = |c| c.create_dest_path = true;
const CONTENTS: Change = |c| c.dir_copy_contents = true;
const WILD: Change = |c| c.allow_wildcard = true;
const EMPTY: Change = |c| c.allow_empty_wildcard = true;
const FOLLOW: Change = |c| c.follow_symlink = true;
const REPLACE: Change = |c| c.always_replace_existing_dest_paths = true;
const TIME: Change = |c| c.timestamp = Some(STAMP);

#[rustfmt::skip]
const COPIES: &[Case] = &[
    ("file-to-root", "/d1-x", "/", &[], None),
    ("file-to-name", "/d1-x", "/new", &[], None),
    ("file-into-dir", "/d1-x", "/there", &[], None),
    ("file-into-dir-slash", "/d1-x", "/fresh/", &[CREATE], SOMEBODY),
    ("file-deep-nocreate", "/d1-x", "/p/q/new", &[], None),
    ("file-deep-create", "/d1-x", "/p/q/new", &[CREATE, TIME], SOMEBODY),
    ("file-over-file", "/d1-x", "/file", &[], None),
    ("file-via-link", "/d1-x", "/lnk/", &[], None),
    ("file-dangling", "/d1-x", "/dangling", &[CREATE], None),
    ("file-dangling-nocreate", "/d1-x", "/dangling", &[], None),
    ("missing", "/nope", "/", &[], None),
    ("missing-deep", "/d1/nope/x", "/", &[], None),
    ("through-file", "/empty/x", "/", &[], None),
    ("link", "/d2", "/", &[], None),
    ("link-followed", "/d2", "/", &[FOLLOW], None),
    ("link-followed-file", "/d0/def", "/", &[FOLLOW], None),
    ("dir-to-new", "/d1", "/out", &[], None),
    ("dir-into-there", "/d1", "/there", &[], None),
    ("dir-contents-new", "/d1", "/out", &[CREATE, CONTENTS], SOMEBODY),
    ("dir-contents-there", "/d1", "/there", &[CONTENTS, TIME], None),
    ("dir-contents-root", "/", "/", &[CONTENTS], None),
    ("root-to-new", "/", "/all", &[CREATE], None),
    ("dir-over-file", "/d1", "/file", &[CONTENTS], None),
    ("dir-over-file-replace", "/d1", "/file", &[CONTENTS, REPLACE], None),
    ("dir-dot", "/d1/.", "/out/", &[CREATE], None),
    ("file-over-dir", "/d1/foo", "/there/sub", &[CREATE], None),
    ("replace-dir-with-file", "/d1-x", "/there", &[REPLACE], None),
    ("contents-link-in-way", "/d1", "/there", &[CONTENTS, REPLACE], SOMEBODY),
    ("mode", "/d1", "/out", &[CREATE, |c| c.mode = Some(0o4750)], None),
    ("mode-str", "/d1", "/out", &[CREATE, |c| c.mode_str = "go=u-w,+t".into()], None),
    ("mode-str-bad", "/d1", "/out", &[CREATE, |c| c.mode_str = "q+x".into()], None),
    ("wild", "/d*", "/out/", &[CREATE, WILD], None),
    ("wild-deep", "/*/foo*", "/out/", &[CREATE, WILD, TIME], SOMEBODY),
    ("wild-none", "/zz*", "/out/", &[CREATE, WILD], None),
    ("wild-none-ok", "/zz*", "/out/", &[CREATE, WILD, EMPTY], None),
    ("wild-link", "/d2/f*", "/", &[WILD], None),
    ("wild-link-follow", "/d2/f*", "/", &[WILD, FOLLOW], None),
    ("wild-base-missing", "/nope/f*", "/", &[WILD], None),
    ("wild-plain", "/d1/.", "/out", &[WILD, CREATE], None),
    ("include", "/d1", "/out", &[CREATE, CONTENTS, |c| c.include_patterns = vec!["*.txt".into()]], None),
    ("include-deep", "/d1", "/out", &[CREATE, CONTENTS, TIME, |c| c.include_patterns = vec!["**/*.go".into()]], SOMEBODY),
    ("include-none", "/d1", "/out", &[CREATE, CONTENTS, |c| c.include_patterns = vec!["zzz".into()]], None),
    ("exclude", "/d1", "/out", &[CREATE, |c| c.exclude_patterns = vec!["sub".into()]], None),
    ("exclude-except", "/d1", "/out", &[CREATE, |c| c.exclude_patterns = vec!["**".into(), "!sub/deep/file.go".into()]], None),
    ("include-exclude", "/", "/out", &[CREATE, CONTENTS, |c| {
        c.include_patterns = vec!["d1".into(), "d0/abc".into()];
        c.exclude_patterns = vec!["d1/sub/deep".into()];
    }], None),
    ("include-bad", "/d1", "/out", &[CREATE, |c| c.include_patterns = vec!["[".into()]], None),
    ("into-existing-sub", "/d1", "/there", &[CONTENTS, |c| c.include_patterns = vec!["sub/**".into()]], SOMEBODY),
    ("special", "/fifo", "/s/", &[CREATE], None),
    ("special-chr", "/chr", "/", &[], SOMEBODY),
    ("dots", "/d0/../d1/../d1-x", "/a/../b", &[], None),
    ("up", "/../../d1-x", "/../x", &[], None),
    ("abs-link-parent", "/abs/deep", "/", &[], None),
];

#[test]
fn copies_as_the_reference_does() {
    for (name, src, dest, changes, who) in COPIES {
        let mut action = Copy { src: (*src).into(), dest: (*dest).into(), ..Copy::default() };
        changes.iter().for_each(|change| change(&mut action));
        check(name, |from, to| copy(&Scope::root(), from, to, &action, *who));
    }
}

#[test]
fn makes_directories_as_the_reference_does() {
    for (name, path, mode, make_parents, timestamp, who) in [
        ("mkdir-no-parent", "/a/b", 0o755, false, None, None),
        ("mkdir-parents", "/a/b", 0o1750, true, Some(STAMP), SOMEBODY),
        ("mkdir-on-file", "/file", 0o755, false, None, SOMEBODY),
        ("mkdir-below-file", "/file/x", 0o755, true, None, SOMEBODY),
        ("mkdir-parents-on-file", "/file", 0o755, true, None, SOMEBODY),
    ] {
        let action = MkDir { path: path.into(), mode, make_parents, timestamp };
        check(name, |_, root| mkdir(root, &action, who));
    }
}

#[test]
fn makes_files_and_links_as_the_reference_does() {
    for (name, path, mode, timestamp, who) in [
        ("mkfile-via-link", "/lnk/n", 0o640, Some(STAMP), SOMEBODY),
        ("mkfile-there", "/file", 0o600, None, None),
        ("mkfile-no-parent", "/no/file", 0o600, None, None),
        ("mkfile-on-dir", "/there", 0o600, None, None),
    ] {
        let action = MkFile { path: path.into(), mode, data: b"hi".to_vec(), timestamp };
        check(name, |_, root| mkfile(root, &action, who));
    }
    for (name, path, timestamp) in
        [("symlink-via-link", "/lnk/s", Some(STAMP)), ("symlink-there", "/file", None)]
    {
        let action = Symlink { oldpath: "../x".into(), newpath: path.into(), timestamp };
        check(name, |_, root| symlink(root, &action, SOMEBODY));
    }
}

#[test]
fn removes_as_the_reference_does() {
    for (name, path, allow_not_found, allow_wildcard) in [
        ("rm-missing", "/nope", false, false),
        ("rm-missing-ok", "/nope", true, false),
        ("rm-dangling", "/dangling", false, false),
        ("rm-link", "/lnk", false, false),
        ("rm-via-link", "/lnk/d1-x", false, false),
        ("rm-wildcard-dangling", "/there/*", false, true),
        ("rm-root", "/..", false, false),
        ("rm-wildcard-no-base", "/x/*", false, true),
        ("rm-below-file", "/file/x", false, false),
    ] {
        let action = Rm { path: path.into(), allow_not_found, allow_wildcard };
        check(name, |_, root| rm(root, &action));
    }
}

#[test]
fn nothing_is_copied_from_or_to_outside() {
    let outer = fixture::empty();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("dir")).unwrap();
    std::fs::write(outer.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../../secret", root.join("dir/up")).unwrap();
    std::os::unix::fs::symlink(outer.path(), root.join("out")).unwrap();
    std::fs::write(root.join("own"), "own").unwrap();
    let tree = Root::open(&root).unwrap();
    let run = |src: &str, dest: &str| {
        let action = Copy {
            src: src.into(),
            dest: dest.into(),
            follow_symlink: true,
            create_dest_path: true,
            ..Copy::default()
        };
        copy(&Scope::root(), &tree, &tree, &action, None)
    };
    assert!(run("/dir/up", "/stolen").is_err());
    assert!(run("/../secret", "/stolen").is_err());
    run("/own", "/out/planted").unwrap();
    assert!(!outer.path().join("planted").exists());
    assert!(root.join(outer.path().strip_prefix("/").unwrap()).join("planted").exists());
}

#[test]
fn a_cancelled_copy_stops() {
    let (src, dest) = (fixture::source(), fixture::target());
    let scope = Scope::root();
    scope.cancel(base::Failure::canceled("enough"));
    let action = Copy { src: "/d1".into(), dest: "/out".into(), ..Copy::default() };
    let (src, dest) = (Root::open(src.path()).unwrap(), Root::open(dest.path()).unwrap());
    assert_eq!(copy(&scope, &src, &dest, &action, None).unwrap_err().to_string(), "enough");
}

#[test]
fn keeps_holes_and_attributes() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let (src, dest) = (fixture::empty(), fixture::empty());
    let file = std::fs::File::create(src.path().join("sparse")).unwrap();
    file.write_all_at(b"in the middle", 1 << 20).unwrap();
    file.set_len(8 << 20).unwrap();
    let path = src.path().join("sparse");
    let attribute = rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    let action = Copy { src: "/".into(), dest: "/".into(), dir_copy_contents: true, ..Copy::default() };
    let (from, to) = (Root::open(src.path()).unwrap(), Root::open(dest.path()).unwrap());
    copy(&Scope::root(), &from, &to, &action, None).unwrap();
    let copied = dest.path().join("sparse");
    assert_eq!(std::fs::read(&copied).unwrap(), std::fs::read(&path).unwrap());
    assert!(copied.metadata().unwrap().blocks() <= path.metadata().unwrap().blocks());
    // Not every file system has user attributes.
    if attribute.is_ok() {
        let mut value = [0; 16];
        let size = rustix::fs::getxattr(&copied, "user.note", &mut value).unwrap();
        assert_eq!(&value[..size], b"kept");
    }
}

#[test]
fn owners_by_name() {
    let tree = fixture::empty();
    let root = Root::open(tree.path()).unwrap();
    let name = |name: &str| Who::Name(name.into());
    let at = Some(&root);
    assert_eq!(owner(Some((&name("joe"), at)), None).unwrap(), Owner::default());
    std::fs::create_dir(tree.path().join("etc")).unwrap();
    std::fs::write(tree.path().join("etc/passwd"), "root:x:0:0::/:\njoe:x:7:8::/home:\n").unwrap();
    std::fs::write(tree.path().join("etc/group"), "root:x:0:\nstaff:x:50:joe\n").unwrap();
    assert_eq!(owner(Some((&name("joe"), at)), None).unwrap(), Owner { uid: 7, gid: 8 });
    assert_eq!(
        owner(Some((&name("joe"), at)), Some((&name("staff"), at))).unwrap(),
        Owner { uid: 7, gid: 50 }
    );
    assert_eq!(owner(Some((&Who::Id(9), None)), None).unwrap(), Owner { uid: 9, gid: 9 });
    assert_eq!(
        owner(Some((&name("nobody"), at)), Some((&Who::Id(3), None))).unwrap(),
        Owner { uid: 0, gid: 3 }
    );
    assert!(owner(Some((&name("joe"), None)), None).is_err());
    std::fs::remove_file(tree.path().join("etc/passwd")).unwrap();
    std::fs::create_dir(tree.path().join("etc/passwd")).unwrap();
    let e = owner(Some((&name("joe"), at)), None).unwrap_err();
    assert_eq!(e.to_string(), "/etc/passwd is not a regular file");
}
