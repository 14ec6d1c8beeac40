//! How operations with inputs are keyed: alike.

use base::failure::Subject;
use base::{Digest, Failure};
use llb::cachekey;

use solver::{CacheMap, Dep};

use crate::content::Selector;
use crate::{Cx, Kept, Output, Worker};

/// The key of an operation, worked out once.
pub(crate) struct Keyed {
    digest: Digest,
    deps: Vec<Input>,
    /// Inputs must be here, files and all, before the operation runs.
    ready: bool,
}

struct Input {
    selector: Option<Digest>,
    content: Option<Vec<Selector>>,
}

impl Keyed {
    /// The key of `vertex`. With `ready`, inputs are fetched, all at once,
    /// before the operation runs.
    pub(crate) fn new(vertex: &llb::Vertex, ready: bool) -> Result<Self, Failure> {
        let found = cachekey::of(&vertex.op, &vertex.platform, vertex.inputs.len())?;
        let found = found.ok_or_else(|| Failure::internal("a source has no key of its own"))?;
        let deps = found.inputs.into_iter().map(|input| Input {
            selector: input.selector,
            content: input.content.map(|selectors| selectors.into_iter().map(Selector::from).collect()),
        });
        Ok(Self { digest: found.digest, deps: deps.collect(), ready })
    }

    pub(crate) fn cache_map(&self) -> CacheMap {
        let deps = self.deps.iter().map(|d| Dep {
            selector: d.selector.clone(),
            content: d.content.is_some(),
            preprocess: self.ready,
        });
        CacheMap { digest: self.digest.clone().into(), deps: deps.collect(), last: true }
    }

    pub(crate) async fn content_key(
        &self,
        worker: &Worker,
        input: usize,
        result: &Output,
        cx: &Cx,
    ) -> Result<Option<Digest>, Failure> {
        let content = self.deps.get(input).and_then(|d| d.content.as_ref());
        let Some(result) = result else {
            return Ok(content.map(|selectors| crate::content::of_nothing(selectors)));
        };
        if self.ready {
            cx.scope.run(result.ensure()).await?;
        }
        match content {
            Some(selectors) => {
                let digest = cx.scope.run(worker.contents.digest(result, selectors)).await;
                let kept = || Kept { inputs: vec![Some(result.clone())], mounts: Vec::new() };
                Ok(Some(digest.map_err(|e| kept().on(e, Some(Subject::Content(input as i64))))?))
            }
            None => Ok(None),
        }
    }
}

impl From<cachekey::Selector> for Selector {
    fn from(s: cachekey::Selector) -> Self {
        let opts = tree::contenthash::Opts {
            follow_links: s.follow_links,
            wildcard: s.wildcard,
            include: s.include_patterns,
            exclude: s.exclude_patterns,
            required: s.required_paths,
        };
        Self { path: s.path, opts }
    }
}
