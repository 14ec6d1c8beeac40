//! Filters in containerd's syntax, as clients send them to choose records.
//!
//! A filter is selectors joined by commas, all of which must match; of several
//! filters one has to match: `type==regular,inuse`. A selector is a path of
//! fields joined by dots, alone (it is there) or compared: `==`, `!=` (which also
//! matches what lacks the field), `~=` (a regular expression). Fields and values
//! may be quoted like Go strings; expressions also between slashes or bars.

use regex::Regex;

/// Several filters, of which one has to match; none match everything.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// The text is not a filter.
#[derive(Debug, Clone, thiserror::Error)]
#[error("invalid filter {text:?}: parse error at {at}: {reason}")]
pub struct ParseError {
    text: String,
    reason: String,
    at: usize,
}

impl crate::Classify for ParseError {
    fn kind(&self) -> crate::Kind {
        crate::Kind::InvalidArgument
    }
}

impl Filters {
    /// Reads filters.
    ///
    /// # Errors
    /// The first thing that cannot be read, and where.
    pub fn parse<S: AsRef<str>>(filters: impl IntoIterator<Item = S>) -> Result<Self, ParseError> {
        filters
            .into_iter()
            .map(|text| Parser { text: text.as_ref(), at: 0 }.filter())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether they match what `field` tells: the value at a path of names, if
    /// it is there.
    pub fn matches(&self, field: impl Fn(&[&str]) -> Option<String>) -> bool {
        let holds = |selector: &Selector| {
            let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
            let found = field(&path);
            match &selector.test {
                Test::Present => found.is_some(),
                Test::Equal(wanted) => found.as_ref() == Some(wanted),
                Test::NotEqual(wanted) => found.unwrap_or_default() != *wanted,
                Test::Matches(regex) => regex.is_match(&found.unwrap_or_default()),
            }
        };
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(holds))
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn bad(&self, reason: &str) -> ParseError {
        ParseError { text: self.text.chars().take(200).collect(), reason: reason.to_owned(), at: self.at }
    }

    fn take(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        if there {
            self.at += what.len();
        }
        there
    }

    fn filter(mut self) -> Result<Vec<Selector>, ParseError> {
        if self.text.is_empty() {
            return Ok(Vec::new());
        }
        let mut selectors = vec![self.selector()?];
        while self.take(",") {
            selectors.push(self.selector()?);
        }
        if !self.rest().is_empty() {
            return Err(self.bad("unexpected input"));
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, ParseError> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        let test = if self.rest().is_empty() || self.rest().starts_with(',') {
            Test::Present
        } else if self.take("==") {
            Test::Equal(self.value(false)?)
        } else if self.take("!=") {
            Test::NotEqual(self.value(false)?)
        } else if self.take("~=") {
            let text = self.value(true)?;
            Test::Matches(Regex::new(&text).map_err(|e| self.bad(&e.to_string()))?)
        } else {
            return Err(self.bad("expected an operator (\"==\"|\"!=\"|\"~=\")"));
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, ParseError> {
        if self.rest().starts_with(['"', '\'']) {
            return self.quoted();
        }
        let end =
            self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        let name = self.rest().get(..end).unwrap_or_default().to_owned();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.bad("expected field or quoted"));
        }
        self.at += end;
        Ok(name)
    }

    fn value(&mut self, expression: bool) -> Result<String, ParseError> {
        let quotes: &[char] = if expression { &['"', '\'', '/', '|'] } else { &['"', '\''] };
        if self.rest().starts_with(quotes) {
            return self.quoted();
        }
        let end = self.rest().find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest().len());
        if end == 0 {
            return Err(self.bad("expected value or quoted"));
        }
        let value = self.rest().get(..end).unwrap_or_default().to_owned();
        self.at += end;
        Ok(value)
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        let mut chars = self.rest().char_indices();
        let Some((_, quote)) = chars.next() else { return Err(self.bad("expected a quote")) };
        let raw = matches!(quote, '/' | '|');
        let (mut out, mut end) = (String::new(), None);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                end = Some(at + c.len_utf8());
                break;
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some((_, c)) if c == quote || (c == '\\' && !raw) => out.push(c),
                // An expression keeps its own escapes.
                Some((_, c)) if raw => out.extend(['\\', c]),
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                _ => return Err(self.bad("invalid escape")),
            }
        }
        match end {
            Some(end) => {
                self.at += end;
                Ok(out)
            }
            None => Err(self.bad("quoted literal not terminated")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        Filters::parse(filters).unwrap().matches(|path| match path.join("/").as_str() {
            "labels/a.b" => Some("x, y".into()),
            "id" => Some("abc".into()),
            "type" => Some("source.local".into()),
            "mutable" => Some(String::new()),
            "description" => Some("a, \"b\"".into()),
            _ => None,
        })
    }

    #[test]
    fn selects_as_containerd_does() {
        assert!(matches(&[]));
        assert!(matches(&[""]));
        assert!(matches(&["type==source.local"]));
        assert!(matches(&["type==regular", "type==source.local"]));
        assert!(!matches(&["type==source.local,inuse"]));
        assert!(matches(&["mutable,id!=x"]));
        assert!(matches(&["id~=^a.c$"]));
        assert!(matches(&["id~=/^a|z/"]));
        assert!(matches(&["inuse!=yes"]));
        assert!(matches(&[r#"description=="a, \"b\"""#]));
        assert!(!matches(&["id.x==b"]));
        assert!(matches(&[r#"labels."a.b"=="x, y""#]));
        assert!(!matches(&["nothing~=."]));
    }

    #[test]
    fn refuses_what_does_not_parse() {
        for bad in
            ["=", "id=x", "id==", "id==a b", ",", "id,", "id~=(", "1d", "id==\"x", "id\u{e9}==x", "\"a"]
        {
            assert!(Filters::parse([bad]).is_err(), "{bad}");
        }
    }
}
