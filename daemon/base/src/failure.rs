//! The one error that travels through the engine.
//!
//! Libraries return their own typed errors. Where such an error crosses into
//! the solver it becomes a [`Failure`]: cheap to clone (several builds may wait
//! for the same step), with a kind for the wire, the chain of messages for
//! people, and details that clients look at.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

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

/// Which part of an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A file action, by index.
    File(i64),
    /// The content digest of an input, by index.
    Content(i64),
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
    fn the_innermost_detail_of_a_sort_wins() {
        let a = Detail::Vertex(Digest::of("a"));
        let b = Detail::Vertex(Digest::of("b"));
        let failure = Failure::invalid("x").with(a.clone()).with(b);
        assert_eq!(failure.details(), &[a]);
    }
}
