//! What the engine itself has to complain about.

use base::{Classify, Digest, Kind};

/// An error that does not come from an operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An identifier of a job is taken.
    #[error("job ID {id} exists")]
    JobExists {
        /// The identifier.
        id: String,
    },
    /// A vertex is used but not in the graph.
    #[error("vertex {vertex} not found{}", by.as_ref().map(|d| format!(", it is an input of {d}")).unwrap_or_default())]
    Missing {
        /// The one that is not there.
        vertex: Digest,
        /// Who uses it; `None` for the request itself.
        by: Option<Digest>,
    },
    /// A vertex needs itself.
    #[error("vertex {vertex} is its own input")]
    Circle {
        /// The vertex.
        vertex: Digest,
    },
    /// A nested build needs the vertex that runs it.
    #[error("vertex {vertex} waits for the build that builds it")]
    Recursion {
        /// The vertex.
        vertex: Digest,
    },
    /// An operation gave fewer results than are used.
    #[error("invalid response from exec need {output} index but {results} results received")]
    NoOutput {
        /// The output that is used.
        output: usize,
        /// How many there are.
        results: usize,
    },
    /// An operation described fewer or more inputs than its vertex has.
    #[error("cache map describes {deps} inputs, the vertex has {inputs}")]
    Deps {
        /// As described.
        deps: usize,
        /// As defined.
        inputs: usize,
    },
    /// The engine has ended.
    #[error("the solver is shut down")]
    Closed,
    /// An operation panicked.
    #[error("the operation panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::JobExists { .. } => Kind::AlreadyExists,
            Self::Missing { .. } | Self::Circle { .. } | Self::Recursion { .. } => Kind::InvalidArgument,
            Self::NoOutput { .. } | Self::Deps { .. } | Self::Panicked { .. } => Kind::Internal,
            Self::Closed => Kind::Unavailable,
        }
    }
}
