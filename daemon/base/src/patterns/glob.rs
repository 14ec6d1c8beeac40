//! `filepath.Match`.

use super::Error;

/// Whether `pattern` matches all of `name`: `*` and `?` stand for anything but
/// a slash, `[a-z]` and `[^a-z]` for one character, `\` takes away the meaning
/// of the next. Works on bytes outside of `?` and classes, as the original.
///
/// # Errors
/// [`Error::Syntax`] when the pattern is none, as far as it was looked at.
pub fn glob(pattern: &str, name: &str) -> Result<bool, Error> {
    let (mut pattern, mut name) = (pattern.as_bytes(), name.as_bytes());
    'chunks: while !pattern.is_empty() {
        let (star, chunk, rest) = next_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            return Ok(!name.contains(&b'/'));
        }
        // The last chunk has to take all that is left.
        let fits = |left: &[u8]| left.is_empty() || !rest.is_empty();
        if let Some(left) = match_chunk(chunk, name)?
            && fits(left)
        {
            name = left;
            continue;
        }
        if star {
            let mut skipped = name;
            while let [first, after @ ..] = skipped
                && *first != b'/'
            {
                skipped = after;
                if let Some(left) = match_chunk(chunk, skipped)?
                    && fits(left)
                {
                    name = left;
                    continue 'chunks;
                }
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Stars, then what is up to the next star, then the rest.
fn next_chunk(mut pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let mut star = false;
    while let [b'*', rest @ ..] = pattern {
        (star, pattern) = (true, rest);
    }
    let mut in_class = false;
    let mut i = 0;
    while let Some(byte) = pattern.get(i) {
        match byte {
            b'\\' if i + 1 < pattern.len() => i += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        i += 1;
    }
    let (chunk, rest) = pattern.split_at(i);
    (star, chunk, rest)
}

/// What is left of `text` when `chunk`, which has no star, matches its front.
/// All of `chunk` is read in any case, to find errors.
fn match_chunk<'a>(mut chunk: &[u8], text: &'a [u8]) -> Result<Option<&'a [u8]>, Error> {
    let mut text = Some(text);
    while let [operator, rest @ ..] = chunk {
        chunk = rest;
        let failed = text.is_none_or(<[u8]>::is_empty);
        if failed {
            text = None;
        }
        match operator {
            b'[' => {
                let (c, left) = text.map_or((None, None), |t| {
                    let (c, left) = decode(t);
                    (Some(c), Some(left))
                });
                let negated = chunk.strip_prefix(b"^");
                chunk = negated.unwrap_or(chunk);
                let mut matched = false;
                let mut first = true;
                loop {
                    if let Some(after) = chunk.strip_prefix(b"]")
                        && !first
                    {
                        chunk = after;
                        break;
                    }
                    let (low, after) = class_char(chunk)?;
                    let (high, after) = match after.strip_prefix(b"-") {
                        Some(after) => class_char(after)?,
                        None => (low, after),
                    };
                    chunk = after;
                    matched |= c.is_some_and(|c| (low..=high).contains(&c));
                    first = false;
                }
                text = if matched == negated.is_some() { None } else { left };
            }
            b'?' => {
                text = text.filter(|t| !t.starts_with(b"/")).map(|t| decode(t).1);
            }
            _ => {
                let literal = match (operator, chunk) {
                    (b'\\', [escaped, rest @ ..]) => {
                        chunk = rest;
                        escaped
                    }
                    (b'\\', []) => return Err(Error::Syntax),
                    _ => operator,
                };
                text = text.and_then(|t| t.strip_prefix(std::slice::from_ref(literal)));
            }
        }
    }
    Ok(text)
}

/// A character of a class, perhaps escaped; something has to follow.
fn class_char(chunk: &[u8]) -> Result<(char, &[u8]), Error> {
    let chunk = match chunk {
        [] | [b'-' | b']', ..] => return Err(Error::Syntax),
        [b'\\', rest @ ..] => rest,
        _ => chunk,
    };
    if chunk.is_empty() {
        return Err(Error::Syntax);
    }
    let (c, rest) = decode(chunk);
    if rest.is_empty() || (c == char::REPLACEMENT_CHARACTER && chunk.len() - rest.len() == 1) {
        return Err(Error::Syntax);
    }
    Ok((c, rest))
}

/// The first character of text that is not empty; a byte that is no part of
/// one counts as U+FFFD.
fn decode(bytes: &[u8]) -> (char, &[u8]) {
    let valid = bytes.get(..4).unwrap_or(bytes).utf8_chunks().next().map_or("", |c| c.valid());
    let c = valid.chars().next();
    let width = c.map_or(1, char::len_utf8);
    (c.unwrap_or(char::REPLACEMENT_CHARACTER), bytes.get(width..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_like_go() {
        for (pattern, name, want) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("a?b", "a/b", Some(false)),
            ("a*b", "a/b", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-x]", "-", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^bc", "a", None),
            ("a[", "a", None),
            ("a[", "ab", None),
            ("\\", "a", None),
            ("*x", "xxx", Some(true)),
            ("", "", Some(true)),
            ("", "a", Some(false)),
            ("**", "a", Some(true)),
        ] {
            assert_eq!(glob(pattern, name).ok(), want, "{pattern} {name}");
        }
    }
}
