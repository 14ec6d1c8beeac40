//! What a build was made from and how, as SLSA provenance.
//!
//! Everything is taken from the build itself: [`asked`] keeps who asked for
//! what while frontends run, [`capture`] gathers what the operations below a
//! result used, [`steps`] writes down the definition, [`predicate`] puts it
//! together. The names and shapes are a contract: clients and policies read
//! them.

pub(crate) mod asked;
pub(crate) mod capture;
mod predicate;
pub(crate) mod producers;
mod steps;
mod terms;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use base::{Compatibility, Descriptor, Digest, Failure, Timestamp, gojson};
use export::MakeContent;
use ops::Output;
use refs::Refs;
use solver::{KeyResult, Solved};

use crate::plan::Plan;

pub(crate) use capture::Capture;
pub(crate) use predicate::{Details, Predicate};
pub(crate) use terms::{Mode, Terms};

/// What every document about one build says alike.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its name, which nothing else has.
    pub(crate) id: String,
    /// When it began.
    pub(crate) started: Timestamp,
    /// When it was first said to be done.
    completed: OnceLock<Timestamp>,
    /// What the daemon's owner wants to be said, by key.
    pub(crate) environment: Arc<serde_json::Map<String, serde_json::Value>>,
    /// The release whose results are wanted.
    pub(crate) compatibility: Compatibility,
}

impl Run {
    pub(crate) fn begin(
        environment: Arc<serde_json::Map<String, serde_json::Value>>,
        compatibility: Compatibility,
    ) -> Self {
        let (id, started) = (base::id::fresh(), Timestamp::now());
        Self { id, started, completed: OnceLock::new(), environment, compatibility }
    }
}

/// A document in the making. What is known only at the end, when layers have
/// been written, is added when it is asked for.
#[derive(Clone)]
pub(crate) struct Document {
    terms: Terms,
    predicate: Predicate,
    run: Arc<Run>,
    layers: Option<Layers>,
}

/// Where to look for the layers of steps.
#[derive(Clone)]
struct Layers {
    refs: Refs,
    solved: Arc<Solved<Output>>,
    /// The places in the document of each vertex that was built: policies may make two one.
    steps: Arc<BTreeMap<Digest, Vec<usize>>>,
}

impl Document {
    /// About what `plan` was built to; `capture` tells what it was made from.
    ///
    /// # Errors
    /// When it was not built, when the materials have to be complete and are not, or the
    /// definition cannot be written down.
    pub(crate) fn new(
        terms: Terms,
        capture: &Capture,
        plan: &Plan,
        refs: &Refs,
        run: Arc<Run>,
    ) -> Result<Self, Failure> {
        let solved = plan.solved().ok_or_else(|| Failure::internal("nothing was built"))?;
        let mut predicate = Predicate::new(capture, &run)?;
        if terms.complete_materials && !predicate.is_complete() {
            return Err(terms::incomplete(capture));
        }
        let mut layers = None;
        match terms.mode {
            Mode::Min => predicate.scrub(),
            Mode::Max => {
                let places = predicate.add_definition(&plan.definition)?;
                let mut steps: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
                for (digest, received) in plan.vertices() {
                    steps.entry(digest.clone()).or_default().extend(places.get(received));
                }
                let (refs, solved, steps) = (refs.clone(), solved.clone(), Arc::new(steps));
                layers = Some(Layers { refs, solved, steps });
            }
        }
        Ok(Self { terms, predicate, run, layers })
    }

    /// What sort of statement it is.
    pub(crate) fn predicate_type(&self) -> &'static str {
        self.terms.version.predicate_type()
    }
}

#[async_trait]
impl MakeContent for Document {
    async fn make(&self) -> Result<Vec<u8>, Failure> {
        let layers = match self.layers.clone() {
            Some(layers) => base::task::blocking(move || Ok(layers.find())).await?,
            None => BTreeMap::new(),
        };
        let details = Details {
            builder_id: &self.terms.builder_id,
            run: &self.run,
            completed: *self.run.completed.get_or_init(Timestamp::now),
            reproducible: self.terms.reproducible,
            layers,
        };
        let json = self.predicate.write(self.terms.version, &details);
        json.and_then(|value| gojson::to_vec_indent(&value))
            .map_err(|e| Failure::internal(format!("write provenance: {e}")))
    }
}

impl Layers {
    /// The layers of each step's results, as far as they were written.
    fn find(&self) -> BTreeMap<String, Vec<Vec<Descriptor>>> {
        let mut found: BTreeMap<String, Vec<Vec<Descriptor>>> = BTreeMap::new();
        for node in &self.solved.keys.nodes {
            let steps = node.vertex.as_ref().and_then(|digest| self.steps.get(digest));
            let Some(steps) = steps.filter(|steps| !steps.is_empty()) else { continue };
            // What is kept elsewhere has no layers here.
            for KeyResult { record, .. } in node.results.iter().filter(|r| r.source.is_none()) {
                // A result that is gone by now has no layers.
                let Ok(result) = self.refs.get(&record.id) else { continue };
                let Ok(Some(layers)) = result.known_layers() else { continue };
                let chain: Vec<Descriptor> = layers.into_iter().map(|layer| layer.descriptor).collect();
                let same = |other: &Vec<Descriptor>| {
                    other.iter().map(|d| &d.digest).eq(chain.iter().map(|d| &d.digest))
                };
                for step in steps {
                    let chains = found.entry(format!("step{step}:{}", node.output)).or_default();
                    if !chains.iter().any(same) {
                        chains.push(chain.clone());
                    }
                }
            }
        }
        found
    }
}
