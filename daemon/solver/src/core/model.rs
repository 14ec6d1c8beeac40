//! Random builds in a toy world, against a naive evaluator.
//!
//! In this world a result is a number. An operation reads all of an input, or
//! one of four parts of it; what it makes follows from its name and from what it
//! read. So a result is right exactly when it is the number that evaluating the
//! whole graph by hand gives, whatever was cached, shared, cancelled or lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Detail, Digest, Failure, Timestamp};
use proptest::prelude::*;

use super::types::{Effect, Event, Found, Submit};
use super::{BuildId, Core, JobId, NodeId, Probe, ResultId, WorkId};
use crate::context::OpContext;
use crate::graph::{CacheMap, Dep, KeyDigest};
use crate::index::{KeyId, Record, ResultStore, Source};
use crate::keys::{self, Spec};
use crate::memory::MemoryIndex;

/// A small generator; the seed is all there is to a case.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        n > 0 && self.roll(n) == 0
    }
}

fn hash(text: &str) -> u64 {
    u64::from_str_radix(&Digest::of(text).hex()[..15], 16).unwrap()
}

/// A vertex of the toy world.
#[derive(Debug, Clone)]
struct Toy {
    /// Equal names do equal things.
    name: String,
    inputs: Vec<Reads>,
    /// Roots: how many stages; whether the key is random.
    stages: usize,
    random: bool,
    /// A vertex that the run builds.
    nested: Option<usize>,
    digest: Digest,
}

#[derive(Debug, Clone)]
struct Reads {
    vertex: usize,
    output: usize,
    /// Which of four parts; `None` for all.
    part: Option<u64>,
    content: bool,
    /// Contents cannot be named after all.
    unnamed: bool,
    preprocess: bool,
}

impl Reads {
    fn of(&self, value: u64) -> u64 {
        self.part.map_or(value, |part| (value >> (part * 3)) & 1)
    }
}

struct World {
    toys: Vec<Toy>,
    generation: usize,
}

impl World {
    fn new(dice: &mut Dice, size: usize) -> Self {
        let mut toys: Vec<Toy> = Vec::new();
        for i in 0..size {
            let count = if i == 0 { 0 } else { dice.roll(4).min(i) };
            let mut inputs = Vec::new();
            for _ in 0..count {
                // Mostly near ones, so that graphs get deep.
                let vertex = if dice.one_in(3) { dice.roll(i) } else { i - 1 - dice.roll(i.min(3)) };
                inputs.push(Reads {
                    vertex,
                    output: dice.roll(2),
                    part: dice.one_in(2).then(|| dice.roll(4) as u64),
                    content: dice.one_in(2),
                    unnamed: dice.one_in(6),
                    preprocess: dice.one_in(4),
                });
            }
            // As with real operations, the name tells the number of inputs.
            let name = format!("op{}/{count}", dice.roll(5));
            let nested = (i > 0 && dice.one_in(6)).then(|| dice.roll(i));
            let stages = 1 + dice.roll(2);
            let text = format!("{i} {name} {inputs:?} {nested:?}");
            let random = dice.one_in(3);
            toys.push(Toy { name, inputs, stages, random, nested, digest: Digest::of(text) });
        }
        Self { toys, generation: 0 }
    }

    fn value(&self, vertex: usize, output: usize) -> u64 {
        let toy = &self.toys[vertex];
        let read: Vec<u64> = toy.inputs.iter().map(|r| r.of(self.value(r.vertex, r.output))).collect();
        self.made(vertex, &read, toy.nested.map(|n| self.value(n, 0)), output)
    }

    fn made(&self, vertex: usize, read: &[u64], nested: Option<u64>, output: usize) -> u64 {
        let toy = &self.toys[vertex];
        let generation = if toy.inputs.is_empty() { self.generation } else { 0 };
        hash(&format!("{} {read:?} {nested:?} {output} {generation}", toy.name))
    }

    fn map(&self, vertex: usize, stage: usize) -> CacheMap {
        let toy = &self.toys[vertex];
        let nested = toy.nested.map(|n| self.value(n, 0));
        if toy.inputs.is_empty() {
            let made = self.made(vertex, &[], nested, 0);
            let last = stage + 1 == toy.stages;
            let text = if last { format!("{made}") } else { format!("{vertex} {made} {nested:?}") };
            let digest = Digest::of(text);
            let digest =
                if toy.random { KeyDigest::Random(digest.hex().into()) } else { KeyDigest::Stable(digest) };
            return CacheMap { digest, deps: Vec::new(), last };
        }
        let dep = |r: &Reads| Dep {
            selector: r.part.map(|part| Digest::of(format!("part {part}"))),
            content: r.content,
            preprocess: r.preprocess,
        };
        let digest = Digest::of(format!("{} {nested:?}", toy.name)).into();
        CacheMap { digest, deps: toy.inputs.iter().map(dep).collect(), last: true }
    }

    /// Vertices below one, inputs first.
    fn below(&self, vertex: usize) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![vertex];
        while let Some(i) = stack.pop() {
            if seen.insert(i) {
                stack.extend(self.toys[i].inputs.iter().map(|r| r.vertex));
            }
        }
        seen.into_iter().collect()
    }
}

#[derive(Default)]
struct Stored(parking_lot::Mutex<HashMap<String, u64>>);

#[async_trait]
impl ResultStore<u64> for Stored {
    async fn save(&self, _: &u64) -> Result<String, Failure> {
        Err(Failure::internal("not used"))
    }

    async fn load(&self, _: &str, _: &OpContext<u64>) -> Result<Option<u64>, Failure> {
        Err(Failure::internal("not used"))
    }

    fn exists(&self, id: &str) -> bool {
        self.0.lock().contains_key(id)
    }
}

#[derive(Debug, Clone)]
enum Pending {
    Probe(NodeId, Probe),
    Key(usize, usize),
    Content(usize, usize, u64),
    Load(Found),
    /// Values are taken along: the core may forget them meanwhile.
    Run(NodeId, usize, Vec<u64>),
    Save(u64, Spec, Vec<KeyId>, Option<Found>),
}

struct Waiting {
    job: JobId,
    vertices: Vec<usize>,
    target: (usize, usize),
    /// The run that waits for it.
    run: Option<WorkId>,
}

struct Sim<'a> {
    world: &'a World,
    dice: Dice,
    core: Core,
    index: Arc<MemoryIndex>,
    stored: Arc<Stored>,
    sources: Vec<Source<u64>>,
    imported: Option<Arc<Stored>>,
    log: Vec<(Event, String)>,
    pending: BTreeMap<WorkId, Pending>,
    cancelled: BTreeSet<WorkId>,
    nodes: HashMap<NodeId, usize>,
    results: HashMap<ResultId, u64>,
    builds: BTreeMap<BuildId, Waiting>,
    jobs: BTreeSet<JobId>,
    /// Runs that wait for a nested build: its job.
    nesting: BTreeMap<WorkId, JobId>,
    queue: Vec<Event>,
    last: u64,
    clock: i64,
    failures: usize,
    slow_index: bool,
    lossy: bool,
    /// What was done.
    runs: usize,
    loads: usize,
    contents: usize,
    solved: usize,
}

impl Sim<'_> {
    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn step(&mut self, event: Event) {
        self.queue.push(event);
        while !self.queue.is_empty() {
            let event = self.queue.remove(0);
            let mut out = Vec::new();
            self.core.step(event.clone(), &mut out);
            self.log.push((event, format!("{out:?}")));
            for effect in out {
                self.perform(effect);
            }
            self.core.check();
        }
    }

    fn perform(&mut self, effect: Effect) {
        let (work, pending) = match effect {
            Effect::Adopt { build, index, node, fresh, .. } => {
                let vertex = self.builds[&build].vertices[index];
                let known = self.nodes.insert(node, vertex);
                assert!(fresh == known.is_none() && known.is_none_or(|v| v == vertex));
                return;
            }
            Effect::Probe { work, node, probe } => {
                if !self.slow_index {
                    let event = self.answer(work, node, &probe);
                    self.queue.push(event);
                    return;
                }
                (work, Pending::Probe(node, probe))
            }
            Effect::Key { work, node, stage } => (work, Pending::Key(self.nodes[&node], stage)),
            Effect::ContentKey { work, node, input, result } => {
                self.contents += 1;
                (work, Pending::Content(self.nodes[&node], input, self.results[&result]))
            }
            Effect::Load { work, found, .. } => {
                self.loads += 1;
                (work, Pending::Load(found))
            }
            Effect::Run { work, node, inputs } => {
                self.runs += 1;
                let values = inputs.iter().map(|id| self.results[id]).collect();
                (work, Pending::Run(node, self.nodes[&node], values))
            }
            Effect::Save { work, result, spec, names, from } => {
                (work, Pending::Save(self.results[&result], spec, names, from))
            }
            Effect::Cancel { work, .. } => {
                let ended = |e: &Event| matches!(e, Event::Ran { work: w, .. } | Event::Failed { work: w, .. } if *w == work);
                if self.queue.iter().any(ended) {
                    return;
                }
                assert!(self.pending.contains_key(&work), "cancelled what is not under way");
                assert!(self.cancelled.insert(work), "cancelled twice");
                if let Some(job) = self.nesting.remove(&work) {
                    self.jobs.remove(&job);
                    self.queue.push(Event::Left { job, cause: Failure::canceled("cancelled") });
                }
                return;
            }
            Effect::Finish { build, outcome } => return self.finished(build, outcome),
            Effect::Forget { result } => {
                assert!(self.results.remove(&result).is_some(), "forgotten twice");
                return;
            }
            Effect::Drop { node } => {
                assert!(self.nodes.remove(&node).is_some());
                return;
            }
            Effect::Join { node, host } => {
                let (a, b) = (&self.world.toys[self.nodes[&node]], &self.world.toys[self.nodes[&host]]);
                assert!(a.name == b.name || a.inputs.is_empty());
                return;
            }
            Effect::Part { .. } | Effect::Release { .. } => return,
            Effect::Started { node, .. } | Effect::Ended { node, .. } => {
                assert!(self.nodes.contains_key(&node));
                return;
            }
        };
        assert!(self.pending.insert(work, pending).is_none());
    }

    fn answer(&self, work: WorkId, _: NodeId, probe: &Probe) -> Event {
        let (found, records) =
            crate::lookup::probe(&*self.index, &*self.stored, &self.sources, probe).unwrap();
        Event::Probed { work, found, records }
    }

    fn finished(&mut self, build: BuildId, outcome: Result<super::types::Outcome, Failure>) {
        let waiting = self.builds.remove(&build).expect("answered twice");
        let (target, output) = waiting.target;
        match &outcome {
            Ok(outcome) => {
                self.solved += 1;
                assert_eq!(self.results[&outcome.result], self.world.value(target, output), "wrong result");
                assert!(!outcome.keys.roots.is_empty());
                for (i, node) in outcome.keys.nodes.iter().enumerate() {
                    assert!(node.deps.iter().flatten().all(|d| d.node < i), "inputs come first");
                }
            }
            Err(failure) => {
                let known = ["injected", "withdrawn", "left", "cancelled", "waits for the build"];
                assert!(known.iter().any(|k| failure.to_string().contains(k)), "{failure}");
                for detail in failure.details() {
                    let Detail::Vertex(digest) = detail else { continue };
                    assert!(self.world.toys.iter().any(|t| t.digest == *digest));
                }
            }
        }
        let Some(run) = waiting.run else { return };
        let Some(job) = self.nesting.remove(&run) else { return };
        let Some(Pending::Run(_, vertex, inputs)) = self.pending.remove(&run) else { panic!("no run") };
        self.cancelled.remove(&run);
        let event = match outcome {
            Ok(outcome) => {
                let value = self.results[&outcome.result];
                self.ran(run, vertex, &inputs, Some(value))
            }
            Err(failure) => Event::Failed { work: run, failure },
        };
        self.jobs.remove(&job);
        self.queue.push(Event::Left { job, cause: Failure::canceled("left") });
        self.queue.push(event);
    }

    fn ran(&mut self, work: WorkId, vertex: usize, inputs: &[u64], nested: Option<u64>) -> Event {
        let reads = &self.world.toys[vertex].inputs;
        let read: Vec<u64> = reads.iter().zip(inputs).map(|(r, value)| r.of(*value)).collect();
        let made: Vec<u64> = (0..2).map(|o| self.world.made(vertex, &read, nested, o)).collect();
        let results = made
            .into_iter()
            .map(|value| {
                let id = self.fresh();
                self.results.insert(id, value);
                id
            })
            .collect();
        Event::Ran { work, results }
    }

    fn submit(
        &mut self,
        job: JobId,
        target: (usize, usize),
        parent: Option<(NodeId, WorkId)>,
        ignore: usize,
    ) {
        let vertices = self.world.below(target.0);
        let at = |vertex: usize| vertices.iter().position(|v| *v == vertex).unwrap();
        let submits = vertices
            .iter()
            .map(|v| Submit {
                digest: self.world.toys[*v].digest.clone(),
                inputs: self.world.toys[*v].inputs.iter().map(|r| (at(r.vertex), r.output)).collect(),
                ignore_cache: self.dice.one_in(ignore),
                export: None,
            })
            .collect();
        let edge = (at(target.0), target.1);
        let build = self.fresh();
        self.jobs.insert(job);
        self.builds.insert(build, Waiting { job, vertices, target, run: parent.map(|(_, work)| work) });
        let parent = parent.map(|(node, _)| node);
        self.step(Event::Submitted { build, job, parent, vertices: submits, edge });
    }

    /// Ends one piece of work, in one way or another.
    fn work(&mut self) {
        let ready: Vec<WorkId> =
            self.pending.keys().filter(|w| !self.nesting.contains_key(w)).copied().collect();
        if ready.is_empty() {
            return;
        }
        let work = ready[self.dice.roll(ready.len())];
        let cancelled = self.cancelled.remove(&work);
        let pending = self.pending.remove(&work).unwrap();
        if cancelled && self.dice.one_in(2) {
            let failure = Failure::canceled("cancelled");
            return self.step(Event::Failed { work, failure });
        }
        if !matches!(pending, Pending::Probe(..)) && self.dice.one_in(self.failures) {
            return self.step(Event::Failed { work, failure: Failure::internal("injected") });
        }
        let event = match pending {
            Pending::Probe(node, probe) => self.answer(work, node, &probe),
            Pending::Key(vertex, stage) => Event::Keyed { work, map: self.world.map(vertex, stage) },
            Pending::Content(vertex, input, value) => {
                let reads = &self.world.toys[vertex].inputs[input];
                let digest = (!reads.unnamed).then(|| Digest::of(format!("content {}", reads.of(value))));
                Event::ContentKeyed { work, digest }
            }
            Pending::Load(found) => {
                let store = self.imported.as_ref().filter(|_| found.source.is_some());
                let store = store.unwrap_or(&self.stored);
                let value = store.0.lock().get(&*found.record.id).copied();
                let result = value.map(|value| {
                    let id = self.fresh();
                    self.results.insert(id, value);
                    id
                });
                Event::Loaded { work, result }
            }
            Pending::Run(node, vertex, inputs) => match self.world.toys[vertex].nested {
                Some(nested) if self.nodes.contains_key(&node) && !cancelled => {
                    self.pending.insert(work, Pending::Run(node, vertex, inputs));
                    let job = self.fresh();
                    self.nesting.insert(work, job);
                    return self.submit(job, (nested, 0), Some((node, work)), 0);
                }
                nested => {
                    let value = nested.map(|nested| self.world.value(nested, 0));
                    self.ran(work, vertex, &inputs, value)
                }
            },
            Pending::Save(value, spec, names, from) => {
                self.clock += 1;
                let created = from.map_or(Timestamp::from_secs(self.clock), |f| f.record.created);
                let record = Record { id: format!("r{}", self.fresh()).into(), created };
                self.stored.0.lock().insert(record.id.to_string(), value);
                let keys = keys::commit(&*self.index, &spec, &names, &record).unwrap();
                Event::Saved { work, keys, record }
            }
        };
        self.step(event);
    }

    fn drain(&mut self) {
        let mut budget = 20_000;
        while !self.builds.is_empty() {
            assert!(!self.pending.is_empty(), "builds wait for nothing");
            self.work();
            budget -= 1;
            assert!(budget > 0, "no end in sight");
        }
    }

    fn end(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            self.step(Event::Left { job, cause: Failure::canceled("left") });
        }
        while !self.pending.is_empty() {
            self.work();
        }
        assert!(self.core.is_empty(), "something is left: {:?}", self.core);
        assert!(self.results.is_empty(), "results are left");
        assert!(self.nodes.is_empty(), "nodes are left");
    }

    /// Random jobs and random ends.
    fn storm(&mut self, jobs: usize, rounds: usize) {
        for _ in 0..rounds {
            match self.dice.roll(12) {
                0 | 1 if self.jobs.len() < jobs || self.nesting.is_empty() => {
                    let known: Vec<JobId> = self
                        .jobs
                        .iter()
                        .filter(|j| !self.nesting.values().any(|n| n == *j))
                        .copied()
                        .collect();
                    let job = if known.len() < jobs || known.is_empty() {
                        self.fresh()
                    } else {
                        known[self.dice.roll(known.len())]
                    };
                    let target = (self.dice.roll(self.world.toys.len()), self.dice.roll(2));
                    let ignore = if self.dice.one_in(3) { 3 } else { 0 };
                    self.submit(job, target, None, ignore);
                }
                2 if self.dice.one_in(3) => {
                    let jobs: Vec<JobId> = self
                        .jobs
                        .iter()
                        .filter(|j| !self.nesting.values().any(|n| n == *j))
                        .copied()
                        .collect();
                    if !jobs.is_empty() {
                        let job = jobs[self.dice.roll(jobs.len())];
                        self.jobs.remove(&job);
                        self.step(Event::Left { job, cause: Failure::canceled("left") });
                        assert!(!self.builds.values().any(|w| w.job == job), "a build outlives its job");
                    }
                }
                3 if self.dice.one_in(2) => {
                    let plain = self.builds.iter().filter(|(_, w)| w.run.is_none());
                    let builds: Vec<BuildId> = plain.map(|(b, _)| *b).collect();
                    if !builds.is_empty() {
                        let build = builds[self.dice.roll(builds.len())];
                        let cause = Failure::canceled("withdrawn");
                        self.step(Event::Withdrawn { build, cause });
                    }
                }
                4 if self.lossy && self.dice.one_in(3) => {
                    let mut stored = self.stored.0.lock();
                    let ids: Vec<String> = stored.keys().cloned().collect();
                    if !ids.is_empty() {
                        stored.remove(&ids[self.dice.roll(ids.len())]);
                    }
                }
                _ => self.work(),
            }
        }
    }

    fn replay(&self) {
        let mut core = Core::default();
        for (event, effects) in &self.log {
            let mut out = Vec::new();
            core.step(event.clone(), &mut out);
            assert_eq!(format!("{out:?}"), *effects);
        }
    }
}

fn sim(world: &World, seed: u64) -> Sim<'_> {
    Sim {
        world,
        dice: Dice(seed),
        core: Core::default(),
        index: Arc::default(),
        stored: Arc::default(),
        sources: Vec::new(),
        imported: None,
        log: Vec::new(),
        pending: BTreeMap::new(),
        cancelled: BTreeSet::new(),
        nodes: HashMap::new(),
        results: HashMap::new(),
        builds: BTreeMap::new(),
        jobs: BTreeSet::new(),
        nesting: BTreeMap::new(),
        queue: Vec::new(),
        last: 0,
        clock: 0,
        failures: 0,
        slow_index: false,
        lossy: false,
        runs: 0,
        loads: 0,
        contents: 0,
        solved: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_result_is_right(
        seed in any::<u64>(), size in 1usize..14, jobs in 1usize..5,
        failures in prop_oneof![Just(0usize), Just(40), Just(8)],
        slow_index in any::<bool>(), lossy in any::<bool>(), imported in any::<bool>(),
    ) {
        let mut world = World::new(&mut Dice(seed), size);
        let (mut index, mut stored, mut sources) = (Arc::default(), Arc::<Stored>::default(), Vec::new());
        let mut values = None;
        for generation in 0..3u64 {
            world.generation = usize::try_from(generation % 2).unwrap();
            let mut sim = sim(&world, seed ^ generation);
            (sim.failures, sim.slow_index, sim.lossy) = (failures, slow_index, lossy);
            (sim.index, sim.stored, sim.sources, sim.imported) = (index, stored, sources, values);
            sim.last = generation * 1_000_000;
            sim.storm(jobs, 150);
            sim.drain();
            sim.end();
            sim.replay();
            if imported {
                // Go on with what is known as an import.
                let (keys, results): (Arc<MemoryIndex>, Arc<Stored>) = (sim.index, sim.stored);
                values = Some(results.clone());
                sources = vec![Source { id: format!("import{generation}").into(), keys, results }];
                (index, stored) = (Arc::default(), Arc::default());
            } else {
                (index, stored, sources, values) = (sim.index, sim.stored, sim.sources, sim.imported);
            }
        }
    }

    #[test]
    fn what_is_known_is_loaded_and_nothing_else(
        seed in any::<u64>(), size in 1usize..14, slow_index in any::<bool>(),
    ) {
        let world = World::new(&mut Dice(seed), size);
        let (index, stored) = {
            let mut sim = sim(&world, seed);
            sim.submit(1, (size - 1, 0), None, 0);
            sim.drain();
            sim.end();
            (sim.index, sim.stored)
        };
        let mut sim = sim(&world, seed ^ 1);
        (sim.index, sim.stored, sim.slow_index, sim.last) = (index, stored, slow_index, 1_000_000);
        sim.submit(1_000_001, (size - 1, 0), None, 0);
        sim.drain();
        prop_assert_eq!((sim.runs, sim.loads, sim.contents, sim.solved), (0, 1, 0, 1));
        sim.end();
    }

    #[test]
    fn ignored_caches_run_everything(seed in any::<u64>(), size in 1usize..10) {
        let world = World::new(&mut Dice(seed), size);
        let mut sim = sim(&world, seed);
        sim.submit(1_000, (size - 1, 0), None, 1);
        sim.drain();
        let first = sim.runs;
        sim.submit(1_001, (size - 1, 0), None, 1);
        sim.drain();
        prop_assert_eq!(sim.runs, first, "a job that is still there is shared");
        sim.end();
        sim.submit(1_002, (size - 1, 0), None, 1);
        sim.drain();
        prop_assert!(sim.runs > first);
        sim.end();
    }
}
