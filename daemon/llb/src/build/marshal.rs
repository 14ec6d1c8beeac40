//! From states to a definition.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::{Digest, Platform};
use prost::Message;
use proto::pb;
use proto::pb::op::Op;

use super::node::{Node, NodeKind, Options, Output, SourceLocation, SourceMap};
use super::state::State;
use crate::caps::CapSet;
use crate::{Error, attr, caps};

/// What holds for every vertex that does not say otherwise.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// What it is made for; this machine's without.
    pub platform: Option<Platform>,
    /// Which workers may do it.
    pub filters: Vec<String>,
    /// What the daemon can do; without, nothing is assumed.
    pub caps: Option<CapSet>,
    /// Makes local sources without a session unique.
    pub local_unique_id: String,
}

/// The vertex whose output a definition is there for.
pub fn head(definition: &pb::Definition) -> Option<Digest> {
    let last = pb::Op::decode(definition.def.last()?.as_slice()).ok()?;
    last.inputs.first()?.digest.parse().ok()
}

impl State {
    /// Writes everything this state needs. No files: an empty definition.
    ///
    /// # Errors
    /// What a call asked for that makes no sense, such as a process without a
    /// command.
    pub fn marshal(&self, defaults: &Defaults) -> Result<pb::Definition, Error> {
        let mut written = Written::default();
        let Some((root, _)) = self.output.as_ref().map(resolve).transpose()?.flatten() else {
            return Ok(pb::Definition::default());
        };
        for node in order(&root)? {
            written.write(&node, defaults)?;
        }
        let Some(output) = &self.output else { return Ok(pb::Definition::default()) };
        let Some(input) = written.input(output)? else { return Ok(pb::Definition::default()) };
        Ok(written.finish(input))
    }
}

/// The vertex and index behind an output.
fn resolve(output: &Output) -> Result<Option<(Arc<Node>, i64)>, Error> {
    let mut output = output.clone();
    // A later state may be another later state, but not for ever.
    for _ in 0..16 {
        match output {
            Output::Of { node, index, .. } => return Ok(Some((node, index))),
            Output::Later(later) => {
                let Some(state) = later.get() else {
                    return Err(Error::invalid("a state was used that was never given"));
                };
                match state.output.clone() {
                    Some(next) => output = next,
                    None => return Ok(None),
                }
            }
        }
    }
    Err(Error::invalid("a state is defined by itself"))
}

/// All vertices `root` needs, inputs first, without recursion.
fn order(root: &Arc<Node>) -> Result<Vec<Arc<Node>>, Error> {
    let mut seen: HashSet<*const Node> = HashSet::new();
    let mut done = Vec::new();
    let mut stack: Vec<(Arc<Node>, Vec<Arc<Node>>)> = Vec::new();
    let inputs = |node: &Arc<Node>| -> Result<Vec<Arc<Node>>, Error> {
        let mut inputs = Vec::new();
        for output in node.inputs() {
            inputs.extend(resolve(output)?.map(|(node, _)| node));
        }
        inputs.reverse();
        Ok(inputs)
    };
    seen.insert(Arc::as_ptr(root));
    stack.push((Arc::clone(root), inputs(root)?));
    while let Some((node, mut rest)) = stack.pop() {
        match rest.pop() {
            Some(next) => {
                stack.push((node, rest));
                if seen.insert(Arc::as_ptr(&next)) {
                    let inner = inputs(&next)?;
                    stack.push((next, inner));
                }
            }
            None => done.push(node),
        }
    }
    Ok(done)
}

/// What was written so far.
#[derive(Default)]
pub(super) struct Written {
    digests: HashMap<*const Node, Digest>,
    known: HashSet<Digest>,
    definition: pb::Definition,
    maps: Vec<Arc<SourceMap>>,
    locations: pb::Source,
}

impl Written {
    /// An output as another vertex names it; `None` when it has no files.
    fn input(&self, output: &Output) -> Result<Option<pb::Input>, Error> {
        let Some((node, index)) = resolve(output)? else { return Ok(None) };
        match self.digests.get(&Arc::as_ptr(&node)) {
            Some(digest) => Ok(Some(pb::Input { digest: digest.as_str().to_owned(), index })),
            None => Err(Error::invalid("a state is among its own inputs")),
        }
    }

    /// Adds an output to `inputs`, unless it is there, and says where.
    pub(super) fn add_input(&self, output: &Output, inputs: &mut Vec<pb::Input>) -> Result<i64, Error> {
        let Some(input) = self.input(output)? else { return Ok(attr::NONE) };
        let at = inputs.iter().position(|i| *i == input).unwrap_or_else(|| {
            inputs.push(input);
            inputs.len() - 1
        });
        Ok(at as i64)
    }

    fn push_input(&self, output: &Output, inputs: &mut Vec<pb::Input>) -> Result<i64, Error> {
        let Some(input) = self.input(output)? else { return Ok(attr::NONE) };
        inputs.push(input);
        Ok(inputs.len() as i64 - 1)
    }

    fn write(&mut self, node: &Arc<Node>, defaults: &Defaults) -> Result<(), Error> {
        let (bytes, meta) = self.encode(node, defaults)?;
        let digest = Digest::of(&bytes);
        let key = digest.as_str().to_owned();
        if let Some(meta) = meta {
            merge(self.definition.metadata.entry(key.clone()).or_default(), meta);
        }
        self.locate(&key, &node.options.locations);
        self.digests.insert(Arc::as_ptr(node), digest.clone());
        if self.known.insert(digest) {
            self.definition.def.push(bytes);
        }
        Ok(())
    }

    fn encode(&self, node: &Node, defaults: &Defaults) -> Result<(Vec<u8>, Option<pb::OpMetadata>), Error> {
        let mut inputs = Vec::new();
        let mut options = node.options.clone();
        let mut has_platform = false;
        let op = match &node.kind {
            NodeKind::Received { bytes, meta, .. } => return Ok((bytes.clone(), meta.clone())),
            NodeKind::Source { id, attrs } => {
                let mut attrs = attrs.clone();
                if id.starts_with("local://") && !attrs.contains_key(attr::LOCAL_SESSION) {
                    let own = Some(&options.local_unique_id).filter(|id| !id.is_empty());
                    let unique = own.unwrap_or(&defaults.local_unique_id).clone();
                    attrs.insert(attr::LOCAL_UNIQUE.to_owned(), unique);
                    options.cap(caps::SOURCE_LOCAL_UNIQUE);
                }
                has_platform = id.starts_with("docker-image://") || id.starts_with("oci-layout://");
                Op::Source(pb::SourceOp { identifier: id.clone(), attrs })
            }
            NodeKind::Exec(exec) => {
                has_platform = true;
                let (op, new) = exec.write(&options, defaults, &mut inputs, self)?;
                options = new;
                Op::Exec(op)
            }
            NodeKind::File(file) => {
                options.cap(caps::FILE_BASE);
                Op::File(file.write(&mut inputs, self)?)
            }
            NodeKind::Merge(outputs) => {
                let mut merge = pb::MergeOp::default();
                for output in outputs {
                    let input = self.push_input(output, &mut inputs)?;
                    if input != attr::NONE {
                        merge.inputs.push(pb::MergeInput { input });
                    }
                }
                Op::Merge(merge)
            }
            NodeKind::Diff { lower, upper } => {
                let mut side = |output: &Option<Output>| match output {
                    Some(output) => self.push_input(output, &mut inputs),
                    None => Ok(attr::NONE),
                };
                let (lower, upper) = (side(lower)?, side(upper)?);
                Op::Diff(pb::DiffOp {
                    lower: Some(pb::LowerDiffInput { input: lower }),
                    upper: Some(pb::UpperDiffInput { input: upper }),
                })
            }
            NodeKind::Passthrough { id, inputs: needed, outputs } => {
                if id.is_empty() {
                    return Err(Error::invalid("passthrough requires an id"));
                }
                if outputs.is_empty() {
                    return Err(Error::invalid("passthrough must have at least one output"));
                }
                for output in needed {
                    self.push_input(output, &mut inputs)?;
                }
                Op::Passthrough(pb::PassthroughOp { id: id.clone(), outputs: outputs.clone() })
            }
        };
        let platform = has_platform.then(|| write_platform(&options, defaults));
        let filter = [defaults.filters.as_slice(), &options.filters].concat();
        let op =
            pb::Op { inputs, platform, constraints: Some(pb::WorkerConstraints { filter }), op: Some(op) };
        Ok((crate::encode(op), Some(options.meta)))
    }

    fn locate(&mut self, digest: &str, locations: &[SourceLocation]) {
        let entry = self.locations.locations.entry(digest.to_owned()).or_default();
        for location in locations {
            let known = self.maps.iter().position(|m| Arc::ptr_eq(m, &location.map) || **m == *location.map);
            let index = known.unwrap_or_else(|| {
                self.maps.push(Arc::clone(&location.map));
                self.maps.len() - 1
            });
            entry
                .locations
                .push(pb::Location { source_index: index as i32, ranges: location.ranges.clone() });
        }
    }

    /// Adds the operation that names the result.
    fn finish(self, input: pb::Input) -> pb::Definition {
        let Self { mut definition, maps, mut locations, .. } = self;
        let last = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
        let mut meta = pb::OpMetadata::default();
        let mut note = |cap: &str| meta.caps.insert(cap.to_owned(), true);
        note(caps::CONSTRAINTS);
        note(caps::PLATFORM);
        for m in definition.metadata.values() {
            if m.ignore_cache {
                note(caps::META_IGNORECACHE);
            }
            if !m.description.is_empty() {
                note(caps::META_DESCRIPTION);
            }
            if m.export_cache.is_some() {
                note(caps::META_EXPORTCACHE);
            }
        }
        definition.metadata.insert(Digest::of(&last).as_str().to_owned(), meta);
        definition.def.push(last);
        locations.infos = maps
            .iter()
            .map(|m| pb::SourceInfo {
                filename: m.filename.clone(),
                data: m.data.clone(),
                definition: m.definition.clone(),
                language: m.language.clone(),
            })
            .collect();
        definition.source = Some(locations);
        definition
    }
}

fn write_platform(options: &Options, defaults: &Defaults) -> pb::Platform {
    let platform = options.platform.clone().or_else(|| defaults.platform.clone());
    let platform = platform.unwrap_or_else(Platform::host);
    pb::Platform {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        os_version: platform.os_version,
        os_features: platform.os_features,
    }
}

/// Two vertices turned out to be one: what either says holds.
fn merge(into: &mut pb::OpMetadata, other: pb::OpMetadata) {
    into.ignore_cache |= other.ignore_cache;
    into.description.extend(other.description);
    into.caps.extend(other.caps.into_keys().map(|cap| (cap, true)));
    into.export_cache = other.export_cache.or(into.export_cache.take());
    into.progress_group = other.progress_group.or(into.progress_group.take());
    into.linux_resources = other.linux_resources.or(into.linux_resources.take());
}
