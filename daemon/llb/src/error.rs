//! What can be wrong with a definition.

use base::{Classify, Digest, Kind};

use crate::caps::Unsupported;

/// What is wrong with a definition, or with the calls that were to make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing in it.
    #[error("invalid empty definition")]
    Empty,
    /// Not an operation.
    #[error("failed to parse llb proto op: {0}")]
    Decode(String),
    /// Too few operations: one that makes something and one that names it.
    #[error("invalid LLB with {0} vertexes")]
    TooFew(usize),
    /// More operations than a definition may have.
    #[error("invalid LLB with {count} vertexes: at most {limit} are allowed")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The last operation names no result.
    #[error("invalid LLB with no inputs on last vertex")]
    NoResult,
    /// An input that is not in the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// An input with a negative output.
    #[error("invalid input {input} output index {index}")]
    NegativeOutput {
        /// Which input.
        input: usize,
        /// The output it asks for.
        index: i64,
    },
    /// An input asks for an output its vertex does not have.
    #[error("invalid input {input} of {vertex}: {of} has {outputs} outputs, not output {index}")]
    NoSuchOutput {
        /// Whose input.
        vertex: Digest,
        /// Which input.
        input: usize,
        /// The vertex it names.
        of: Digest,
        /// How many outputs that has.
        outputs: usize,
        /// The output it asks for.
        index: usize,
    },
    /// A vertex needs itself.
    #[error("invalid LLB: {0} is among its own inputs")]
    Cycle(Digest),
    /// An operation this daemon does not know.
    #[error("invalid op of unknown type in {0}")]
    UnknownOp(Digest),
    /// An operation that makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// The definition needs what this daemon lacks.
    #[error(transparent)]
    Cap(#[from] Unsupported),
}

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Cap(_) => Kind::Unimplemented,
            _ => Kind::InvalidArgument,
        }
    }
}
