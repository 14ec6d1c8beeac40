//! Quotes, escapes and `$variables` in one word of a Dockerfile, much as a
//! POSIX shell reads them.
//!
//! Supported: `$v ${v} ${v-x} ${v:-x} ${v+x} ${v:+x} ${v?e} ${v:?e} ${v#p}
//! ${v##p} ${v%p} ${v%%p} ${v/p/r} ${v//p/r}`. Patterns know `*`, `?` and `\`.

mod lexer;
mod pattern;

use std::borrow::Cow;
use std::collections::BTreeSet;

/// Variables and their values.
pub trait Env {
    /// The value, or `None` when it is not set.
    fn get(&self, name: &str) -> Option<Cow<'_, str>>;

    /// The names, in the order in which they were set.
    fn names(&self) -> Vec<&str>;
}

/// How to read words. A small value: copy it to change an option.
#[derive(Debug, Clone, Copy)]
pub struct Lex {
    /// The character that takes away the meaning of the next.
    pub escape: char,
    /// Keep the quotes.
    pub raw_quotes: bool,
    /// Keep the escape characters.
    pub raw_escapes: bool,
    /// Quotes are ordinary characters.
    pub ignore_quotes: bool,
    /// Leave what names a variable that is not set as it is written.
    pub keep_unset: bool,
}

/// A word after expansion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The whole text.
    pub text: String,
    /// The text split at unquoted white space.
    pub words: Vec<String>,
    /// Variables that were asked for and set.
    pub matched: BTreeSet<String>,
    /// Variables that were asked for and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {reason}", base::gotext::quote(.word))]
pub struct Error {
    /// The word as it was given.
    pub word: String,
    /// Why.
    pub reason: Reason,
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The word ended before this character.
    #[error("unexpected end of statement while looking for matching {0}")]
    Unclosed(char),
    /// A `'` without its partner.
    #[error("unexpected end of statement while looking for matching single-quote")]
    UnclosedSingleQuote,
    /// A `"` without its partner.
    #[error("unexpected end of statement while looking for matching double-quote")]
    UnclosedDoubleQuote,
    /// `${` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${v/` without a second `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// Such as `${}`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// Such as `${v^}`.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${v?message}` of a variable that is not set or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What was asked to be said.
        message: String,
    },
    /// The pattern of `#`, `%` or `/` is none.
    #[error("invalid pattern ({pattern}) in substitution: {why}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// More `${` inside each other than anybody means.
    #[error("substitutions are nested more than {0} deep")]
    TooDeep(usize),
    /// The result would be longer than any build can use.
    #[error("expansion is longer than {MAX_LENGTH} bytes")]
    TooLong,
}

/// The bytes of the longest expansion: no larger message can be sent. Lines
/// such as `ENV A=$A$A` would otherwise double their way through all memory.
pub const MAX_LENGTH: usize = 16 << 20;

impl Lex {
    /// Reads words with this escape character, `\` or `` ` ``.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// Expands `word`, noting which variables were looked up.
    ///
    /// # Errors
    /// When quotes or braces do not match, a substitution is not one of the
    /// supported, or a `?` demands a variable.
    pub fn expand(&self, word: &str, env: &dyn Env) -> Result<Expanded, Error> {
        lexer::expand(self, word, env)
    }

    /// Expands `word`, then splits it at unquoted white space.
    ///
    /// # Errors
    /// As [`expand`](Self::expand).
    pub fn words(&self, word: &str, env: &dyn Env) -> Result<Vec<String>, Error> {
        Ok(self.expand(word, env)?.words)
    }
}

/// No variables at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEnv;

impl Env for NoEnv {
    fn get(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// `NAME=value` pairs; of equal names the last counts.
impl Env for Vec<(String, String)> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str().into())
    }

    fn names(&self) -> Vec<&str> {
        self.iter().map(|(n, _)| n.as_str()).collect()
    }
}

#[cfg(test)]
mod tests;
