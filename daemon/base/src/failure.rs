//! The one error that travels through the engine.
//!
//! Libraries return their own typed errors. Where such an error crosses into
//! the solver it becomes a [`Failure`]: cheap to clone (several builds may wait
//! for the same step), with a kind for the wire, the chain of messages for
//! people, and details that clients look at.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::Digest;

/// What sort of error it is: the canonical codes of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// An error that knows its kind.
pub trait Classify: Error + Send + Sync + 'static {
    /// The kind of this error.
    fn kind(&self) -> Kind;

    /// Advice for the person, if there is any.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// A place in a text, lines from one and characters from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Line, from one.
    pub line: i32,
    /// Character, from zero.
    pub character: i32,
}

/// From where to where, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First position.
    pub start: Position,
    /// Last position.
    pub end: Position,
}

/// A file somebody wrote, and the part of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceExcerpt {
    /// The file's name.
    pub filename: String,
    /// Its language, such as `Dockerfile`.
    pub language: String,
    /// The whole file.
    pub data: Vec<u8>,
    /// The serialised LLB definition it was loaded with, if known.
    pub definition: Option<Vec<u8>>,
    /// The places.
    pub ranges: Vec<Range>,
}

impl SourceExcerpt {
    /// The lines that are meant, marked, with a few around them, under the
    /// file's name. Empty when none of them is in the file.
    pub fn show(&self) -> String {
        let ends = |r: &Range| (r.start.line, r.end.line.max(r.start.line));
        let text = String::from_utf8_lossy(&self.data);
        let lines: Vec<&str> = text.split('\n').collect();
        let count = i32::try_from(lines.len()).unwrap_or(i32::MAX);
        let first = self.ranges.iter().map(|r| r.start.line).min().unwrap_or_default();
        let last = self.ranges.iter().map(|r| ends(r).1).max().unwrap_or_default().min(count);
        if first < 1 || first > count {
            return String::new();
        }
        let (mut from, mut to, mut padded) = (first, last, 0);
        let wanted = if from == to { 4 } else { 2 };
        while padded < wanted {
            if from > 1 {
                from -= 1;
                padded += 1;
            }
            if to != count {
                to += 1;
                padded += 1;
            }
            padded += 1;
        }
        let ruler = "--------------------\n";
        let mut out = format!("{}:{first}\n{ruler}", self.filename);
        for (number, line) in (1..).zip(lines).skip_while(|(n, _)| *n < from).take_while(|(n, _)| *n <= to) {
            let meant = self.ranges.iter().map(ends).any(|(a, b)| (a..=b).contains(&number));
            let mark = if meant { ">>>" } else { "   " };
            out.push_str(&format!(" {number:3} | {mark} {line}\n"));
        }
        out + ruler
    }
}

/// Which part of an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A file action, by index.
    File(i64),
    /// The content digest of an input, by index.
    Content(i64),
}

/// Something a build used that cannot be told in full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IncompleteMaterial {
    /// The digest of the operation that used it.
    pub op: String,
    /// What ran, or the name of a directory of the client.
    pub name: String,
    /// The method of a request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Where a request went.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// Where it was sent from there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub final_uri: String,
    /// Why, in a word.
    pub reason: String,
}

/// Something clients read out of an error.
#[derive(Debug, Clone, PartialEq)]
pub enum Detail {
    /// The vertex that failed.
    Vertex(Digest),
    /// Where in a source file.
    Source(SourceExcerpt),
    /// The exit status of the process.
    Exit {
        /// As the shell would show it.
        code: u32,
    },
    /// The frontend that failed.
    Frontend {
        /// Its name.
        name: String,
        /// Its image.
        source: String,
    },
    /// A capability the frontend lacks.
    FrontendCap(String),
    /// A request the frontend does not know.
    Subrequest(String),
    /// What provenance that has to be complete could not tell.
    Materials(Vec<IncompleteMaterial>),
    /// What the client that was asked says of a source it denied.
    Denied(Vec<String>),
    /// The operation, and the results it had when it failed.
    Solve {
        /// Ids under which the inputs can be mounted.
        inputs: Vec<String>,
        /// Ids under which the mounts, as left, can be mounted.
        mounts: Vec<String>,
        /// The serialised LLB operation.
        op: Vec<u8>,
        /// The part that failed.
        subject: Option<Subject>,
        /// The vertex's description.
        description: Vec<(String, String)>,
    },
}

/// An error on its way to the people who wait for the result.
#[derive(Clone)]
pub struct Failure(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    /// Outermost first.
    context: Vec<String>,
    /// The text of the error itself and its sources, joined with `: `.
    message: String,
    hint: Option<String>,
    details: Vec<Detail>,
    kept: Option<Arc<dyn Any + Send + Sync>>,
}

impl Failure {
    /// An error that begins here.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            context: Vec::new(),
            message: message.into(),
            hint: None,
            details: Vec::new(),
            kept: None,
        }))
    }

    /// Something is wrong with what was asked.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// Something is wrong with this program or its machine.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The work was given up, for the reason in `message`.
    pub fn canceled(message: impl Into<String>) -> Self {
        Self::new(Kind::Canceled, message)
    }

    /// Wraps an error of unknown kind, with its chain of sources.
    pub fn other(error: &(dyn Error + 'static)) -> Self {
        Self::new(Kind::Unknown, chain(error))
    }

    /// Says what was being done: verb and object.
    #[must_use]
    pub fn context(self, what: impl Into<String>) -> Self {
        self.edit(|inner| inner.context.insert(0, what.into()))
    }

    /// Attaches a detail, unless one of its sort is there: the innermost wins.
    #[must_use]
    pub fn with(self, detail: Detail) -> Self {
        let same = |d: &Detail| std::mem::discriminant(d) == std::mem::discriminant(&detail);
        if self.0.details.iter().any(same) {
            return self;
        }
        self.edit(|inner| inner.details.push(detail))
    }

    /// Attaches a detail beside those of its sort, such as another place.
    #[must_use]
    pub fn also(self, detail: Detail) -> Self {
        self.edit(|inner| inner.details.push(detail))
    }

    /// Changes details in place, such as one that was only partly known where
    /// the error began.
    #[must_use]
    pub fn amended(self, change: impl FnMut(&mut Detail)) -> Self {
        self.edit(|inner| inner.details.iter_mut().for_each(change))
    }

    /// Keeps `value` alive as long as the error, unless it keeps something:
    /// what somebody may want to look at who has to find out what went wrong.
    #[must_use]
    pub fn keeping(self, value: impl Any + Send + Sync) -> Self {
        self.edit(|inner| {
            inner.kept.get_or_insert_with(|| Arc::new(value));
        })
    }

    /// What is kept alive, if it is a `T`.
    pub fn kept<T: Any>(&self) -> Option<&T> {
        self.0.kept.as_deref()?.downcast_ref()
    }

    /// Adds to the end of the message, such as a suggestion.
    #[must_use]
    pub fn suffixed(self, text: &str) -> Self {
        if text.is_empty() { self } else { self.edit(|inner| inner.message.push_str(text)) }
    }

    /// Attaches advice, unless there is some.
    #[must_use]
    pub fn hinted(self, hint: impl Into<String>) -> Self {
        self.edit(|inner| {
            inner.hint.get_or_insert_with(|| hint.into());
        })
    }

    /// The same error as another kind.
    #[must_use]
    pub fn of_kind(self, kind: Kind) -> Self {
        self.edit(|inner| inner.kind = kind)
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The work was given up, rather than failed.
    pub fn is_canceled(&self) -> bool {
        self.0.kind == Kind::Canceled
    }

    /// The details, in the order in which they were attached.
    pub fn details(&self) -> &[Detail] {
        &self.0.details
    }

    /// Advice for the person.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let line = e.to_string();
        // Some errors print their source themselves.
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        next = e.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in &self.0.context {
            write!(f, "{c}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

// `Failure` itself is not a `std::error::Error`, so that every error which
// knows its kind can become one with `?`.
impl<E: Classify> From<E> for Failure {
    fn from(error: E) -> Self {
        let failure = Self::new(error.kind(), chain(&error));
        match error.hint() {
            Some(hint) => failure.hinted(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read {path}")]
    struct Outer {
        path: String,
        #[source]
        source: std::io::Error,
    }

    impl Classify for Outer {
        fn kind(&self) -> Kind {
            Kind::NotFound
        }
    }

    #[test]
    fn keeps_the_chain_and_the_kind() {
        let source = std::io::Error::other("no such file");
        let failure = Failure::from(Outer { path: "/x".into(), source }).context("load config");
        assert_eq!(failure.to_string(), "load config: read /x: no such file");
        assert_eq!(failure.kind(), Kind::NotFound);
    }

    #[test]
    fn shows_the_place() {
        let range = |a, b| Range {
            start: Position { line: a, character: 0 },
            end: Position { line: b, character: 0 },
        };
        let show = |ranges: &[Range]| {
            SourceExcerpt {
                filename: "f".into(),
                data: b"1\n2\n3\n4\n5\n6\n7".to_vec(),
                ranges: ranges.to_vec(),
                ..SourceExcerpt::default()
            }
            .show()
        };
        let rule = "--------------------\n";
        assert_eq!(
            show(&[range(4, 0)]),
            format!(
                "f:4\n{rule}   2 |     2\n   3 |     3\n   4 | >>> 4\n   5 |     5\n   6 |     6\n{rule}"
            )
        );
        assert_eq!(
            show(&[range(2, 2), range(3, 3)]),
            format!("f:2\n{rule}   1 |     1\n   2 | >>> 2\n   3 | >>> 3\n   4 |     4\n{rule}")
        );
        assert_eq!(show(&[range(9, 9)]), "");
        assert_eq!(show(&[range(0, 1)]), "");
        assert_eq!(show(&[]), "");
    }

    #[test]
    fn the_innermost_detail_of_a_sort_wins() {
        let a = Detail::Vertex(Digest::of("a"));
        let b = Detail::Vertex(Digest::of("b"));
        let failure = Failure::invalid("x").with(a.clone()).with(b);
        assert_eq!(failure.details(), &[a]);
    }
}
