use super::*;

/// The answer of the three ways that have to agree.
fn matches(patterns: &[&str], path: &str) -> bool {
    let matcher = Matcher::new(patterns).unwrap();
    let whole = matcher.matches_or_parent(path).unwrap();
    let (alone, _) = matcher.matches_with_parent(path, &MatchInfo::default()).unwrap();
    assert_eq!(whole, alone, "{patterns:?} {path}");
    let mut info = MatchInfo::default();
    let mut walked = false;
    for end in path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]) {
        (walked, info) = matcher.matches_with_parent(&path[..end], &info).unwrap();
    }
    assert_eq!(whole, walked, "walk {patterns:?} {path}");
    whole
}

#[test]
fn one_pattern() {
    for (pattern, path, want) in [
        ("**", "file", true),
        ("**", "dir/file", true),
        ("**/", "dir/file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir", false),
        ("dir/**", "dirx/file", false),
        ("dir/**", "dir/a/b", true),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/*", "dir/dir2/dir3/file", true),
        ("**file", "a/xfile", true),
        ("**file", "file", true),
        ("**/file", "a/b/file", true),
        ("**/file", "xfile", false),
        ("**/file", "file", true),
        ("**/*file", "a/bfile", true),
        ("a**/*.txt", "a/b/c.txt", true),
        ("a**/*.txt", "abc.txt", true),
        ("a**/*.txt", "b/a.txt", false),
        ("a/*.txt", "a/b.txt", true),
        ("a/*.txt", "a/b/c.txt", false),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aae", false),
        ("a[^b-d]e", "aze", true),
        ("abc.def", "abcdef", false),
        ("abc.def", "abc.def", true),
        ("a?c", "a/c", false),
        ("a\\?", "a?", true),
        ("a\\?", "ab", false),
        ("a\\ b", "a b", true),
        ("**/foo/bar", "foo/bar", true),
        ("**/foo/bar", "dir/dir2/foo/bar/baz", true),
        ("abc/**", "abc", false),
        ("abc/**", "abc/def", true),
        (".*", ".foo", true),
        (".*", "foo", false),
        ("(a)", "(a)", true),
        ("a|b", "a", false),
        ("a|b*", "a|bc", true),
        ("*.go", "x/y.go", false),
        ("x", "x/y/z", true),
        ("x", "y/x", false),
        ("a/../b", "b", true),
        ("/a", "a", false),
        ("{a,b}", "a", false),
        ("héllo*", "héllo wörld", true),
    ] {
        assert_eq!(matches(&[pattern], path), want, "{pattern} {path}");
    }
}

/// Brackets and escapes mean what they mean to Go's regular expressions.
#[test]
fn brackets_and_escapes() {
    for (pattern, path, want) in [
        ("[[:alpha:]]", "x", true),
        ("[[:alpha:]]", "1", false),
        ("x\\d", "x5", true),
        ("x\\d", "xd", false),
        ("[a&&b]", "&", true),
        ("[a&&b]", "a", true),
        ("[a[b]", "[", true),
        ("[\\]]", "]", true),
        ("[\\d_]x", "7x", true),
        ("\\x41[\\x42]", "AB", true),
        ("a\\<b", "a<b", true),
        ("a[*]", "a*", false),
        ("a\\Q.*", "a\\.[^/]*$", true),
    ] {
        assert_eq!(Matcher::new([pattern]).unwrap().matches_or_parent(path), Ok(want), "{pattern} {path}");
    }
    for broken in ["[z-a]", "\\xg1", "\\m", "[[:foo:]]", "\\1"] {
        let matcher = Matcher::new([broken]).unwrap();
        assert_eq!(matcher.matches_or_parent("a"), Err(Error::Syntax), "{broken}");
        // What is not looked at is no error.
        assert_eq!(Matcher::new(["a", broken]).unwrap().matches_or_parent("a"), Ok(true));
    }
    let text = |pattern| Matcher::new([pattern]).unwrap_err().to_string();
    assert_eq!(text("["), "syntax error in pattern");
    assert_eq!(text(" ! "), "illegal exclusion pattern: \"!\"");
}

#[test]
fn lists() {
    assert!(!matches(&["**", "!a"], "a"));
    assert!(matches(&["**", "!a"], "b"));
    assert!(!matches(&["a", "!a/b"], "a/b"));
    assert!(!matches(&["a", "!a/b"], "a/b/c"));
    assert!(matches(&["a", "!a/b", "a/b/c"], "a/b/c"));
    assert!(matches(&["!a", "a"], "a"));
    assert!(!matches(&["*", "!*.md", "", " "], "x.md"));
    assert!(matches(&["docs/*", "!docs/*.md", "docs/SECRET.md"], "docs/SECRET.md"));
    assert!(matches(&["util/docker/web", "!util/docker/web/foo"], "util/docker/web/x"));
    assert!(!matches(&["util/docker/web", "!util/docker/web/foo"], "util/docker/web/foo"));
    let matcher = Matcher::new(["a", "!b"]).unwrap();
    assert!(matcher.has_exclusions());
    assert_eq!(matcher.patterns()[1].text(), "b");
    assert!(matcher.patterns()[1].is_exclusion());
    assert_eq!(matcher.matches_with_parent("x", &MatchInfo(vec![true])), Err(Error::WrongParent));
}

#[test]
fn ignore_files() {
    let read = |text: &str| read_ignore_file(text.as_bytes()).unwrap();
    assert_eq!(
        read("\u{feff}# comment\n a/ \r\n\n # not a comment\n/b/../c\n!/d\n! e\n!\n/\n//f\n**/g\n"),
        ["a", "# not a comment", "c", "!d", "!e", "!", "/", "f", "**/g"]
    );
    assert_eq!(read(""), [""; 0]);
    let long = "x".repeat(65536);
    assert_eq!(read_ignore_file(long.as_bytes()), Err(Error::LineTooLong));
    assert_eq!(read(&long[1..]).len(), 1);
}

#[test]
fn hostile_patterns_end() {
    for pattern in ["[[:".repeat(50_000), "**/".repeat(20_000) + "x", "*".repeat(60_000), "a*".repeat(2000)] {
        if let Ok(matcher) = Matcher::new([&pattern]) {
            // A pattern that is too large to compile is an error, too.
            let _ = matcher.matches_or_parent("a/b/c");
        }
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(pattern in "[ab*?\\[\\]^\\-\\\\!/.:é]{0,12}", path in "[ab/.é\\]]{0,12}") {
        let _ = glob(&pattern, &path);
        if let Ok(matcher) = Matcher::new([&pattern]) {
            let _ = matcher.matches_or_parent(&path);
            let _ = matcher.matches_with_parent(&path, &MatchInfo::default());
        }
        crate::gopath::clean(&path);
        let _ = crate::gourl::Url::parse(&pattern);
    }
}
