//! A definition that was received, as part of one that is written.

use std::collections::HashMap;
use std::sync::Arc;

use base::{Digest, Platform};
use prost::Message;
use proto::pb;

use super::node::{Node, NodeKind, Options, Output, SourceLocation, SourceMap};
use super::state::State;
use crate::Error;

impl State {
    /// The files a definition is there for. Its operations are written as they
    /// came. An empty definition has no files.
    ///
    /// # Errors
    /// When it is not a definition.
    pub fn from_definition(definition: &pb::Definition) -> Result<Self, Error> {
        if definition.def.is_empty() {
            return Ok(Self::scratch());
        }
        // Loading checks it all and gives an order; operations nothing needs
        // are left behind.
        let graph = crate::Graph::load(definition)?;
        let sources = Sources::new(definition.source.as_ref());
        let mut nodes: Vec<(Arc<Node>, Option<Platform>)> = Vec::with_capacity(graph.vertices().len());
        for vertex in graph.vertices() {
            let inputs = vertex
                .inputs
                .iter()
                .filter_map(|edge| {
                    let (node, platform) = nodes.get(edge.vertex)?;
                    Some(Output::Of {
                        node: Arc::clone(node),
                        index: i64::try_from(edge.output).ok()?,
                        platform: platform.clone(),
                    })
                })
                .collect();
            let wire = pb::Op::decode(&*vertex.bytes).map_err(|e| Error::Decode(e.to_string()))?;
            let kind = NodeKind::Received {
                bytes: vertex.bytes.to_vec(),
                meta: definition.metadata.get(vertex.digest.as_str()).cloned(),
                inputs,
            };
            let options = Options { locations: sources.of(&vertex.digest), ..Options::default() };
            nodes.push((Node::new(kind, options), wire.platform.as_ref().map(crate::graph::platform)));
        }
        let result = graph.result();
        let output = nodes.get(result.vertex).map(|(node, platform)| Output::Of {
            node: Arc::clone(node),
            index: i64::try_from(result.output).unwrap_or_default(),
            platform: platform.clone(),
        });
        Ok(Self::from_output(output))
    }
}

/// Source files and the places in them, by vertex.
struct Sources {
    maps: Vec<Arc<SourceMap>>,
    places: HashMap<String, Vec<(usize, Vec<pb::Range>)>>,
}

impl Sources {
    fn new(source: Option<&pb::Source>) -> Self {
        let Some(source) = source else { return Self { maps: Vec::new(), places: HashMap::new() } };
        let maps = source
            .infos
            .iter()
            .map(|info| {
                Arc::new(SourceMap {
                    filename: info.filename.clone(),
                    language: info.language.clone(),
                    data: info.data.clone(),
                    definition: info.definition.clone(),
                })
            })
            .collect();
        let places = source
            .locations
            .iter()
            .map(|(digest, locations)| {
                let places = locations
                    .locations
                    .iter()
                    .filter_map(|l| Some((usize::try_from(l.source_index).ok()?, l.ranges.clone())))
                    .collect();
                (digest.clone(), places)
            })
            .collect();
        Self { maps, places }
    }

    fn of(&self, digest: &Digest) -> Vec<SourceLocation> {
        let places = self.places.get(digest.as_str()).into_iter().flatten();
        places
            .filter_map(|(map, ranges)| {
                Some(SourceLocation { map: Arc::clone(self.maps.get(*map)?), ranges: ranges.clone() })
            })
            .collect()
    }
}
