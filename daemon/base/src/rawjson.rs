//! JSON that is passed on without being understood.
//!
//! Go's encoder keeps such text as it is but for white space and a few
//! characters it escapes: numbers, the order of keys and escapes stay. Digests
//! depend on that.

use std::fmt::Write as _;

/// Without white space, and `<`, `>`, `&` and the two line separators escaped.
/// The text must be valid JSON.
pub fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut quoted, mut escaped) = (false, false);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string cannot fail.
                _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            ' ' | '\t' | '\r' | '\n' if !quoted => {}
            _ => out.push(c),
        }
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
    }
    out
}

/// With line breaks, two spaces per level, and no white space of its own. The text must be
/// valid JSON.
pub fn indent(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut quoted, mut escaped, mut depth) = (false, false, 0_usize);
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if quoted {
            out.push(c);
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match c {
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

fn line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_all_but_white_space() {
        assert_eq!(
            compact("{ \"b\" : 1.0e3 ,\n\"a\": \"x \\\" <&> \\u00e9\" }"),
            "{\"b\":1.0e3,\"a\":\"x \\\" \\u003c\\u0026\\u003e \\u00e9\"}"
        );
    }

    #[test]
    fn indents_like_go() {
        assert_eq!(
            indent("{\"a\": [1, {\"b\":\"x,{\\\"\"}],\"c\":{ },\"d\":[]}"),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x,{\\\"\"\n    }\n  ],\n  \"c\": {},\n  \"d\": []\n}"
        );
    }
}
