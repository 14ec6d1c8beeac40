//! Content digests. The values come from moby/buildkit v0.32.2 on the same tree.

use std::collections::BTreeMap;

use base::Digest;
use sys::path::Root;
use tree::contenthash::{Change, ContentHash, FileHasher, Header, Opts};
use tree::gomode;

use crate::fixture;

/// Path, follow links, wildcard, include, exclude, required; digest or, after
/// an exclamation mark, error.
type Row = (
    &'static str,
    bool,
    bool,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

#[rustfmt::skip]
const GOLDEN: &[Row] = &[
    ("/", false, false, &[], &[], &[], "sha256:515ebd6b4e34b9bd9ff96f696e23b4a0ed01cac487bdd45be8fc4cd4b9420620"),
    ("", false, false, &[], &[], &[], "sha256:515ebd6b4e34b9bd9ff96f696e23b4a0ed01cac487bdd45be8fc4cd4b9420620"),
    ("d0", false, false, &[], &[], &[], "sha256:1c6727fc84dfdf2f345a75a4d3ba374b1f47c7d0bf7c441000d3750a6d025717"),
    ("/d0/abc", false, false, &[], &[], &[], "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b"),
    ("d0/def", false, false, &[], &[], &[], "sha256:ab4a9741502be5b53fd2ff0a9d9530f7faaf3111c5934b190d09f6bf6c6a87e9"),
    ("d0/def", true, false, &[], &[], &[], "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b"),
    ("d0/ghi", false, false, &[], &[], &[], "sha256:8800c25b97d9dee955963d750b1df76932e45036f55c7c6b41644007e572d9a0"),
    ("d0/ghi", true, false, &[], &[], &[], "!\"/d0/ghi\": not found"),
    ("d1", false, false, &[], &[], &[], "sha256:afe336d2115b4435a9cff75a901c748ff7607f3cb24d13cab3c153b2e8e2461f"),
    ("d1/", false, false, &[], &[], &[], "sha256:afe336d2115b4435a9cff75a901c748ff7607f3cb24d13cab3c153b2e8e2461f"),
    ("d2", false, false, &[], &[], &[], "sha256:ec9a07e351cc678b9cbe8062485c2f3833d5abf6050bd8f67149829a72027e3e"),
    ("d2", true, false, &[], &[], &[], "sha256:afe336d2115b4435a9cff75a901c748ff7607f3cb24d13cab3c153b2e8e2461f"),
    ("d2/sub", false, false, &[], &[], &[], "sha256:c39cc34fbcb78d846a1552c8ab449edf646c9f56c99d822717263f228e2921a3"),
    ("abs/deep", false, false, &[], &[], &[], "sha256:ffc725ff43b3dd82760206e0a9f5844beecce83194c3fddfa174dd2c0557f187"),
    ("d0/up/sub/../foo", false, false, &[], &[], &[], "sha256:515fc350f208a1b6d1789642a8c764dcfcff7af4e1640244055617b3640b3642"),
    ("hard", false, false, &[], &[], &[], "sha256:515fc350f208a1b6d1789642a8c764dcfcff7af4e1640244055617b3640b3642"),
    ("fifo", false, false, &[], &[], &[], "sha256:ed66acfbb9d93c08ed7faab2b6c0e2201a312df9abcbd94a761a1ea7f345dad5"),
    ("chr", false, false, &[], &[], &[], "sha256:deb8dbeccd244a951ac599314ad369af29bf5dce0297f498f758472bec293523"),
    ("empty", false, false, &[], &[], &[], "sha256:700591407496206b27e3739e92128dd4d3a119e929d3b3677835a1ab6627aa3d"),
    ("nope", false, false, &[], &[], &[], "!\"/nope\": not found"),
    ("d0/abc/nope", false, false, &[], &[], &[], "!lstat /d0/abc/nope: not a directory"),
    ("d1-x", false, false, &[], &[], &[], "sha256:0eb8931043a686225a96e8df4107d8a81582202f3c2072fa95bbdfde7385afca"),
    ("d1/void", false, false, &[], &[], &[], "sha256:0e5db88383bce812f795689f5318a2b2f4fde740ef31c2a2365a46368aafddd2"),
    ("d1", false, false, &["*.txt"], &[], &[], "sha256:516af17c5856b53c15238c28c9fe5c5398455f39d533bb8ae46f2c664ced53e1"),
    ("d1/", false, false, &["*.txt"], &[], &[], "sha256:8dbbf4c3b32bb0235c2cc2c6bbb238c92b829c546ab5d6ab1192ad4335da7804"),
    ("d1", false, false, &["**/*.go"], &[], &[], "sha256:1992ed828ced5e2e762e32ca898f5cc40207f6728dc5086f4e87e05d09e2eb83"),
    ("/", false, false, &["**/*.go", "d0"], &[], &[], "sha256:8c906c6655127941fbae1c5199ea718463869e902b9eb7bc04642f537a0980ce"),
    ("d1", false, false, &[], &["sub"], &[], "sha256:10eaeb509033958cf8ad85eb766e039a40861e671475b01f0a8a63e9da907d96"),
    ("d1", false, false, &[], &["**", "!sub/deep/file.go"], &[], "sha256:1992ed828ced5e2e762e32ca898f5cc40207f6728dc5086f4e87e05d09e2eb83"),
    ("/", false, false, &[], &["d1/foo*", "abs"], &[], "sha256:1d52881d2f711ab1bf0dc11776041fe4b85414bb65fe7fdb67cd6d72b824ed3e"),
    ("d1", false, false, &["sub"], &["sub/deep"], &[], "sha256:4bdc48922c27a0e16561aa063ea64624e712bee57d5c1b6a99f94abfdb3d0663"),
    ("d2", false, false, &["foo*"], &[], &[], "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("d2/", true, false, &["foo*"], &[], &[], "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("d2/sub", false, false, &["deep"], &[], &[], "sha256:3e71ff9c722430fcc5408128f20f5c145ce8e5908007b06a69b4e651616c127c"),
    ("d*", false, true, &[], &[], &[], "sha256:79e4ce5ac941d00fd70f0b361cfbb184944360a77422949961391fab160cac1c"),
    ("d1/*", false, true, &[], &[], &[], "sha256:fa171bec510d98c0ad9d65e22c1a5d25551bb39f00557f14de7e5ff85a98bd75"),
    ("d1/f*.txt", false, true, &[], &[], &[], "sha256:8dbbf4c3b32bb0235c2cc2c6bbb238c92b829c546ab5d6ab1192ad4335da7804"),
    ("d2/f*", false, true, &[], &[], &[], "sha256:f53f369f66d8e5d44a404201caeaf2bd7906ed9cf542552e090b431abcc7c708"),
    ("d2/f*", true, true, &[], &[], &[], "sha256:f53f369f66d8e5d44a404201caeaf2bd7906ed9cf542552e090b431abcc7c708"),
    ("d0/*", false, true, &[], &[], &[], "sha256:4badbb383eb819bcc933e988b6fcd8ab2f2d0b9dab32bc773a9b84443ab6baa7"),
    ("d0/d*", true, true, &[], &[], &[], "sha256:dcc27295a509808244a17203c2b6f8421a2dd5189a856bdcb627213a880182bf"),
    ("*/foo", false, true, &[], &[], &[], "sha256:515fc350f208a1b6d1789642a8c764dcfcff7af4e1640244055617b3640b3642"),
    ("none*", false, true, &[], &[], &[], "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("d1/foo", false, true, &[], &[], &[], "sha256:515fc350f208a1b6d1789642a8c764dcfcff7af4e1640244055617b3640b3642"),
    ("d1", false, true, &[], &[], &[], "sha256:3d571d5da56f3116fa871d64b3bfb38b70fd374ff9acaf0c9eb2801428b5d78c"),
    ("/", false, true, &[], &[], &[], "sha256:1fd17d40be2a90a9d1ad33d1e1b82a1d70a33e3dccf97c56fd34d057168a0b78"),
    ("d[", false, true, &[], &[], &[], "!syntax error in pattern"),
    ("d?", false, true, &[], &["foo"], &[], "sha256:271eeb8072af29d7435eb93dfde081718f7a01c7cd26eae6187f7a0ccdb116e6"),
    ("d?", false, true, &["sub/**"], &[], &[], "sha256:8dc173cb8f8973461b64381ff73f5016d941445ceef300c516bdff149fefab6b"),
    ("d1", false, false, &["foo*"], &[], &["/d1/foo.txt"], "sha256:73a6313efd0dd6349e5586d0d95171541022fdd9f46400636a52a6de3862027a"),
    ("d1", false, false, &["foo*"], &[], &["/d1/bar"], "!\"/d1/bar\": not found"),
    ("d1", false, false, &["["], &[], &[], "!invalid includepatterns: [[]: syntax error in pattern"),
    ("nope", false, false, &["a"], &[], &[], "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
];

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn check(hash: impl Fn() -> std::sync::Arc<ContentHash>) {
    let tree = fixture::source();
    let root = Root::open(tree.path()).unwrap();
    for (path, follow_links, wildcard, include, exclude, required, want) in GOLDEN {
        let opts = Opts {
            follow_links: *follow_links,
            wildcard: *wildcard,
            include: texts(include),
            exclude: texts(exclude),
            required: texts(required),
        };
        let got = match hash().checksum(&root, path, &opts) {
            Ok(digest) => digest.to_string(),
            Err(e) => format!("!{e}"),
        };
        // Once the tree is known it is known that nothing is there.
        let settled = want.starts_with("!lstat") && got.ends_with(": not found");
        assert!(got == *want || settled, "{path} {opts:?}: {got} instead of {want}");
    }
}

#[test]
fn equals_the_reference_from_scratch() {
    check(Default::default);
}

#[test]
fn equals_the_reference_when_it_remembers() {
    let hash = std::sync::Arc::new(ContentHash::new());
    check(|| hash.clone());
}

#[test]
fn remembers_across_encoding() {
    let tree = fixture::source();
    let root = Root::open(tree.path()).unwrap();
    let hash = ContentHash::new();
    let opts = Opts::default();
    assert_eq!(hash.known("/", &opts).unwrap(), None);
    let digest = hash.checksum(&root, "/", &opts).unwrap();
    assert!(hash.is_unsaved());
    let kept = hash.encode().unwrap();
    assert!(!hash.is_unsaved());
    let again = ContentHash::decode(&kept).unwrap();
    assert_eq!(again.known("/", &opts).unwrap(), Some(digest));
    let go = Opts { include: texts(&["**/*.go"]), ..Opts::default() };
    assert_eq!(again.known("d1", &go).unwrap(), Some(hash.checksum(&root, "d1", &go).unwrap()));
    assert!(ContentHash::decode(b"\x0a\x03\x12\x01\x08").is_err());
}

#[test]
fn headers_equal_the_reference() {
    let xattrs = [
        ("user.b", &b"2"[..]),
        ("user.a", b"1"),
        ("security.capability", b"\x01\x02"),
        ("security.x", b"n"),
        ("system.y", b"n"),
    ];
    let xattrs: BTreeMap<_, _> = xattrs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec())).collect();
    let device = gomode::DEVICE | 0o600;
    for (header, want) in [
        (
            Header { mode: device, major: 8, minor: 1, ..Header::default() },
            "8c2b10449fbbd372d4d1c607b148d825c61a4c1ec077fa47534f1083a834fc1c",
        ),
        (
            Header {
                mode: device | gomode::CHAR_DEVICE,
                major: 5,
                minor: 1,
                uid: 7,
                gid: 8,
                ..Header::default()
            },
            "087a07d51e12972f95e4aa5c52c4c32ce705c6e89cc0128ddfd235ef09726b37",
        ),
        (
            Header { mode: gomode::SOCKET | 0o755, size: 9, ..Header::default() },
            "3130ad7472333c5a9d9147c86bf516ac6eab9334fbb366216ba3fa02a85c2e94",
        ),
        (
            Header { mode: 0o644, size: 5, link: b"other".to_vec(), xattrs, ..Header::default() },
            "28a461819c93e480f0d21d728d9d54863390c4228e80e12bc1f1a839ba7743eb",
        ),
        (
            Header { mode: gomode::SYMLINK | 0o777, link: b"target".to_vec(), ..Header::default() },
            "a2ba571981f48ec34eb79c9a3ab091b6491e825c2f7e9914ea86e8e958be7fae",
        ),
        (
            Header { mode: gomode::DIR | gomode::SETGID | 0o755, size: 4096, ..Header::default() },
            "0b7cfcefc809fe1b555bfc8cd55fb059dd0b0987e497f8f03777689aeaa63a80",
        ),
    ] {
        assert_eq!(FileHasher::new(&header).unwrap().finish().hex(), want, "{header:?}");
    }
}

fn receive(hash: &ContentHash, path: &str, mode: u32, link: &str, data: &str) {
    let size = i64::try_from(data.len()).unwrap();
    let header = Header { mode, size, link: link.into(), ..Header::default() };
    let mut hasher = FileHasher::new(&header).unwrap();
    hasher.update(data);
    hash.change(path, Change::Present { header, digest: hasher.finish() });
}

fn told(hash: &ContentHash) -> Vec<Option<Digest>> {
    let one = |path| hash.known(path, &Opts::default()).ok().flatten();
    ["/", "a", "a/b", "a/link", "z"].map(one).into()
}

fn digests(hex: &[&str]) -> Vec<Option<Digest>> {
    hex.iter().map(|hex| (!hex.is_empty()).then(|| format!("sha256:{hex}").parse().unwrap())).collect()
}

#[test]
fn follows_a_transfer_without_reading() {
    let hash = ContentHash::new();
    receive(&hash, "a", gomode::DIR | 0o755, "", "");
    receive(&hash, "a/b", 0o644, "", "bee");
    receive(&hash, "a/link", 0o644, "z", "");
    receive(&hash, "a/sub", gomode::DIR | 0o755, "", "");
    receive(&hash, "a/sub/x", 0o644, "", "ex");
    receive(&hash, "z", 0o644, "", "zed");
    assert_eq!(
        told(&hash),
        digests(&[
            "1c0a7fd74b917ccaf8f2f05f579a807be5a0b9199830b6c77c0c5c49c7b5faa7",
            "22815baf6c91bee10b7b1f0569bc777fae2952f368961b58a0ced4f7ff406e3f",
            "833beb37e0086e43778f3279d17b7c1c9c2f89c6d68ae83635cbee8f749ce304",
            "cac3524c3af7e0bfa880aff05715599b10c3b856edaa6309803cecf4689b91f2",
            "cac3524c3af7e0bfa880aff05715599b10c3b856edaa6309803cecf4689b91f2",
        ])
    );
    receive(&hash, "a/b", 0o600, "", "bee2");
    hash.change("a/link", Change::Removed);
    receive(&hash, "a/sub", 0o644, "", "file now");
    assert_eq!(
        told(&hash),
        digests(&[
            "608e5c2f78ff16d5db10c4e62f262817ae4489ae5e98a383ddb24310bca570db",
            "83181a3f2fbf0bab0c12a274634d2c9ce1fe7072347beb5c29bb127641ebf06d",
            "7f6e633236229bc0c9c7add5ac3af7af49b2f4ac1c85fa938012174f36873150",
            "",
            "cac3524c3af7e0bfa880aff05715599b10c3b856edaa6309803cecf4689b91f2",
        ])
    );
}

#[test]
fn big_trees_are_hashed_alike_by_many_and_few() {
    let tree = fixture::empty();
    for n in 0..300 {
        let dir = tree.path().join(format!("d{}", n % 7));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("f{n}")), format!("content {n}")).unwrap();
    }
    let root = Root::open(tree.path()).unwrap();
    let whole = ContentHash::new().checksum(&root, "/", &Opts::default()).unwrap();
    let bit_by_bit = ContentHash::new();
    for n in 0..300 {
        bit_by_bit.checksum(&root, &format!("d{}/f{n}", n % 7), &Opts::default()).unwrap();
    }
    assert_eq!(bit_by_bit.checksum(&root, "/", &Opts::default()).unwrap(), whole);
}

#[test]
fn a_link_that_leads_out_leads_nowhere() {
    let tree = fixture::empty();
    std::fs::create_dir(tree.path().join("root")).unwrap();
    std::fs::write(tree.path().join("secret"), "secret").unwrap();
    for (name, target) in [("up", "../secret"), ("abs", tree.path().join("secret").to_str().unwrap())] {
        std::os::unix::fs::symlink(target, tree.path().join("root").join(name)).unwrap();
    }
    std::os::unix::fs::symlink("loop", tree.path().join("root/loop")).unwrap();
    let root = Root::open(tree.path().join("root")).unwrap();
    let follow = Opts { follow_links: true, ..Opts::default() };
    for name in ["up", "abs", "loop"] {
        assert!(ContentHash::new().checksum(&root, name, &follow).is_err(), "{name}");
    }
    assert!(ContentHash::new().checksum(&root, "/", &follow).is_ok());
}
