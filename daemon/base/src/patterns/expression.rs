//! A pattern of a list as a regular expression.
//!
//! The original writes an expression for Go's engine, taking brackets and
//! escapes over as they stand, so that `\d` is a digit and `[[:alpha:]]` a
//! class. The text is first written the same way and then translated: between
//! brackets the two engines differ.

use regex::{Regex, escape};

use super::How;

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Finds the cheapest way to match `pattern`.
pub(super) fn compile(pattern: &str) -> How {
    let mut go = String::from("^");
    let mut regex = false;
    let (mut prefix, mut suffix) = (false, false);
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    go.push_str("(.*/)?");
                    (regex, prefix) = (true, false);
                } else if regex || suffix {
                    go.push_str(".*");
                    (regex, suffix) = (true, false);
                } else {
                    prefix = true;
                }
                if first {
                    // Until something else needs an expression.
                    (regex, prefix, suffix) = (false, false, true);
                }
            }
            '*' => {
                go.push_str("[^/]*");
                (regex, suffix) = (true, false);
            }
            '?' => {
                go.push_str("[^/]");
                (regex, suffix) = (true, false);
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => go.extend(['\\', c]),
            '\\' => {
                go.push('\\');
                if let Some(escaped) = chars.next() {
                    go.push(escaped);
                    (regex, suffix) = (true, false);
                }
            }
            '[' | ']' => {
                go.push(c);
                (regex, suffix) = (true, false);
            }
            _ => go.push(c),
        }
        first = false;
    }
    if suffix {
        return How::Suffix;
    }
    if prefix {
        return How::Prefix;
    }
    if !regex {
        return How::Exact;
    }
    go.push('$');
    match translate(&go).and_then(|rust| Regex::new(&rust).ok()) {
        Some(regex) => How::Regex(regex),
        None => How::Broken,
    }
}

/// An expression for this engine that means what `go` means to Go's. Only what
/// [`compile`] can write is known. `None` when Go would refuse it.
fn translate(go: &str) -> Option<String> {
    let mut out = String::with_capacity(go.len());
    let mut chars = go.chars().peekable();
    // There may be names of classes ahead.
    let mut names = true;
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next_if_eq(&'Q').is_some() => quoted(&mut chars, &mut out),
            '\\' => out.push_str(&escaped(&mut chars, false)?),
            '[' => class(&mut chars, &mut names, &mut out)?,
            ']' => out.push_str("\\]"),
            '#' | '&' | '~' | '-' => out.push_str(&literal(c)),
            _ => out.push(c),
        }
    }
    Some(out)
}

/// What follows `\Q`, up to `\E`: it stands for itself.
fn quoted(chars: &mut Chars<'_>, out: &mut String) {
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next_if_eq(&'E').is_some() {
            return;
        }
        out.push_str(&literal(c));
    }
}

/// What follows `[`, up to the `]`.
fn class(chars: &mut Chars<'_>, names: &mut bool, out: &mut String) -> Option<()> {
    out.push('[');
    if chars.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    loop {
        let c = chars.next()?;
        if c == ']' && !first {
            break;
        }
        first = false;
        if c == '[' && chars.peek() == Some(&':') && *names {
            // `[:name:]`, or just these characters when it does not end.
            match class_name(chars) {
                Some(name) if NAMED.contains(&name.strip_prefix('^').unwrap_or(&name)) => {
                    chars.nth(name.len() + 2);
                    out.push_str(&format!("[:{name}:]"));
                    continue;
                }
                Some(_) => return None,
                // Then no later one does.
                None => *names = false,
            }
        }
        let low = item(c, chars)?;
        out.push_str(&low);
        let mut ahead = chars.clone();
        let range = ahead.next() == Some('-') && !matches!(ahead.peek(), None | Some(']'));
        if range && !is_set(&low) {
            chars.next();
            let c = chars.next()?;
            let high = item(c, chars).filter(|high| !is_set(high))?;
            out.push_str(&format!("-{high}"));
        }
    }
    out.push(']');
    Some(())
}

/// What stands between `[:` and `:]`.
fn class_name(chars: &Chars<'_>) -> Option<String> {
    let mut ahead = chars.clone();
    ahead.next();
    let mut name = String::new();
    loop {
        match ahead.next()? {
            ':' if ahead.peek() == Some(&']') => return Some(name),
            c => name.push(c),
        }
    }
}

/// The classes that have a name.
const NAMED: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// Not one character, but several.
fn is_set(item: &str) -> bool {
    item.starts_with('[')
}

/// One character or set of a class, of which `c` is the first character.
fn item(c: char, chars: &mut Chars<'_>) -> Option<String> {
    if c == '\\' { escaped(chars, true) } else { Some(literal(c)) }
}

fn literal(c: char) -> String {
    escape(c.encode_utf8(&mut [0; 4]))
}

/// What `\` before the next character means.
fn escaped(chars: &mut Chars<'_>, in_class: bool) -> Option<String> {
    let c = chars.next()?;
    if c.is_ascii() && !c.is_ascii_alphanumeric() {
        return Some(literal(c));
    }
    let set = |inside: &str| format!("[{inside}]");
    let other = |inside: &str| format!("[^{inside}]");
    Some(match c {
        'a' => "\\x07".to_owned(),
        'f' | 'n' | 'r' | 't' | 'v' => format!("\\{c}"),
        'd' => set("0-9"),
        's' => set("\\t\\n\\f\\r "),
        'w' => set("0-9A-Za-z_"),
        'D' => other("0-9"),
        'S' => other("\\t\\n\\f\\r "),
        'W' => other("0-9A-Za-z_"),
        // Two digits: the form in braces cannot be written, they are escaped.
        'x' => {
            let (high, low) = (chars.next()?.to_digit(16)?, chars.next()?.to_digit(16)?);
            literal(char::from_u32(high << 4 | low)?)
        }
        'A' | 'z' if !in_class => format!("\\{c}"),
        'b' if !in_class => "(?-u:\\b)".to_owned(),
        _ => return None,
    })
}
