//! What an operation had in its hands when it failed.
//!
//! The error carries it to whoever asked for the result, who may want to look
//! around in it before it goes.

use base::failure::Subject;
use base::{Detail, Failure};

use crate::Output;

/// The trees of an operation that failed; kept as long as its error.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Of an exec what each mount began with, of others the inputs.
    pub inputs: Vec<Output>,
    /// Of an exec what each mount was like in the end, of a file operation what
    /// the actions around the failed one made.
    pub mounts: Vec<Output>,
}

impl Kept {
    /// The trees.
    pub fn trees(&self) -> impl Iterator<Item = &refs::Ref> {
        self.inputs.iter().chain(&self.mounts).flatten()
    }

    /// `failure` with the trees, under their ids. One that has some already
    /// began further inside and stays as it is.
    pub(crate) fn on(self, failure: Failure, subject: Option<Subject>) -> Failure {
        if failure.is_canceled() || failure.details().iter().any(|d| matches!(d, Detail::Solve { .. })) {
            return failure;
        }
        let ids = |trees: &[Output]| {
            trees.iter().map(|t| t.as_ref().map(|t| t.id().to_owned()).unwrap_or_default()).collect()
        };
        let (inputs, mounts) = (ids(&self.inputs), ids(&self.mounts));
        let detail = Detail::Solve { inputs, mounts, op: Vec::new(), subject, description: Vec::new() };
        failure.with(detail).keeping(self)
    }
}
