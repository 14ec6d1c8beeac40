//! Results the solver remembers: refs by their ids.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Failure, Kind};
use refs::Refs;
use solver::{OpContext, ResultStore};

use crate::Output;
use crate::source::image::Images;

/// The name under which an empty result is remembered.
const SCRATCH: &str = "scratch";

/// Finds results of earlier builds among the refs.
pub struct Results {
    refs: Refs,
    images: Arc<Images>,
}

impl Results {
    /// Looks among `refs`; what is not all here comes through `images`.
    pub fn new(refs: Refs, images: Arc<Images>) -> Self {
        Self { refs, images }
    }
}

#[async_trait]
impl ResultStore<Output> for Results {
    async fn save(&self, result: &Output) -> Result<String, Failure> {
        // A ref is persistent from its commit on.
        Ok(result.as_ref().map_or_else(|| SCRATCH.to_owned(), |r| r.id().to_owned()))
    }

    async fn load(&self, id: &str, cx: &OpContext<Output>) -> Result<Option<Output>, Failure> {
        if id == SCRATCH {
            return Ok(Some(None));
        }
        match self.refs.get(id) {
            Ok(found) => {
                self.images.reattach(&found, cx)?;
                // Whoever had its layers may be gone, such as a client's directory.
                Ok(found.can_be_had()?.then_some(Some(found)))
            }
            Err(e) => match Failure::from(e) {
                gone if gone.kind() == Kind::NotFound => Ok(None),
                failure => Err(failure),
            },
        }
    }

    fn exists(&self, id: &str) -> bool {
        id == SCRATCH || self.refs.get(id).is_ok()
    }
}
