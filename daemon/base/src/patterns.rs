//! Which paths a list of patterns means: `.dockerignore`, `--exclude`, include
//! and exclude lists of transfers; and the wildcards of `COPY`.
//!
//! Three languages, which are not the same:
//!
//! - [`Matcher`] is a list in which later patterns overrule earlier ones and
//!   `!` takes back. A pattern also matches everything below a directory it
//!   matches. `**` stands for any number of directories.
//! - [`glob`] is one pattern for one whole path; no `**`.
//! - [`read_ignore_file`] reads the file that holds such a list.
//!
//! Results are part of cache keys and decide which files are sent, so oddities
//! are kept: a pattern that begins with `**` and has no other wildcard matches
//! by suffix (`**x` matches `axx`), one that ends with `/**` by prefix.

mod expression;
mod glob;

use regex::Regex;

use crate::gopath;

pub use glob::glob;

/// A pattern is none, or a result belongs to another list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The pattern cannot be read.
    #[error("syntax error in pattern")]
    Syntax,
    /// `!` and nothing after it.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclusion,
    /// A [`MatchInfo`] of another matcher.
    #[error("wrong number of values in parentMatched")]
    WrongParent,
    /// A line of an ignore file is longer than 65535 bytes.
    #[error("bufio.Scanner: token too long")]
    LineTooLong,
}

/// A list of patterns.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    exclusions: bool,
}

/// One pattern of a [`Matcher`].
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    exclusion: bool,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Exact,
    /// Without the `**` at the end.
    Prefix,
    /// Without the `**` in front.
    Suffix,
    Regex(Regex),
    /// Looks like a pattern, but is no regular expression. Only an error when
    /// it is used.
    Broken,
}

/// Which patterns matched a directory, for its children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MatchInfo(Vec<bool>);

impl Matcher {
    /// Reads patterns. Empty ones are left out.
    ///
    /// # Errors
    /// When one cannot be read. Some errors only show when it is used.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        let mut matcher = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = gopath::clean(pattern);
            let (text, exclusion) = match cleaned.strip_prefix('!') {
                Some("") => return Err(Error::LoneExclusion),
                Some(text) => (text, true),
                None => (cleaned.as_str(), false),
            };
            glob(text, ".")?;
            matcher.exclusions |= exclusion;
            let how = expression::compile(text);
            matcher.patterns.push(Pattern { text: text.to_owned(), exclusion, how });
        }
        Ok(matcher)
    }

    /// Whether some pattern begins with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.exclusions
    }

    /// The patterns.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether the list means `path`: the last pattern that matches it or a
    /// directory above it does not begin with `!`.
    ///
    /// # Errors
    /// When a pattern that had to be looked at cannot be read.
    pub fn matches_or_parent(&self, path: &str) -> Result<bool, Error> {
        let mut matched = false;
        for pattern in &self.patterns {
            // One that could not change the result is not looked at.
            if pattern.exclusion != matched {
                continue;
            }
            if pattern.matches(path)? || pattern.matches_parent_of(path) {
                matched = !pattern.exclusion;
            }
        }
        Ok(matched)
    }

    /// The same for a walk down a tree, with what is known of the directory
    /// that contains `path`. With the default [`MatchInfo`] nothing is known,
    /// and all directories above are looked at.
    ///
    /// # Errors
    /// As [`matches_or_parent`](Self::matches_or_parent), and when `parent`
    /// belongs to another list.
    pub fn matches_with_parent(&self, path: &str, parent: &MatchInfo) -> Result<(bool, MatchInfo), Error> {
        let unknown = parent.0.is_empty();
        if !unknown && parent.0.len() != self.patterns.len() {
            return Err(Error::WrongParent);
        }
        let mut matched = false;
        let mut info = Vec::with_capacity(self.patterns.len());
        for (i, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.get(i).copied().unwrap_or_default();
            let matches = if inherited {
                true
            } else if pattern.exclusion != matched {
                info.push(false);
                continue;
            } else {
                pattern.matches(path)? || (unknown && pattern.matches_parent_of(path))
            };
            info.push(matches);
            if matches {
                matched = !pattern.exclusion;
            }
        }
        Ok((matched, MatchInfo(info)))
    }
}

impl Pattern {
    /// The pattern, cleaned, without `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Begins with `!`.
    pub fn is_exclusion(&self) -> bool {
        self.exclusion
    }

    fn matches(&self, path: &str) -> Result<bool, Error> {
        Ok(match &self.how {
            How::Exact => path == self.text,
            How::Prefix => path.starts_with(self.text.strip_suffix("**").unwrap_or(&self.text)),
            How::Suffix => {
                let suffix = self.text.strip_prefix("**").unwrap_or(&self.text);
                // `**/x` also means `x`.
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            How::Regex(regex) => regex.is_match(path),
            How::Broken => return Err(Error::Syntax),
        })
    }

    fn matches_parent_of(&self, path: &str) -> bool {
        let parent = gopath::dir(path);
        if parent == "." {
            return false;
        }
        let ends = parent.match_indices('/').map(|(at, _)| at).chain([parent.len()]);
        ends.into_iter().any(|end| self.matches(&parent[..end]).unwrap_or_default())
    }
}

/// The patterns of a `.dockerignore`: without comments, white space and a
/// leading slash, cleaned.
///
/// # Errors
/// When a line is too long.
pub fn read_ignore_file(data: &[u8]) -> Result<Vec<String>, Error> {
    const MAX_LINE: usize = 65535;
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let mut patterns = Vec::new();
    for line in data.split(|b| *b == b'\n') {
        if line.len() > MAX_LINE {
            return Err(Error::LineTooLong);
        }
        let line = String::from_utf8_lossy(line);
        let pattern = line.trim();
        if line.starts_with('#') || pattern.is_empty() {
            continue;
        }
        let (exclusion, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", pattern),
        };
        let cleaned = if pattern.is_empty() { String::new() } else { gopath::clean(pattern) };
        let relative = match cleaned.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &cleaned,
        };
        patterns.push(format!("{exclusion}{relative}"));
    }
    Ok(patterns)
}

#[cfg(test)]
mod tests;
