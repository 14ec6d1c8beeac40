//! One instruction: keyword, flags and words.

use super::super::text::{is_space_byte, lossy, split_blank};
use super::{Node, Problem};

/// `ONBUILD` within `ONBUILD` is always an error; what follows so many of them
/// is not looked at.
const MAX_TRIGGERS: usize = 16;

/// Splits `line`, an instruction with its continuation lines joined.
pub(super) fn node(line: &str, escape: char) -> Result<Node, Problem> {
    nested(line, escape, 0)
}

fn nested(line: &str, escape: char, depth: usize) -> Result<Node, Problem> {
    let (keyword, rest) = split_blank(line.trim());
    let (flags, rest) = match rest {
        Some(rest) => flags(rest.as_bytes(), escape),
        None => (Vec::new(), String::new()),
    };
    let rest = rest.trim();
    let mut node = Node { keyword: keyword.to_owned(), flags, original: line.to_owned(), ..Node::default() };
    match keyword.to_lowercase().as_str() {
        "onbuild" if !rest.is_empty() && depth < MAX_TRIGGERS => {
            node.trigger = Some(Box::new(nested(rest, escape, depth + 1)?));
        }
        "add" | "copy" | "volume" => match json(rest)? {
            Some(words) => (node.words, node.json) = (words, true),
            None => node.words = blank_delimited(rest),
        },
        "cmd" | "entrypoint" | "run" | "shell" => (node.words, node.json) = maybe_json(rest)?,
        "healthcheck" => (node.words, node.json) = health(rest)?,
        "env" => node.words = assignments(rest, "ENV", escape)?,
        "label" => node.words = assignments(rest, "LABEL", escape)?,
        "arg" => node.words = words(rest, escape),
        "expose" | "from" => node.words = blank_delimited(rest),
        "maintainer" | "stopsignal" | "user" | "workdir" if !rest.is_empty() => {
            node.words.push(rest.to_owned());
        }
        // Unknown keywords are for later.
        _ => {}
    }
    Ok(node)
}

/// Takes the words that begin with `--` from the front; a `--` alone ends them.
///
/// The reference reads bytes here and takes each for a character.
fn flags(text: &[u8], escape: char) -> (Vec<String>, String) {
    #[derive(PartialEq)]
    enum At {
        Space,
        Word,
        Quote(u8),
    }
    let mut flags = Vec::new();
    let mut at = At::Space;
    let mut word = String::new();
    let mut quoted = false;
    let mut i = 0;
    while let Some(&byte) = text.get(i) {
        let mut c = byte;
        if at == At::Space {
            if is_space_byte(c) {
                i += 1;
                continue;
            }
            if !text[i..].starts_with(b"--") {
                return (flags, lossy(&text[i..]).into_owned());
            }
            at = At::Word;
        }
        match at {
            At::Word if is_space_byte(c) => {
                if word == "--" {
                    return (flags, lossy(&text[i..]).into_owned());
                }
                if quoted || !word.is_empty() {
                    flags.push(std::mem::take(&mut word));
                }
                (at, quoted) = (At::Space, false);
                i += 1;
                continue;
            }
            At::Word if c == b'\'' || c == b'"' => {
                (at, quoted) = (At::Quote(c), true);
                i += 1;
                continue;
            }
            At::Quote(quote) if c == quote => {
                at = At::Word;
                i += 1;
                continue;
            }
            _ => {}
        }
        if char::from(c) == escape {
            i += 1;
            match text.get(i) {
                Some(&escaped) => c = escaped,
                None => break,
            }
        }
        word.push(char::from(c));
        i += 1;
    }
    if at != At::Space && word != "--" && (quoted || !word.is_empty()) {
        flags.push(word);
    }
    (flags, String::new())
}

/// Splits at white space outside of quotes. Quotes and escapes stay.
fn words(text: &str, escape: char) -> Vec<String> {
    #[derive(PartialEq)]
    enum At {
        Space,
        Word,
        Quote(char),
    }
    let mut words = Vec::new();
    let mut at = At::Space;
    let mut word = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(mut c) = chars.next() {
        if at == At::Space {
            if c.is_whitespace() {
                continue;
            }
            at = At::Word;
        }
        let escapes = match at {
            At::Quote(quote) => {
                if c == quote {
                    at = At::Word;
                }
                c == escape && quote != '\''
            }
            _ => {
                if c.is_whitespace() {
                    if quoted || !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    (at, quoted) = (At::Space, false);
                    continue;
                }
                if c == '\'' || c == '"' {
                    (at, quoted) = (At::Quote(c), true);
                }
                c == escape
            }
        };
        if escapes {
            // At the end of the line it is skipped.
            let Some(escaped) = chars.next() else { break };
            word.push(c);
            c = escaped;
        }
        word.push(c);
    }
    if at != At::Space && (quoted || !word.is_empty()) {
        words.push(word);
    }
    words
}

/// `name=value …`, or the older `name value`, as triples of name, value and
/// what stood between: `=` or nothing.
fn assignments(text: &str, keyword: &'static str, escape: char) -> Result<Vec<String>, Problem> {
    let words = words(text, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let (name, Some(value)) = split_blank(text) else {
            return Err(Problem::TwoArguments(keyword));
        };
        return Ok(vec![name.to_owned(), value.to_owned(), String::new()]);
    }
    let mut out = Vec::with_capacity(words.len() * 3);
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            return Err(Problem::NotAssigned(word));
        };
        out.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(out)
}

fn blank_delimited(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (word, next) = split_blank(text);
        out.push(word.to_owned());
        rest = next;
    }
    out
}

/// The strings of a JSON array; `None` when it is no such array.
fn json(text: &str) -> Result<Option<Vec<String>>, Problem> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let string = |value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(Problem::NotStrings),
    };
    values.into_iter().map(string).collect::<Result<_, _>>().map(Some)
}

/// The strings of a JSON array, or the text as one word.
fn maybe_json(text: &str) -> Result<(Vec<String>, bool), Problem> {
    // The part after the type of a health check may begin with other space.
    Ok(match json(text.trim_start())? {
        Some(words) => (words, true),
        None if text.is_empty() => (Vec::new(), false),
        None => (vec![text.to_owned()], false),
    })
}

/// A type, then as [`maybe_json`].
fn health(text: &str) -> Result<(Vec<String>, bool), Problem> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|b| is_space_byte(*b)).unwrap_or(bytes.len());
    let (kind, rest) = bytes.split_at(end);
    if kind.is_empty() {
        return Ok((Vec::new(), false));
    }
    let next = rest.iter().position(|b| !is_space_byte(*b)).unwrap_or(rest.len());
    let (command, json) = maybe_json(&lossy(&rest[next..]))?;
    let mut words = vec![lossy(kind).into_owned()];
    words.extend(command);
    Ok((words, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_flags_off_the_front() {
        let f = |s: &str| flags(s.as_bytes(), '\\');
        let want = |flags: &[&str], rest: &str| {
            (flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(), rest.to_owned())
        };
        assert_eq!(f("--a --b=c d --e"), want(&["--a", "--b=c"], "d --e"));
        assert_eq!(f("--a='b c' --\"d e\" f"), want(&["--a=b c", "--d e"], "f"));
        assert_eq!(f("--a\\ b"), want(&["--a b"], ""));
        assert_eq!(f("-- --a"), want(&[], " --a"));
        assert_eq!(f("--a --"), want(&["--a"], ""));
        assert_eq!(f("--a\\"), want(&["--a"], ""));
        assert_eq!(f("--a='b"), want(&["--a=b"], ""));
        assert_eq!(f("--a=é x"), want(&["--a=Ã©"], "x"));
        assert_eq!(f("--a=à x"), want(&["--a=Ã"], "x"));
        assert_eq!(f("-a"), want(&[], "-a"));
    }

    #[test]
    fn splits_words() {
        assert_eq!(words("a 'b c' \"d e\"f \\g\\ h ''", '\\'), ["a", "'b c'", "\"d e\"f", "\\g\\ h", "''"]);
        assert_eq!(words("a='b\\' c\" d\\\" e\" f\\", '\\'), ["a='b\\'", "c\" d\\\" e\"", "f"]);
        assert_eq!(blank_delimited("a \t b\u{a0}c"), ["a", "b\u{a0}c"]);
    }

    #[test]
    fn stops_at_many_triggers() {
        let line = "ONBUILD ".repeat(20_000);
        let mut deep = 0;
        let root = node(&line, '\\').unwrap();
        let mut at = &root;
        while let Some(next) = &at.trigger {
            (at, deep) = (next, deep + 1);
        }
        assert_eq!(deep, MAX_TRIGGERS);
    }
}
