//! `# syntax=`, `# escape=` and `# check=`, which come before anything else in
//! a file.

use std::collections::BTreeSet;

use super::Lines;
use super::text::{RawLines, is_ascii_space, lossy, trim_start};

/// Which directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Name {
    Syntax,
    Escape,
    Check,
}

impl Name {
    /// As it is written, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Escape => "escape",
            Self::Check => "check",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Syntax, Self::Escape, Self::Check]
            .into_iter()
            .find(|name| text.eq_ignore_ascii_case(name.as_str()))
    }
}

/// A directive of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Which one.
    pub name: Name,
    /// Everything after `=`, trimmed.
    pub value: String,
    /// Where it is.
    pub lines: Lines,
}

impl Directive {
    /// The value up to the first space: for `syntax` the image. The value in a
    /// JSON object is an image as a whole, but none contains a space.
    pub fn first_word(&self) -> &str {
        self.value.split(' ').next().unwrap_or_default()
    }
}

/// The same directive twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("only one {} parser directive can be used", .0.as_str())]
pub struct Repeated(pub Name);

/// Reads directives line by line, until a line is none.
#[derive(Debug)]
pub(super) struct Reader {
    prefix: &'static str,
    line: u32,
    seen: BTreeSet<Name>,
    done: bool,
}

impl Reader {
    pub(super) fn new(prefix: &'static str) -> Self {
        Self { prefix, line: 0, seen: BTreeSet::new(), done: false }
    }

    /// The directive on the next line, which comes without its line end.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<Option<Directive>, Repeated> {
        self.line = self.line.saturating_add(1);
        if self.done {
            return Ok(None);
        }
        let parsed =
            line.strip_prefix(self.prefix.as_bytes()).and_then(|l| assignment(&lossy(trim_start(l))));
        let Some((name, value)) = parsed else {
            self.done = true;
            return Ok(None);
        };
        if !self.seen.insert(name) {
            return Err(Repeated(name));
        }
        Ok(Some(Directive { name, value, lines: Lines::new(self.line, self.line) }))
    }
}

/// `name = value` of a known name. White space around the value is not part of
/// it, unless there is nothing else: then its last character is the value.
fn assignment(text: &str) -> Option<(Name, String)> {
    let (name, value) = text.split_once('=')?;
    let name = Name::parse(name.trim_end_matches(is_ascii_space))?;
    let trimmed = value.trim_matches(is_ascii_space);
    let value = match value.chars().last() {
        None => return None,
        Some(last) if trimmed.is_empty() => last.to_string(),
        Some(_) => trimmed.to_owned(),
    };
    Some((name, value))
}

/// The directive `name` at the top of a Dockerfile.
pub fn find(name: Name, data: &[u8]) -> Option<Directive> {
    let (data, line) = skip_first(data);
    find_with("#", name, data, line)
}

/// Which frontend a file asks for: `# syntax=`, or `// syntax=`, or a JSON
/// object with a `syntax`. A byte order mark and a `#!` line may come before.
pub fn syntax(data: &[u8]) -> Option<Directive> {
    let (data, line) = skip_first(data);
    find_with("#", Name::Syntax, data, line).or_else(|| find_with("//", Name::Syntax, data, line)).or_else(
        || {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&lossy(data)).ok()?;
            let value = object.get(Name::Syntax.as_str())?.as_str()?.to_owned();
            Some(Directive { name: Name::Syntax, value, lines: Lines::new(line, line) })
        },
    )
}

fn find_with(prefix: &'static str, name: Name, data: &[u8], skipped: u32) -> Option<Directive> {
    let mut reader = Reader { line: skipped, ..Reader::new(prefix) };
    for line in RawLines::new(data) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match reader.line(line) {
            Ok(Some(found)) if found.name == name => return Some(found),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
    None
}

/// `data` after a byte order mark and a `#!` line, and how many lines that
/// skipped.
fn skip_first(data: &[u8]) -> (&[u8], u32) {
    let data = without_bom(data);
    if !data.starts_with(b"#!") {
        return (data, 0);
    }
    match data.iter().position(|b| *b == b'\n') {
        Some(at) => (&data[at + 1..], 1),
        None => (&[], 1),
    }
}

pub(super) fn without_bom(data: &[u8]) -> &[u8] {
    data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(data: &str) -> Option<(String, String, u32)> {
        syntax(data.as_bytes()).map(|d| (d.first_word().to_owned(), d.value.clone(), d.lines.first))
    }

    #[test]
    fn finds_the_syntax() {
        let some = |word: &str, value: &str, line| Some((word.to_owned(), value.to_owned(), line));
        assert_eq!(
            detect("# syntax = dockerfile:experimental // opts\nFROM busybox\n"),
            some("dockerfile:experimental", "dockerfile:experimental // opts", 1)
        );
        assert_eq!(detect("#!/bin/x\n# SYNTAX=a\n"), some("a", "a", 2));
        assert_eq!(detect("\u{feff}#escape=`\r\n#syntax=a b\r\n"), some("a", "a b", 2));
        assert_eq!(detect("//syntax=x"), some("x", "x", 1));
        assert_eq!(detect("{\"syntax\": \"y z\"}"), some("y", "y z", 0));
        assert_eq!(detect("#!x\n{\"syntax\": \"y\"}"), some("y", "y", 1));
        assert_eq!(detect("#syntax=  "), some("", " ", 1));
        for none in [
            "",
            "#syntax=",
            "\n#syntax=a",
            "# foo\n#syntax=a",
            "#foo=b\n#syntax=a",
            "FROM x\n#syntax=a",
            "{\"syntax\": 1}",
            "{\"x\": \"y\"}",
            "#check=a\n#check=b\n#syntax=c",
            "#!x",
        ] {
            assert_eq!(detect(none), None, "{none:?}");
        }
        assert_eq!(find(Name::Check, b"#syntax=a\n# check = skip=all ").unwrap().value, "skip=all");
        assert_eq!(find(Name::Syntax, b"//syntax=a"), None);
    }
}
