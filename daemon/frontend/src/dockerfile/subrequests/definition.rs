//! An LLB definition as JSON of the Go structs, for sources in lint reports.

use llb::dump::DefinitionJson;
use prost::Message as _;
use proto::pb;
use serde::{Serialize, Serializer};

/// A definition that is written as JSON.
#[derive(Debug, Clone)]
pub(super) struct Definition(pb::Definition);

/// The definition that `bytes` are; `None` when they are none.
pub(super) fn decode(bytes: &[u8]) -> Option<Definition> {
    pb::Definition::decode(bytes).ok().map(Definition)
}

impl Serialize for Definition {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        DefinitionJson(&self.0).serialize(s)
    }
}
