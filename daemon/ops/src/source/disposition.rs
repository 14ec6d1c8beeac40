//! The file name in a `Content-Disposition` header, as Go's `mime` reads it.

/// The file name a header gives, if it gives one and is well-formed.
pub(super) fn filename(header: &str) -> Option<String> {
    let mut rest = header.split_once(';').map(|(_, rest)| rest)?;
    let (mut plain, mut extended) = (None, None);
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return extended.or(plain);
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        match name.trim().to_ascii_lowercase().as_str() {
            "filename" => plain = Some(value),
            "filename*" => extended = decode(&value),
            _ => {}
        }
        rest = after.trim_start();
        rest = match rest.strip_prefix(';') {
            Some(rest) => rest,
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        return (!token.is_empty() && !token.contains('"')).then(|| (token.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            // Windows paths come unescaped, so that only what must be escaped counts.
            '\\' => match chars.clone().next() {
                Some((_, next @ ('"' | '\\'))) => {
                    value.push(next);
                    chars.next();
                }
                _ => value.push('\\'),
            },
            '\r' | '\n' => return None,
            c => value.push(c),
        }
    }
    None
}

/// `charset'language'percent-encoded`, of the two charsets that Go knows.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.splitn(3, '\'');
    let (charset, _, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    if !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii") {
        return None;
    }
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (hex, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::filename;

    #[test]
    fn reads_what_servers_write() {
        for (header, name) in [
            ("attachment; filename=a.txt", Some("a.txt")),
            ("attachment; filename=\"a b; c.txt\"; x=y", Some("a b; c.txt")),
            ("inline;FILENAME=\"a\\\"b\"", Some("a\"b")),
            ("attachment; filename=\"C:\\dir\\a.txt\"", Some("C:\\dir\\a.txt")),
            ("attachment; filename=x; filename*=UTF-8''na%C3%AFve", Some("naïve")),
            ("attachment; filename*=latin1''x", None),
            ("attachment; filename*=utf-8''%zz", None),
            ("attachment", None),
            ("attachment; filename", None),
            ("attachment; filename=\"open", None),
            ("attachment; filename=", None),
            ("; ; ;", None),
        ] {
            assert_eq!(filename(header).as_deref(), name, "{header}");
        }
    }
}
