//! `<<WORD`.

use super::super::shell::{Lex, NoEnv};
use super::super::text::is_ascii_space;
use super::Problem;

/// A file given inline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heredoc {
    /// The word after `<<`, without quotes.
    pub name: String,
    /// No part of the word is quoted: variables in the content count.
    pub expand: bool,
    /// `<<-`: tabs in front of each line do not count.
    pub chomp: bool,
    /// The lines, as they are in the file.
    pub content: Vec<u8>,
}

/// The heredoc that the word `word` opens, without content. `None` when it
/// opens none.
pub fn heredoc(word: &str) -> Option<Heredoc> {
    parse(word).ok().flatten()
}

/// `content` without the tabs in front of each line.
pub fn chomp(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for mut line in content.split_inclusive(|b| *b == b'\n') {
        while let [b'\t', rest @ ..] = line {
            line = rest;
        }
        out.extend_from_slice(line);
    }
    out
}

/// The heredocs that a line opens, in order.
pub(super) fn in_line(line: &str) -> Result<Vec<Heredoc>, Problem> {
    let lex = Lex { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lex::new('\\') };
    // What cannot be split has none.
    let words = lex.words(line, &NoEnv).unwrap_or_default();
    words.iter().filter_map(|word| parse(word).transpose()).collect()
}

fn parse(word: &str) -> Result<Option<Heredoc>, Problem> {
    let Some(rest) = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else {
        return Ok(None);
    };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(is_ascii_space);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Lex { keep_unset: true, ..Lex::new('\\') };
    let raw = Lex { raw_quotes: true, ..plain };
    let words = plain.words(rest, &NoEnv)?;
    let [name] = words.as_slice() else { return Ok(None) };
    let [with_quotes] = &raw.words(rest, &NoEnv)?[..] else {
        return Err(Problem::HeredocWords(rest.to_owned()));
    };
    // Quotes that the plain reading removed were quotes.
    let quotes = |s: &str| s.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        expand: quotes(name) == quotes(with_quotes),
        name: name.clone(),
        chomp,
        content: Vec::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_word() {
        let read = |w: &str| heredoc(w).map(|h| (h.name, h.expand, h.chomp));
        let some = |n: &str, e, c| Some((n.to_owned(), e, c));
        assert_eq!(read("<<EOF"), some("EOF", true, false));
        assert_eq!(read("<<-EOF"), some("EOF", true, true));
        assert_eq!(read("3<< 'E O'F"), some("E OF", false, false));
        assert_eq!(read("<<\"EOF\""), some("EOF", false, false));
        assert_eq!(read("<<$x"), some("$x", true, false));
        for none in ["<<", "EOF", "<EOF", "<<A<", "<<A B", "<<'A", "x<<A", "<<-", "<<<A"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn removes_tabs() {
        assert_eq!(chomp(b"\t\ta\tb\n \tc\n\t\n\td"), b"a\tb\n \tc\n\nd");
    }
}
