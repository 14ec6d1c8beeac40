//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`.

use regex::Regex;

use super::{MAX_LENGTH, Reason};

/// Removes what `pattern` matches from the front of `value`: the longest match
/// when `greedy`, else the shortest.
pub(super) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, Reason> {
    let regex = compile(pattern, greedy, true)?;
    Ok(match regex.find(value) {
        Some(found) => value[found.end()..].to_owned(),
        None => value.to_owned(),
    })
}

/// Removes what `pattern` matches from the end of `value`.
///
/// An expression finds the leftmost match, so both are read backwards.
pub(super) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, Reason> {
    let backwards = |s: &str| s.chars().rev().collect::<String>();
    Ok(backwards(&trim_prefix(&reverse(pattern), &backwards(value), greedy)?))
}

/// Replaces the first match of `pattern` in `value`, or `all`.
///
/// As in the reference, `$name` in the replacement is a reference to a group,
/// of which there are none, when all are replaced and plain text otherwise.
pub(super) fn replace(pattern: &str, value: &str, replacement: &str, all: bool) -> Result<String, Reason> {
    let regex = compile(pattern, true, false)?;
    if all {
        let replacement = without_groups(replacement);
        let added = regex.find_iter(value).count().saturating_mul(replacement.len());
        if value.len().saturating_add(added) > MAX_LENGTH {
            return Err(Reason::TooLong);
        }
        return Ok(regex.replace_all(value, regex::NoExpand(&replacement)).into_owned());
    }
    Ok(match regex.find(value) {
        Some(found) => format!("{}{replacement}{}", &value[..found.start()], &value[found.end()..]),
        None => value.to_owned(),
    })
}

/// The pattern's text, last character first; an escape stays before what it
/// escapes.
fn reverse(pattern: &str) -> String {
    let mut pieces = Vec::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let mut end = c.len_utf8();
        if c == '\\' {
            end += rest[end..].chars().next().map_or(0, char::len_utf8);
        }
        let (piece, tail) = rest.split_at(end);
        pieces.push(piece);
        rest = tail;
    }
    pieces.into_iter().rev().collect()
}

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, Reason> {
    let bad = |why: String| Reason::BadPattern { pattern: pattern.to_owned(), why };
    let mut out = String::with_capacity(pattern.len() + 4);
    if anchored {
        out.push('^');
    }
    let mut chars = pattern.chars().peekable();
    while let Some(mut c) = chars.next() {
        match c {
            '*' => {
                out.push_str(if greedy { ".*" } else { ".*?" });
                continue;
            }
            '?' => {
                out.push('.');
                continue;
            }
            '\\' => {
                // These end a part of `${…}` unless escaped; the escape is not
                // the pattern's.
                if matches!(chars.peek(), Some('}' | '/')) {
                    continue;
                }
                out.push('\\');
                c = chars.next().unwrap_or(char::REPLACEMENT_CHARACTER);
                if !matches!(c, '*' | '?' | '\\') {
                    return Err(bad(format!("invalid escape '\\{c}'")));
                }
            }
            '[' | ']' | '{' | '}' | '.' | '+' | '(' | ')' | '|' | '^' | '$' => out.push('\\'),
            _ => {}
        }
        out.push(c);
    }
    Regex::new(&out).map_err(|e| bad(e.to_string()))
}

/// `template` with every `$name` and `${name}` removed and `$$` made `$`.
fn without_groups(template: &str) -> String {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let name_end = |s: &str| s.find(|c| !word(c)).unwrap_or(s.len());
        rest = if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            tail
        } else if let Some(tail) = after.strip_prefix('{') {
            let end = name_end(tail);
            match tail[end..].strip_prefix('}') {
                Some(tail) if end > 0 => tail,
                _ => {
                    out.push('$');
                    after
                }
            }
        } else {
            let end = name_end(after);
            if end == 0 {
                out.push('$');
            }
            &after[end..]
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_and_replaces() {
        assert_eq!(trim_prefix("f*o", "foobaroo", false).unwrap(), "obaroo");
        assert_eq!(trim_prefix("f*o", "foobaroo", true).unwrap(), "");
        assert_eq!(trim_suffix("o*", "foobaroo", false).unwrap(), "foobaro");
        assert_eq!(trim_suffix("o*", "foobaroo", true).unwrap(), "f");
        assert_eq!(trim_suffix(r"a\*", "ba*", true).unwrap(), "b");
        assert_eq!(replace("o", "foo", "0", false).unwrap(), "f0o");
        assert_eq!(replace("o", "foo", "0", true).unwrap(), "f00");
        assert_eq!(replace("o", "foo", "$x.", false).unwrap(), "f$x.o");
        assert_eq!(replace("o", "foo", "$x.", true).unwrap(), "f..");
        assert_eq!(without_groups("a$$b${c}d$-e${f$"), "a$bd$-e${f$");
        assert!(trim_prefix(r"\a", "x", true).is_err());
        assert!(trim_prefix("\\", "x", true).is_err());
    }
}
