//! Content digests of results, remembered with the result.

use std::collections::VecDeque;
use std::sync::Arc;

use base::{Digest, Failure};
use parking_lot::Mutex;
use refs::Ref;
use sys::path::Root;
use tree::contenthash::{ContentHash, Opts};

/// Where the digests of a result's paths are noted.
pub(crate) const NOTE: &str = "buildkit.contenthash.v0";

/// How many results' digests are held in memory.
const HELD: usize = 20;

/// One path, or pattern, whose content counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    /// Path within the result.
    pub(crate) path: String,
    /// How it is looked at.
    pub(crate) opts: Opts,
}

/// Content digests by result. A result never changes, so they stay true.
#[derive(Default)]
pub struct Contents {
    recent: Mutex<VecDeque<(String, Arc<ContentHash>)>>,
}

impl Contents {
    /// The digest of what `selectors` choose from `result`; of everything
    /// without any. Reads the tree only where nothing is known.
    pub(crate) async fn digest(&self, result: &Ref, selectors: &[Selector]) -> Result<Digest, Failure> {
        let wrap = |e: Failure| e.context(format!("failed to calculate checksum of ref {}", result.id()));
        self.compute(result, selectors).await.map_err(wrap)
    }

    async fn compute(&self, result: &Ref, selectors: &[Selector]) -> Result<Digest, Failure> {
        let known = self.of(result)?;
        let whole = [Selector { path: String::new(), opts: Opts::default() }];
        let selectors = if selectors.is_empty() { &whole[..] } else { selectors };
        let mut digests = Vec::with_capacity(selectors.len());
        for selector in selectors {
            let path = base::gopath::join(["/", selector.path.as_str()]);
            let digest = match known.known(&path, &selector.opts)? {
                Some(digest) => digest,
                None => {
                    let mounted = result.mount().await?;
                    let (known, opts, tree) =
                        (known.clone(), selector.opts.clone(), mounted.path().to_owned());
                    let digest =
                        base::task::blocking(move || Ok(known.checksum(&Root::open(tree)?, &path, &opts)?))
                            .await;
                    mounted.unmount().await?;
                    digest?
                }
            };
            digests.push(digest);
        }
        if known.is_unsaved()
            && let Some(bytes) = known.encode()
        {
            result.set_meta(NOTE, &bytes)?;
        }
        // The digest of one digest is not that digest: it is what others compute.
        Ok(Digest::of(digests.iter().map(Digest::as_str).collect::<Vec<_>>().join("\0")))
    }

    /// Takes what a transfer learnt about `result`.
    pub(crate) fn put(&self, result: &Ref, known: Arc<ContentHash>) {
        self.hold(result.id(), known);
    }

    fn of(&self, result: &Ref) -> Result<Arc<ContentHash>, Failure> {
        let held =
            self.recent.lock().iter().find(|(id, _)| id == result.id()).map(|(_, known)| known.clone());
        if let Some(known) = held {
            return Ok(known);
        }
        let noted = result.get_meta(NOTE)?.filter(|bytes| !bytes.is_empty()).and_then(|bytes| {
            match ContentHash::decode(&bytes) {
                Ok(known) => Some(known),
                // Worth a look, not worth a build: it is read from the tree again.
                Err(error) => {
                    tracing::warn!(%error, id = result.id(), "noted content digests");
                    None
                }
            }
        });
        let known = Arc::new(noted.unwrap_or_default());
        self.hold(result.id(), known.clone());
        Ok(known)
    }

    fn hold(&self, id: &str, known: Arc<ContentHash>) {
        let mut recent = self.recent.lock();
        recent.retain(|(other, _)| other != id);
        recent.push_front((id.to_owned(), known));
        recent.truncate(HELD);
    }
}

/// The digest of `selectors` of an empty tree.
pub(crate) fn of_nothing(selectors: &[Selector]) -> Digest {
    let count = selectors.len().max(1);
    let nothing = Digest::of("");
    Digest::of(vec![nothing.as_str(); count].join("\0"))
}
