//! One line of comma separated values, as `--mount` and `--device` have it.

/// The line is not comma separated values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing in it.
    #[error("EOF")]
    Empty,
    /// A `"` within a field that does not begin with one.
    #[error("parse error on line 1, column {0}: bare \" in non-quoted-field")]
    BareQuote(usize),
    /// A quoted field goes on after its end, or has none.
    #[error("parse error on line 1, column {0}: extraneous or missing \" in quoted-field")]
    Quote(usize),
}

/// The fields of `line`. A trailing newline is allowed; `""` within a quoted
/// field is one `"`.
///
/// # Errors
/// With the column, in bytes from one.
pub fn fields(line: &str) -> Result<Vec<String>, Error> {
    let mut rest = line.strip_suffix('\n').map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
    let whole = rest.len();
    if rest.is_empty() {
        return Err(Error::Empty);
    }
    let mut out = Vec::new();
    loop {
        let column = |rest: &str| whole - rest.len() + 1;
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, next) = match rest.split_once(',') {
                Some((field, next)) => (field, Some(next)),
                None => (rest, None),
            };
            if let Some(at) = field.find('"') {
                return Err(Error::BareQuote(column(rest) + at));
            }
            out.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(out),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let Some((piece, after)) = rest.split_once('"') else {
                return Err(Error::Quote(column(rest)));
            };
            field.push_str(piece);
            if let Some(next) = after.strip_prefix('"') {
                field.push('"');
                rest = next;
            } else if let Some(next) = after.strip_prefix(',') {
                out.push(field);
                rest = next;
                break;
            } else if after.is_empty() {
                out.push(field);
                return Ok(out);
            } else {
                return Err(Error::Quote(column(after) - 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields() {
        let f = |s: &str| fields(s).map(|v| v.join("|")).map_err(|e| e.to_string());
        assert_eq!(f("a,b=c,"), Ok("a|b=c|".into()));
        assert_eq!(f("a,\"b,c\",d\n"), Ok("a|b,c|d".into()));
        assert_eq!(f("\"a\"\"b\"\r\n"), Ok("a\"b".into()));
        assert_eq!(f(""), Err("EOF".into()));
        assert_eq!(f("a,b\"c"), Err("parse error on line 1, column 4: bare \" in non-quoted-field".into()));
        assert_eq!(
            f("\"a\"b"),
            Err("parse error on line 1, column 3: extraneous or missing \" in quoted-field".into())
        );
        assert_eq!(
            f("\"ab"),
            Err("parse error on line 1, column 2: extraneous or missing \" in quoted-field".into())
        );
    }
}
