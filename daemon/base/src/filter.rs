//! Filters in containerd's syntax, as clients send them to choose records.
//!
//! `type==regular,inuse` matches what has both; of several filters one has to
//! match. A selector without an operator asks whether the field is there. `~=`
//! takes a regular expression, `!=` also matches what lacks the field.

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
#[error("filter {text:?}: {reason} at character {at}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
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
            .map(|text| Parser::new(text.as_ref()).filter())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether they match what `field` tells: the value at a path of names, if
    /// it is there.
    pub fn matches(&self, field: impl Fn(&[String]) -> Option<String>) -> bool {
        let one = |selector: &Selector| match (&selector.test, field(&selector.path)) {
            (Test::Present, value) => value.is_some(),
            (Test::Equal(wanted), value) => value.as_ref() == Some(wanted),
            (Test::NotEqual(unwanted), value) => value.as_ref() != Some(unwanted),
            (Test::Matches(regex), value) => value.is_some_and(|v| regex.is_match(&v)),
        };
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(one))
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn fail<T>(&self, reason: &'static str) -> Result<T, ParseError> {
        Err(ParseError { text: self.text.chars().take(200).collect(), reason, at: self.at })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn filter(mut self) -> Result<Vec<Selector>, ParseError> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            if self.rest().is_empty() {
                return Ok(selectors);
            }
            if !self.eat(",") {
                return self.fail("expected a comma");
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, ParseError> {
        let mut path = vec![self.name()?];
        while self.eat(".") {
            path.push(self.name()?);
        }
        let test = if self.eat("==") {
            Test::Equal(self.value()?)
        } else if self.eat("!=") {
            Test::NotEqual(self.value()?)
        } else if self.eat("~=") {
            match Regex::new(&self.value()?) {
                Ok(regex) => Test::Matches(regex),
                Err(_) => return self.fail("not a regular expression"),
            }
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn name(&mut self) -> Result<String, ParseError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let end = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'));
        let name = &self.rest()[..end.unwrap_or(self.rest().len())];
        if name.is_empty() {
            return self.fail("expected a field");
        }
        self.at += name.len();
        Ok(name.to_owned())
    }

    fn value(&mut self) -> Result<String, ParseError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let end = self.rest().find(',').unwrap_or(self.rest().len());
        let value = &self.rest()[..end];
        self.at += end;
        Ok(value.to_owned())
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        self.at += 1;
        let mut value = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(value);
                }
                '\\' => match chars.next() {
                    Some((_, c)) => value.push(c),
                    None => break,
                },
                c => value.push(c),
            }
        }
        self.fail("unclosed quotation mark")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let record = |path: &[String]| match path.join("/").as_str() {
            "id" => Some("abc".to_owned()),
            "labels/a.b" => Some("x, y".to_owned()),
            "inuse" => Some(String::new()),
            _ => None,
        };
        Filters::parse(filters).unwrap().matches(record)
    }

    #[test]
    fn chooses() {
        for yes in [
            &[][..],
            &["id==abc"],
            &["id==x", "id~=^a.c$"],
            &["id!=x,inuse"],
            &["labels.\"a.b\"==\"x, y\""],
            &[""],
        ] {
            assert!(matches(yes), "{yes:?}");
        }
        for no in [&["id==x"][..], &["mutable"], &["id==abc,mutable"], &["nothing~=."]] {
            assert!(!matches(no), "{no:?}");
        }
    }

    #[test]
    fn says_where_it_is_wrong() {
        for bad in ["==x", "id==abc,", "id=abc", "a~=(", "\"a"] {
            assert!(Filters::parse([bad]).is_err(), "{bad}");
        }
    }
}
