//! What is wrong with a Dockerfile, and where.

use std::fmt;

use base::failure::{Position, Range};
use base::{Classify, Kind};

/// Consecutive lines of a file, counted from one, both included.
///
/// Line zero occurs where the language's own errors say so, such as for a bad
/// directive in the first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lines {
    /// The first line.
    pub first: u32,
    /// The last line, never before the first.
    pub last: u32,
}

impl Lines {
    /// From `first` to `last`, or only `first` when `last` lies before it.
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last: last.max(first) }
    }

    /// As the wire has it: one range for each line, without characters.
    pub fn ranges(self) -> Vec<Range> {
        let line = |n: u32| {
            let at = Position { line: i32::try_from(n).unwrap_or(i32::MAX), character: 0 };
            Range { start: at, end: at }
        };
        (self.first..=self.last).map(line).collect()
    }
}

/// Something is wrong with a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The instruction's first line, where the text names it.
    pub line: Option<u32>,
    /// What is wrong.
    pub problem: Box<Problem>,
    /// Where, innermost first. Empty when nobody knew.
    pub locations: Vec<Lines>,
}

/// What is wrong, by the part of the language that says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is not made of instructions.
    #[error(transparent)]
    Parser(#[from] super::parser::Problem),
    /// A word cannot be expanded.
    #[error(transparent)]
    Shell(#[from] super::shell::Error),
    /// An instruction is not what it should be.
    #[error(transparent)]
    Instruction(#[from] super::instructions::Problem),
    /// A reference to a git repository.
    #[error(transparent)]
    Git(#[from] super::giturl::Problem),
    /// The configuration of the linter, or its outcome.
    #[error(transparent)]
    Lint(#[from] super::lint::Problem),
    /// A pattern of an ignore file.
    #[error(transparent)]
    Pattern(#[from] base::patterns::Error),
}

impl Error {
    /// Adds a place, outside of those that are known.
    #[must_use]
    pub fn at(mut self, lines: Lines) -> Self {
        self.locations.push(lines);
        self
    }

    /// Replaces the places, for text that is not in the file itself.
    #[must_use]
    pub fn only_at(mut self, lines: Lines) -> Self {
        self.locations = vec![lines];
        self
    }
}

impl<P: Into<Problem>> From<P> for Error {
    fn from(problem: P) -> Self {
        Self { line: None, problem: Box::new(problem.into()), locations: Vec::new() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "dockerfile parse error on line {line}: ")?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for Error {}

impl Classify for Error {
    /// Unknown: clients of the reference get no other for a broken Dockerfile.
    fn kind(&self) -> Kind {
        Kind::Unknown
    }
}
