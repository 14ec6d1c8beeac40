use super::*;

fn env() -> Vec<(String, String)> {
    [("A", "abc"), ("E", ""), ("W", "two  words"), ("P", "a/b/a.txt"), ("S", "a*b?c"), ("é", "e")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn expand(word: &str) -> Result<String, String> {
    let expanded = Lex::new('\\').expand(word, &env());
    expanded.map(|e| e.text).map_err(|e| e.reason.to_string())
}

#[test]
fn expands() {
    for (word, want) in [
        ("plain", "plain"),
        ("$A", "abc"),
        ("x${A}y", "xabcy"),
        ("$Ax", ""),
        ("$A.x", "abc.x"),
        ("$é", "e"),
        ("$", "$"),
        ("$.", "$."),
        ("$1x", "x"),
        ("$@x", "x"),
        ("\\$A", "$A"),
        ("\\\\$A", "\\abc"),
        ("'$A'", "$A"),
        ("\"$A\"", "abc"),
        ("\"\\$A \\\" \\n\"", "$A \" \\n"),
        ("'a\\'", "a\\"),
        ("a'b'\"c\"", "abc"),
        ("x\\", "x"),
        ("${E:-d}", "d"),
        ("${E-d}", ""),
        ("${N-d}", "d"),
        ("${N:-$A}", "abc"),
        ("${N:-${M:-\"a b\"}}", "a b"),
        ("${N:-a\\}b}", "a}b"),
        ("${A:+x}", "x"),
        ("${E:+x}", ""),
        ("${E+x}", "x"),
        ("${N+x}", ""),
        ("${A?e}", "abc"),
        ("${E?e}", ""),
        ("${P#*/}", "b/a.txt"),
        ("${P##*/}", "a.txt"),
        ("${P%/*}", "a/b"),
        ("${P%%/*}", "a"),
        ("${P#x}", "a/b/a.txt"),
        ("${P/a/x}", "x/b/a.txt"),
        ("${P//a/x}", "x/b/x.txt"),
        ("${P//\\//-}", "a-b-a.txt"),
        ("${P/?.*/x}", "a/b/x"),
        ("${S/\\*/x}", "axb?c"),
        ("${S//[b?]/x}", "a*b?c"),
        ("${N/a/b}", ""),
        ("<<$A", "<<abc"),
        ("<$A", "<abc"),
        ("\u{feff}a", "a"),
    ] {
        assert_eq!(expand(word).as_deref(), Ok(want), "{word}");
    }
}

#[test]
fn refuses() {
    for (word, want) in [
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ("\"a", "unexpected end of statement while looking for matching double-quote"),
        ("\"a\\", "unexpected end of statement while looking for matching double-quote"),
        ("${", "syntax error: missing '}'"),
        ("${A", "unsupported modifier (\u{fffd}) in substitution"),
        ("${A:", "syntax error: missing '}'"),
        ("${A:-", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${{A}}", "syntax error: bad substitution"),
        ("${A^}", "unsupported modifier (^) in substitution"),
        ("${A:=x}", "unsupported modifier (:=) in substitution"),
        ("${A:#x}", "unsupported modifier (:#) in substitution"),
        ("${A/x}", "syntax error: missing '/' in ${}"),
        ("${A/x/y", "syntax error: missing '}'"),
        ("${N?}", "N: is not allowed to be unset"),
        ("${N?gone $A}", "N: gone abc"),
        ("${E:?}", "E: is not allowed to be empty"),
        ("${N:?}", "N: is not allowed to be unset"),
        ("${A#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
    ] {
        assert_eq!(expand(word), Err(want.to_owned()), "{word}");
    }
    let error = Lex::new('\\').expand("a\"b", &NoEnv).unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to process \"a\\\"b\": unexpected end of statement while looking for matching double-quote"
    );
}

#[test]
fn splits() {
    let words = |word: &str| Lex::new('\\').words(word, &env()).unwrap();
    assert_eq!(words("a  b\tc"), ["a", "b", "c"]);
    assert_eq!(words("  $W  "), ["two", "words"]);
    assert_eq!(words("\"$W\" x"), ["two  words", "x"]);
    assert_eq!(words("a\\ b"), ["a b"]);
    assert_eq!(words("x$W"), ["xtwo", "words"]);
    assert_eq!(words("'' a"), ["a"]);
    assert_eq!(words("cat << EOF"), ["cat", "<< EOF"]);
    // What is inside braces makes the split forget what came before.
    assert_eq!(words("foo${N:-bar}"), ["bar"]);
}

#[test]
fn has_options() {
    let lex = |change: fn(&mut Lex)| {
        let mut lex = Lex::new('`');
        change(&mut lex);
        move |word: &str| lex.expand(word, &env()).unwrap().text
    };
    assert_eq!(lex(|_| {})("`$A \\$A"), "$A \\abc");
    assert_eq!(lex(|l| l.raw_quotes = true)("'$A' \"$A\""), "'$A' \"abc\"");
    assert_eq!(lex(|l| l.raw_escapes = true)("`$A \"``\""), "`$A \"``\"".replace('"', ""));
    assert_eq!(lex(|l| l.ignore_quotes = true)("'$A"), "'abc");
    let keep = lex(|l| l.keep_unset = true);
    for word in ["$N", "${N}", "${N:-x}", "${N#a*}", "${N/a/b}", "$A${N?e}"] {
        assert_eq!(keep(word), word.replace("$A", "abc"));
    }
}

#[test]
fn notes_what_was_looked_up() {
    let expanded = Lex::new('\\').expand("$A ${N:-$M} '$X' ${E}", &env()).unwrap();
    assert_eq!(expanded.matched.into_iter().collect::<Vec<_>>(), ["A", "E"]);
    assert_eq!(expanded.unmatched.into_iter().collect::<Vec<_>>(), ["M", "N"]);
}

#[test]
fn bounds_hostile_words() {
    let deep = "${a:-".repeat(100_000);
    assert_eq!(expand(&deep), Err("substitutions are nested more than 200 deep".to_owned()));
    let deep = "${a/".repeat(100_000);
    assert!(expand(&deep).is_err());
    let large = vec![("L".to_owned(), "x".repeat(1 << 20))];
    let lex = Lex::new('\\');
    for word in ["$L".repeat(17), format!("\"{}\"", "$L".repeat(17)), "${L//x/$L}".to_owned()] {
        let error = lex.expand(&word, &large).unwrap_err();
        assert_eq!(error.reason, Reason::TooLong);
    }
}
