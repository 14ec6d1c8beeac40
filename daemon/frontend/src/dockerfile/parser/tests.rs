use super::*;

fn words(data: &str) -> Vec<Vec<String>> {
    let parsed = parse(data.as_bytes()).unwrap();
    parsed.nodes.iter().map(|n| std::iter::once(n.keyword.clone()).chain(n.args()).collect()).collect()
}

fn fails(data: &str) -> (String, Vec<(u32, u32)>) {
    let error = parse(data.as_bytes()).unwrap_err();
    (error.to_string(), error.locations.iter().map(|l| (l.first, l.last)).collect())
}

fn places(data: &str) -> Vec<(u32, u32)> {
    parse(data.as_bytes()).unwrap().nodes.iter().map(|n| (n.lines.first, n.lines.last)).collect()
}

#[test]
fn splits_as_the_keyword_wants() {
    for (text, want) in [
        ("FROM a AS b", &["FROM", "a", "AS", "b"][..]),
        ("  fRoM\ta   as \t b", &["fRoM", "a", "as", "b"]),
        ("RUN a  'b  c'", &["RUN", "a  'b  c'"]),
        ("RUN [\"a\", \"b c\"]", &["RUN", "a", "b c"]),
        ("RUN [\"a\", 'b']", &["RUN", "[\"a\", 'b']"]),
        ("RUN [\"a\"] x", &["RUN", "[\"a\"] x"]),
        ("CMD []", &["CMD"]),
        ("CMD", &["CMD"]),
        ("COPY a  b\tc", &["COPY", "a", "b", "c"]),
        ("ADD [\"a b\",\"c\"]", &["ADD", "a b", "c"]),
        ("VOLUME [\"/a\"", &["VOLUME", "[\"/a\""]),
        (
            "ENV a=b c='d e' f=\"g h\" i=j\\ k",
            &["ENV", "a", "b", "=", "c", "'d e'", "=", "f", "\"g h\"", "=", "i", "j\\ k", "="],
        ),
        ("ENV a  b  c", &["ENV", "a", "b  c", ""]),
        ("ENV", &["ENV"]),
        ("LABEL a=b=c", &["LABEL", "a", "b=c", "="]),
        ("ARG a b=c 'd=e f'", &["ARG", "a", "b=c", "'d=e f'"]),
        ("WORKDIR /a b", &["WORKDIR", "/a b"]),
        ("USER", &["USER"]),
        ("EXPOSE 80 81/tcp", &["EXPOSE", "80", "81/tcp"]),
        ("HEALTHCHECK NONE", &["HEALTHCHECK", "NONE"]),
        ("HEALTHCHECK CMD [\"a\", \"b\"]", &["HEALTHCHECK", "CMD", "a", "b"]),
        ("HEALTHCHECK --interval=5s CMD  a b", &["HEALTHCHECK", "CMD", "a b"]),
        ("ONBUILD RUN a b", &["ONBUILD", "RUN", "a b"]),
        ("ONBUILD COPY [\"a\", \"b\"]", &["ONBUILD", "COPY", "a", "b"]),
        ("NONSENSE a b", &["NONSENSE"]),
    ] {
        assert_eq!(words(text), [want], "{text}");
    }
    let node = &parse(b"COPY --from=a --chown='b c' --link -- --x y").unwrap().nodes[0];
    assert_eq!(node.flags, ["--from=a", "--chown=b c", "--link"]);
    assert_eq!(node.words, ["--x", "y"]);
    assert!(parse(b"CMD [\"a\"]").unwrap().nodes[0].json);
}

#[test]
fn joins_continuations() {
    assert_eq!(words("RUN a\\\n  b \\  \n c\\\t\nd\nRUN e"), [["RUN", "a  b  cd"], ["RUN", "e"]]);
    assert_eq!(words("RUN a \\\\\nRUN b"), [["RUN", "a \\\\"], ["RUN", "b"]]);
    assert_eq!(words("RUN a \\\r\n b\r\nRUN c\r\n"), [["RUN", "a  b"], ["RUN", "c"]]);
    assert_eq!(words("RUN a \\\n# c\n  # d \\\n b"), [["RUN", "a  b"]]);
    assert_eq!(words("RUN a \\"), [["RUN", "a"]]);
    assert_eq!(words("\\\nRUN a"), [["RUN", "a"]]);
    assert_eq!(words("RUN a\\\n\\\n b"), [["RUN", "a b"]]);
    assert_eq!(words("# escape=`\nRUN a `\n b\\\nRUN c"), [["RUN", "a  b\\"], ["RUN", "c"]]);
    let parsed = parse(b"RUN a \\\n\n  \n b\nRUN c").unwrap();
    assert_eq!(parsed.warnings.len(), 1);
    assert_eq!((parsed.warnings[0].text.as_str(), parsed.warnings[0].lines.first), ("RUN a  b", 4));
    assert_eq!(parsed.nodes[0].lines, Lines::new(1, 4));
    assert_eq!(places("\n\nFROM a\n\n# x\nRUN a \\\n b\n\n"), [(3, 3), (6, 7)]);
}

#[test]
fn keeps_comments_above() {
    let parsed =
        parse(b"# syntax=x\n# a\n#b \n\n  # c\nFROM x\nRUN y\n# d\n#\n# e\nRUN \\\n# f\n z").unwrap();
    let comments: Vec<_> = parsed.nodes.iter().map(|n| n.comments.join("|")).collect();
    assert_eq!(comments, ["a|b|# c", "", "e"]);
}

#[test]
fn reads_directives() {
    assert_eq!(parse(b"\xef\xbb\xbf# escape = `\nFROM x").unwrap().escape, '`');
    assert_eq!(parse(b"FROM x\n# escape=`").unwrap().escape, '\\');
    assert_eq!(parse(b"# x\n# escape=`\nFROM x").unwrap().escape, '\\');
    assert_eq!(
        fails("# escape=x\nFROM x"),
        ("invalid escape token 'x' does not match ` or \\".to_owned(), vec![(0, 0)])
    );
    assert_eq!(
        fails("# escape=`\n# Escape=\\\nFROM x"),
        ("only one escape parser directive can be used".to_owned(), vec![(1, 1)])
    );
}

#[test]
fn reads_heredocs() {
    let docs = |text: &str| {
        let parsed = parse(text.as_bytes()).unwrap();
        let doc = |d: &Heredoc| {
            (d.name.clone(), d.expand, d.chomp, String::from_utf8_lossy(&d.content).into_owned())
        };
        parsed.nodes.iter().map(|n| n.heredocs.iter().map(doc).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let doc = |name: &str, expand, chomp, content: &str| (name.to_owned(), expand, chomp, content.to_owned());
    assert_eq!(
        docs("RUN <<EOF\na\n# b\n\n  c \\\nEOF\nRUN x"),
        [vec![doc("EOF", true, false, "a\n# b\n\n  c \\\n")], vec![]]
    );
    assert_eq!(
        docs("COPY <<A <<-'B C' <<\"D\"E /x\na\nA\n\tb\n\tB C\nc\r\nDE\r\n"),
        [[doc("A", true, false, "a\n"), doc("B C", false, true, "\tb\n"), doc("DE", false, false, "c\r\n")]]
    );
    assert_eq!(docs("ONBUILD RUN <<E\nE"), [[doc("E", true, false, "")]]);
    assert_eq!(docs("RUN a <<E | b\nE\n"), [[doc("E", true, false, "")]]);
    for none in ["RUN [\"<<E\"]", "CMD <<E", "RUN '<<E'", "RUN a\\<<E", "RUN cat <<<E", "ENV a=<<E"] {
        assert_eq!(docs(none), [vec![]], "{none}");
    }
    assert_eq!(places("RUN <<E\na\nE\nRUN b"), [(1, 3), (4, 4)]);
    assert_eq!(fails("FROM x\nRUN <<E\na"), ("unterminated heredoc".to_owned(), vec![(2, 3)]));
    // Not text, and yet kept.
    let parsed = parse(b"COPY <<E /\n\xff\xfe\nE\n").unwrap();
    assert_eq!(parsed.nodes[0].heredocs[0].content, b"\xff\xfe\n");
}

#[test]
fn refuses() {
    for (text, want, line) in [
        ("", "file with no instructions", (0, 0)),
        ("# a\n\n", "file with no instructions", (2, 2)),
        ("ENV a", "ENV must have two arguments", (1, 1)),
        ("\nLABEL a", "LABEL must have two arguments", (2, 2)),
        ("ENV a=b \\\n c", "Syntax error - can't find = in \"c\". Must be of the form: name=value", (1, 2)),
        ("CMD [\"a\", 1]", "when using JSON array syntax, arrays must be comprised of strings only", (1, 1)),
        (
            "ONBUILD CMD [null]",
            "when using JSON array syntax, arrays must be comprised of strings only",
            (1, 1),
        ),
    ] {
        assert_eq!(fails(text), (want.to_owned(), vec![line]), "{text}");
    }
    let long = "x".repeat(65536);
    let want = "dockerfile line greater than max allowed size of 65535".to_owned();
    assert_eq!(fails(&format!("FROM a\nRUN {long}\n")), (want, vec![(1, 1)]));
    assert!(parse(format!("RUN {}\n", &long[5..]).as_bytes()).is_ok());
    assert_eq!(fails(&format!("RUN <<E\n{long}\nE\n")).0, "unterminated heredoc");
}

#[test]
fn takes_bytes_that_are_no_text() {
    let parsed = parse(b"FROM a\xff\nRUN \x00\xf0\x9f").unwrap();
    assert_eq!(parsed.nodes[0].words, ["a\u{fffd}"]);
    assert_eq!(parsed.nodes[1].words, ["\0\u{fffd}\u{fffd}"]);
}
