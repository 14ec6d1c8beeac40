//! Stages while they are converted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::Platform;
use llb::build::{EnvList, State};

use super::image::Image;
use super::outline::Captured;
use crate::dockerfile::Lines;
use crate::dockerfile::instructions::{self, ArgVar, Instruction};
use crate::dockerfile::shell::Env;
use crate::dockerui::{NamedContext, PendingLocal};

/// A stage's place among all that were ever mentioned.
pub(super) type Id = usize;

/// A stage, or an image that is only copied or mounted from.
#[derive(Debug)]
pub(super) struct Stage {
    /// As it is written; the name of its base is expanded first, then resolved.
    pub(super) source: instructions::Stage,
    /// Its instructions, triggers of its base in front.
    pub(super) steps: Vec<Step>,
    /// The stage it is based on.
    pub(super) base: Option<Id>,
    /// What it needs, and where that is said.
    pub(super) needs: BTreeMap<Id, Lines>,
    /// What a client put in its place.
    pub(super) named: Option<NamedContext>,
    /// A directory in its place whose paths are still to be said.
    pub(super) pending: Option<PendingLocal>,

    /// Its files so far.
    pub(super) state: State,
    /// Its configuration so far.
    pub(super) image: Image,
    /// The configuration it began with.
    pub(super) base_image: Option<Image>,
    /// What it is for.
    pub(super) platform: Option<Platform>,

    /// All was done.
    pub(super) dispatched: bool,
    /// Its base was resolved.
    pub(super) resolved: bool,
    /// Triggers of its base stage were added.
    pub(super) triggered: bool,
    /// It is no stage of the file.
    pub(super) unregistered: bool,
    /// To be built anew.
    pub(super) ignore_cache: bool,

    /// Build arguments so far.
    pub(super) args: Vec<ArgVar>,
    /// What it uses of the build context.
    pub(super) context_paths: BTreeSet<String>,
    /// Whose set of paths notes what is used of this stage: stages on top of
    /// each other share one.
    pub(super) paths: Id,

    /// What people call it; empty when it is the only one.
    pub(super) title: String,
    /// The step it is at, from one.
    pub(super) index: i64,
    /// How many steps it has.
    pub(super) total: i64,
    /// The step comes from the base.
    pub(super) in_trigger: bool,
    /// A working directory was set.
    pub(super) workdir_set: bool,
    /// Where instructions were that count once.
    pub(super) entrypoint: Option<Lines>,
    pub(super) cmd: Option<Lines>,
    pub(super) healthcheck: Option<Lines>,

    /// For the outline.
    pub(super) outline: Captured,
    /// To be scanned, and its context.
    pub(super) scan: bool,
    pub(super) scan_context: bool,
}

/// An instruction and the stages it reads.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) instruction: Instruction,
    pub(super) sources: Vec<Id>,
    pub(super) in_trigger: bool,
}

/// All stages.
#[derive(Debug, Default)]
pub(super) struct Stages {
    all: Vec<Stage>,
    /// What is used of each; see [`Stage::paths`].
    paths: Vec<BTreeSet<String>>,
    /// Those that count, in order.
    pub(super) order: Vec<Id>,
    by_name: HashMap<String, Id>,
}

impl Stages {
    /// Adds a stage that does not count yet.
    pub(super) fn add(&mut self, source: instructions::Stage, outline: Captured) -> Id {
        let id = self.all.len();
        self.paths.push(BTreeSet::new());
        self.all.push(Stage {
            title: source.name.clone(),
            source,
            steps: Vec::new(),
            base: None,
            needs: BTreeMap::new(),
            named: None,
            pending: None,
            state: State::scratch(),
            image: Image::default(),
            base_image: None,
            platform: None,
            dispatched: false,
            resolved: false,
            triggered: false,
            unregistered: false,
            ignore_cache: false,
            args: Vec::new(),
            context_paths: BTreeSet::new(),
            paths: id,
            index: 0,
            total: 0,
            in_trigger: false,
            workdir_set: false,
            entrypoint: None,
            cmd: None,
            healthcheck: None,
            outline,
            scan: false,
            scan_context: false,
        });
        id
    }

    /// Makes a stage count: from now on it is found by name, and is based on
    /// the stage its base names.
    pub(super) fn register(&mut self, id: Id) {
        self.order.push(id);
        let Some(stage) = self.all.get(id) else { return };
        let base = self.by_name.get(&stage.source.base_name).copied();
        let name = stage.source.name.to_lowercase();
        if let Some(base) = base {
            let outline = self[base].outline.clone();
            let stage = &mut self[id];
            stage.base = Some(base);
            stage.outline = outline;
        }
        if !name.is_empty() {
            self.by_name.insert(name, id);
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<Id> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    /// What the stages are called.
    pub(super) fn titles(&self) -> Vec<String> {
        self.order.iter().map(|id| self[*id].title.clone()).filter(|t| !t.is_empty()).collect()
    }

    /// Notes that `path` of a stage is used.
    pub(super) fn use_path(&mut self, id: Id, path: String) {
        let shared = self[id].paths;
        if let Some(paths) = self.paths.get_mut(shared) {
            paths.insert(path);
        }
    }

    /// What is used of a stage.
    pub(super) fn used_paths(&self, id: Id) -> &BTreeSet<String> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        self.paths.get(self[id].paths).unwrap_or(&NONE)
    }

    /// Every stage, those that do not count included.
    pub(super) fn ids(&self) -> std::ops::Range<Id> {
        0..self.all.len()
    }

    /// Takes over what a stage inherits from its base stage.
    pub(super) fn inherit(&mut self, id: Id) {
        let Some(base) = self[id].base else { return };
        let from = &self[base];
        let (state, platform, paths) = (from.state.clone(), from.platform.clone(), from.paths);
        let (mut image, base_image) = (from.image.clone(), from.base_image.clone());
        let (workdir_set, args) = (from.workdir_set, from.args.clone());
        // Triggers are for whoever is based on the base, not for us.
        image.config.on_build.clear();
        let stage = &mut self[id];
        stage.state = state;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.workdir_set = workdir_set;
        stage.args.extend(args);
    }

    /// What `id` needs, itself included.
    pub(super) fn reachable(&self, id: Id) -> BTreeSet<Id> {
        let mut found = BTreeSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if found.insert(id) {
                open.extend(self[id].base);
                open.extend(self[id].needs.keys());
            }
        }
        found
    }

    /// A circle among stages: one of it, and where each step of it is said.
    pub(super) fn circle(&self) -> Option<(Id, Vec<Lines>)> {
        /// On the way: a stage, what is still to be tried there, and where the
        /// step to it is said.
        type Place = (Id, Vec<(Id, Lines)>, Option<Lines>);
        let mut seen: BTreeSet<Id> = BTreeSet::new();
        for &start in &self.order {
            let mut way: Vec<Place> = Vec::new();
            let needs = |id: Id| self[id].needs.iter().rev().map(|(i, l)| (*i, *l)).collect::<Vec<_>>();
            if !seen.insert(start) {
                continue;
            }
            way.push((start, needs(start), None));
            while let Some((_, rest, _)) = way.last_mut() {
                let Some((next, lines)) = rest.pop() else {
                    way.pop();
                    continue;
                };
                if way.iter().any(|(id, ..)| *id == next) {
                    let mut places: Vec<Lines> = way.iter().filter_map(|(_, _, l)| *l).collect();
                    places.push(lines);
                    return Some((start, places));
                }
                if seen.insert(next) {
                    way.push((next, needs(next), Some(lines)));
                }
            }
        }
        None
    }
}

// Ids come from `add` and stages are never removed.
impl std::ops::Index<Id> for Stages {
    type Output = Stage;

    fn index(&self, id: Id) -> &Stage {
        &self.all[id]
    }
}

impl std::ops::IndexMut<Id> for Stages {
    fn index_mut(&mut self, id: Id) -> &mut Stage {
        &mut self.all[id]
    }
}

/// Variables as the shell's words see them.
impl Env for EnvList {
    fn get(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        Self::get(self, name).map(Into::into)
    }

    fn names(&self) -> Vec<&str> {
        self.iter().map(|(name, _)| name).collect()
    }
}
