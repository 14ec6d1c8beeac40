//! What a build asks for: vertices, their operations and how they are keyed.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure, progress};

use crate::context::OpContext;
use crate::error::Error;
use crate::index::Source;

/// One output of a vertex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The digest of the vertex.
    pub vertex: Digest,
    /// Which of its results, from zero.
    pub output: usize,
}

impl Edge {
    /// Output number `output` of `vertex`.
    pub fn new(vertex: Digest, output: usize) -> Self {
        Self { vertex, output }
    }
}

/// A step of a build.
pub struct Vertex<R> {
    /// The name of its definition, inputs included. Two vertices of one digest
    /// that are wanted at the same time are one.
    pub digest: Digest,
    /// For people.
    pub name: String,
    /// The results its operation gets, in order.
    pub inputs: Vec<Edge>,
    /// What is done.
    pub op: Arc<dyn Operation<R>>,
    /// Run it even if its result is known.
    pub ignore_cache: bool,
    /// Whether its result belongs into an exported cache; `None` leaves it to
    /// the exporter.
    pub export_cache: Option<bool>,
    /// Shown together with others.
    pub group: Option<progress::Group>,
    /// Free text by key; means nothing here.
    pub description: BTreeMap<String, String>,
}

/// A set of vertices that is closed under inputs and has no cycle.
pub struct Graph<R> {
    /// Inputs before consumers.
    vertices: Vec<Arc<Vertex<R>>>,
    by_digest: HashMap<Digest, usize>,
    sources: Vec<Source<R>>,
}

impl<R> Clone for Graph<R> {
    fn clone(&self) -> Self {
        Self {
            vertices: self.vertices.clone(),
            by_digest: self.by_digest.clone(),
            sources: self.sources.clone(),
        }
    }
}

impl<R> Graph<R> {
    /// A graph of `vertices`, in any order. Of several with one digest the
    /// first counts.
    ///
    /// # Errors
    /// When an input is missing or the inputs form a circle.
    pub fn new(vertices: impl IntoIterator<Item = Vertex<R>>) -> Result<Self, Failure> {
        let mut given: Vec<Arc<Vertex<R>>> = Vec::new();
        let mut at: HashMap<Digest, usize> = HashMap::new();
        for vertex in vertices {
            if !at.contains_key(&vertex.digest) {
                at.insert(vertex.digest.clone(), given.len());
                given.push(Arc::new(vertex));
            }
        }
        let order = sort(&given, &at)?;
        let vertices: Vec<_> = order.into_iter().filter_map(|i| given.get(i).cloned()).collect();
        let by_digest = vertices.iter().enumerate().map(|(i, v)| (v.digest.clone(), i)).collect();
        Ok(Self { vertices, by_digest, sources: Vec::new() })
    }

    /// The same graph, with further places where results of its vertices may be
    /// found, such as imported caches.
    #[must_use]
    pub fn with_sources(mut self, sources: Vec<Source<R>>) -> Self {
        self.sources = sources;
        self
    }

    /// Inputs come before consumers.
    pub fn vertices(&self) -> &[Arc<Vertex<R>>] {
        &self.vertices
    }

    /// The vertex with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Arc<Vertex<R>>> {
        self.vertices.get(*self.by_digest.get(digest)?)
    }

    pub(crate) fn sources(&self) -> &[Source<R>] {
        &self.sources
    }

    /// The vertices that `edge` needs, itself included, inputs first.
    ///
    /// # Errors
    /// When the graph does not have it.
    pub(crate) fn below(&self, edge: &Edge) -> Result<Vec<Arc<Vertex<R>>>, Failure> {
        let start = self
            .by_digest
            .get(&edge.vertex)
            .ok_or_else(|| Error::Missing { vertex: edge.vertex.clone(), by: None })?;
        let mut wanted = vec![false; self.vertices.len()];
        let mut stack = vec![*start];
        while let Some(i) = stack.pop() {
            let (Some(seen), Some(vertex)) = (wanted.get_mut(i), self.vertices.get(i)) else { continue };
            if !std::mem::replace(seen, true) {
                stack.extend(vertex.inputs.iter().filter_map(|e| self.by_digest.get(&e.vertex)));
            }
        }
        Ok(self.vertices.iter().zip(wanted).filter(|(_, w)| *w).map(|(v, _)| v.clone()).collect())
    }
}

/// Indices, inputs first. Iterative, since definitions may be deep.
fn sort<R>(given: &[Arc<Vertex<R>>], at: &HashMap<Digest, usize>) -> Result<Vec<usize>, Error> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; given.len()];
    let mut order = Vec::with_capacity(given.len());
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..given.len() {
        stack.push((start, 0));
        while let Some((i, next)) = stack.pop() {
            let (Some(vertex), Some(mark)) = (given.get(i), marks.get_mut(i)) else { continue };
            if next == 0 {
                if *mark != Mark::New {
                    continue;
                }
                *mark = Mark::Open;
            }
            let Some(input) = vertex.inputs.get(next) else {
                *mark = Mark::Done;
                order.push(i);
                continue;
            };
            stack.push((i, next + 1));
            let missing = || Error::Missing { vertex: input.vertex.clone(), by: Some(vertex.digest.clone()) };
            let j = *at.get(&input.vertex).ok_or_else(missing)?;
            match marks.get(j) {
                Some(Mark::Open) => return Err(Error::Circle { vertex: input.vertex.clone() }),
                Some(Mark::New) => stack.push((j, 0)),
                _ => {}
            }
        }
    }
    Ok(order)
}

/// How a vertex is keyed and run, on behalf of all builds that have an equal one.
///
/// A call is never dropped half way. When nobody wants its outcome any more its
/// [`OpContext::scope`] is cancelled, and it is up to the call to end soon; what
/// it yields nevertheless is used if somebody wants it by then.
///
/// `Any` is a supertrait so that the owner of a build finds its own types again
/// in [`crate::Solved::vertices`].
#[async_trait]
pub trait Operation<R>: Any + Send + Sync {
    /// What the results depend on, besides the inputs.
    ///
    /// Called with `stage` 0, 1, … until the answer says it is the last one.
    /// Later stages are asked for only when the earlier ones led to no known
    /// result. Only operations without inputs may have more than one.
    async fn cache_map(&self, stage: usize, cx: &OpContext<R>) -> Result<CacheMap, Failure>;

    /// Called for inputs whose [`Dep::content`] or [`Dep::preprocess`] is set,
    /// once the input is there: makes it ready for use, and names those of its
    /// contents that matter. `None`: it cannot be named.
    async fn content_key(
        &self,
        input: usize,
        result: &R,
        cx: &OpContext<R>,
    ) -> Result<Option<Digest>, Failure>;

    /// Does it. Takes its own permits; may build through
    /// [`OpContext::build`]. Gives at least as many results as are used.
    async fn run(&self, inputs: Vec<R>, cx: &OpContext<R>) -> Result<Vec<R>, Failure>;
}

/// What the results of an operation depend on, besides the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// What is done.
    pub digest: KeyDigest,
    /// One per input.
    pub deps: Vec<Dep>,
    /// No further stage.
    pub last: bool,
}

/// How an input counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dep {
    /// Which part of the input's definition matters.
    pub selector: Option<Digest>,
    /// [`Operation::content_key`] can name what it reads of the input.
    pub content: bool,
    /// [`Operation::content_key`] must see the input before the run, even
    /// though it names nothing.
    pub preprocess: bool,
}

/// The digest of a cache map: the name of what is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyDigest {
    /// The same whenever the same is done.
    Stable(Digest),
    /// Known for a while only, such as what a client has in a directory. The
    /// text is what follows `random:`.
    Random(Arc<str>),
}

impl KeyDigest {
    /// The key of output `output` of an operation without inputs: the digest of
    /// `<digest>@<output>`, or, when it is random, the name itself, with what
    /// follows the digest only for further outputs.
    pub fn root_key(&self, output: i64) -> Arc<str> {
        match self {
            Self::Stable(digest) => Digest::of(format!("{digest}@{output}")).as_str().into(),
            Self::Random(_) if output == 0 => self.to_string().into(),
            Self::Random(_) => format!("{self}@{output}").into(),
        }
    }
}

impl From<Digest> for KeyDigest {
    fn from(digest: Digest) -> Self {
        Self::Stable(digest)
    }
}

impl std::fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stable(digest) => write!(f, "{digest}"),
            Self::Random(text) => write!(f, "random:{text}"),
        }
    }
}
