//! One pass over a word.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use super::{Env, Error, Expanded, Lex, MAX_LENGTH, Reason, pattern};

/// `${` inside each other.
const MAX_DEPTH: usize = 200;

pub(super) fn expand(lex: &Lex, source: &str, env: &dyn Env) -> Result<Expanded, Error> {
    // A byte order mark in front is no part of the text.
    let text = source.strip_prefix('\u{feff}').unwrap_or(source);
    let mut word = Word {
        lex,
        chars: text.chars().peekable(),
        env,
        buffer: String::new(),
        raw_escapes: lex.raw_escapes,
        depth: 0,
        seen: Expanded::default(),
    };
    match word.until(None, lex.raw_escapes) {
        Ok((text, words)) => Ok(Expanded { text, words, ..word.seen }),
        Err(reason) => Err(Error { word: source.to_owned(), reason }),
    }
}

struct Word<'a> {
    lex: &'a Lex,
    chars: Peekable<Chars<'a>>,
    env: &'a dyn Env,
    /// The word that is being split off. There is only one, also for what is
    /// inside `${…}`: that clears it, and so the split forgets what came
    /// before. Strange, but what the language does.
    buffer: String,
    raw_escapes: bool,
    depth: usize,
    /// Only the two sets are used.
    seen: Expanded,
}

/// Words split off so far.
#[derive(Default)]
struct Split {
    words: Vec<String>,
    inside: bool,
}

impl Split {
    fn char(&mut self, buffer: &mut String, c: char) {
        if !c.is_whitespace() {
            self.raw(buffer, c);
        } else if self.inside && !buffer.is_empty() {
            self.words.push(std::mem::take(buffer));
            self.inside = false;
        }
    }

    fn raw(&mut self, buffer: &mut String, c: char) {
        buffer.push(c);
        self.inside = true;
    }

    fn finish(mut self, buffer: &mut String) -> Vec<String> {
        if !buffer.is_empty() {
            self.words.push(std::mem::take(buffer));
        }
        self.words
    }
}

impl Word<'_> {
    /// Reads up to `stop`, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), Reason> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.read(stop);
        self.raw_escapes = before;
        result
    }

    fn read(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), Reason> {
        let mut result = String::new();
        let mut split = Split::default();
        self.buffer.clear();
        while let Some(&c) = self.chars.peek() {
            if stop == Some(c) {
                self.chars.next();
                return Ok((result, split.finish(&mut self.buffer)));
            }
            let special = match c {
                '$' => Some(self.dollar()?),
                '<' => Some(self.heredoc()),
                '\'' if !self.lex.ignore_quotes => Some(self.single_quoted()?),
                '"' if !self.lex.ignore_quotes => Some(self.double_quoted()?),
                _ => None,
            };
            if let Some(text) = special {
                if result.len().saturating_add(text.len()) > MAX_LENGTH {
                    return Err(Reason::TooLong);
                }
                result.push_str(&text);
                if c == '$' {
                    text.chars().for_each(|c| split.char(&mut self.buffer, c));
                } else {
                    self.buffer.push_str(&text);
                    split.inside = true;
                }
                continue;
            }
            self.chars.next();
            if c != self.lex.escape {
                split.char(&mut self.buffer, c);
                result.push(c);
                continue;
            }
            if self.raw_escapes {
                split.raw(&mut self.buffer, c);
                result.push(c);
            }
            let Some(escaped) = self.chars.next() else { break };
            split.raw(&mut self.buffer, escaped);
            result.push(escaped);
        }
        match stop {
            Some(stop) => Err(Reason::Unclosed(stop)),
            None => Ok((result, split.finish(&mut self.buffer))),
        }
    }

    fn single_quoted(&mut self) -> Result<String, Reason> {
        let mut result = String::new();
        self.chars.next();
        if self.lex.raw_quotes {
            result.push('\'');
        }
        loop {
            match self.chars.next() {
                None => return Err(Reason::UnclosedSingleQuote),
                Some('\'') => break,
                Some(c) => result.push(c),
            }
        }
        if self.lex.raw_quotes {
            result.push('\'');
        }
        Ok(result)
    }

    fn double_quoted(&mut self) -> Result<String, Reason> {
        let mut result = String::new();
        self.chars.next();
        if self.lex.raw_quotes {
            result.push('"');
        }
        loop {
            match self.chars.peek() {
                None => return Err(Reason::UnclosedDoubleQuote),
                Some('"') => break,
                Some('$') => {
                    let value = self.dollar()?;
                    if result.len().saturating_add(value.len()) > MAX_LENGTH {
                        return Err(Reason::TooLong);
                    }
                    result.push_str(&value);
                    continue;
                }
                Some(_) => {}
            }
            let Some(mut c) = self.chars.next() else { continue };
            if c == self.lex.escape {
                if self.raw_escapes {
                    result.push(c);
                }
                match self.chars.peek() {
                    None => continue,
                    Some(&next) if next == '"' || next == '$' || next == self.lex.escape => {
                        self.chars.next();
                        c = next;
                    }
                    Some(_) => {}
                }
            }
            result.push(c);
        }
        self.chars.next();
        if self.lex.raw_quotes {
            result.push('"');
        }
        Ok(result)
    }

    /// `<<` and the white space after it belong to the word that follows.
    fn heredoc(&mut self) -> String {
        self.chars.next();
        if self.chars.next_if_eq(&'<').is_none() {
            return "<".to_owned();
        }
        let mut result = "<<".to_owned();
        while let Some(c) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
            result.push(c);
        }
        result
    }

    fn dollar(&mut self) -> Result<String, Reason> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.get(&name) {
                None if self.lex.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        if self.depth >= MAX_DEPTH {
            return Err(Reason::TooDeep(MAX_DEPTH));
        }
        self.depth += 1;
        let result = self.braced();
        self.depth -= 1;
        result
    }

    /// What follows `${`.
    fn braced(&mut self) -> Result<String, Reason> {
        match self.chars.peek() {
            None => return Err(Reason::MissingBrace),
            Some('{' | '}' | ':') => return Err(Reason::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            '}' => Ok(match self.get(&name) {
                None if self.lex.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            ':' => {
                let operator = self.next();
                self.modified(&name, operator, true)
            }
            operator @ ('+' | '-' | '?' | '#' | '%') => self.modified(&name, operator, false),
            '/' => self.replaced(&name),
            other => Err(Reason::UnsupportedModifier(other.to_string())),
        }
    }

    /// What follows `${name-` and its relatives; with `colon`, empty counts as
    /// unset.
    fn modified(&mut self, name: &str, operator: char, colon: bool) -> Result<String, Reason> {
        let written = if colon { format!(":{operator}") } else { operator.to_string() };
        let trims = matches!(operator, '#' | '%');
        if colon && trims {
            return Err(Reason::UnsupportedModifier(written));
        }
        let word = match self.until(Some('}'), trims) {
            Ok((word, _)) => word,
            Err(limit @ (Reason::TooDeep(_) | Reason::TooLong)) => return Err(limit),
            Err(_) if self.chars.peek().is_none() => return Err(Reason::MissingBrace),
            Err(other) => return Err(other),
        };
        let value = self.get(name);
        if value.is_none() && self.lex.keep_unset {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let absent = value.as_ref().is_none_or(|v| colon && v.is_empty());
        let required = |state: &str| Reason::Required {
            name: name.to_owned(),
            message: if word.is_empty() { format!("is not allowed to be {state}") } else { word.clone() },
        };
        match operator {
            '-' if absent => Ok(word),
            '+' => Ok(if absent { String::new() } else { word }),
            '?' if value.is_none() => Err(required("unset")),
            '?' if absent => Err(required("empty")),
            '-' | '?' => Ok(value.unwrap_or_default()),
            '#' | '%' => {
                let (word, greedy) = match word.strip_prefix(operator) {
                    Some(rest) => (rest, true),
                    None => (word.as_str(), false),
                };
                let value = value.unwrap_or_default();
                if operator == '%' {
                    pattern::trim_suffix(word, &value, greedy)
                } else {
                    pattern::trim_prefix(word, &value, greedy)
                }
            }
            _ => Err(Reason::UnsupportedModifier(written)),
        }
    }

    /// What follows `${name/`.
    fn replaced(&mut self, name: &str) -> Result<String, Reason> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let mut part = |stop: char, missing: Reason| match self.until(Some(stop), true) {
            Ok((part, _)) => Ok(part),
            Err(limit @ (Reason::TooDeep(_) | Reason::TooLong)) => Err(limit),
            Err(_) if self.chars.peek().is_none() => Err(missing),
            Err(other) => Err(other),
        };
        let pattern = part('/', Reason::MissingSlash)?;
        let replacement = part('}', Reason::MissingBrace)?;
        match self.get(name) {
            None if self.lex.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value => pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all),
        }
    }

    /// Letters, digits and `_`; or digits only, when it begins with one; or one
    /// special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        if self.chars.peek().is_some_and(|c| c.is_numeric()) {
            while let Some(c) = self.chars.next_if(|c| c.is_numeric()) {
                name.push(c);
            }
            return name;
        }
        if let Some(c) = self.chars.next_if(|c| matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!')) {
            name.push(c);
            return name;
        }
        while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    /// The next character; past the end the one that stands for none.
    fn next(&mut self) -> char {
        self.chars.next().unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn get(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(name).map(Cow::into_owned);
        let seen = if value.is_some() { &mut self.seen.matched } else { &mut self.seen.unmatched };
        seen.insert(name.to_owned());
        value
    }
}
