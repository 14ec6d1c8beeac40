//! Which request a definition came from, across builds.
//!
//! A client may hand the result of one frontend to another as an input: all
//! that arrives is a definition. While the build that made it runs, its head is
//! remembered here, and documents tell how the input was made.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Digest;
use parking_lot::Mutex;
use prost::Message as _;
use proto::pb;

use super::capture::RequestProvenance;

/// The producers of one daemon. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Producers(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    by_head: BTreeMap<Digest, BTreeMap<u64, RequestProvenance>>,
}

/// An entry, which goes with it.
pub(crate) struct Registered {
    producers: Producers,
    head: Digest,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut table = self.producers.0.lock();
        if let Some(entries) = table.by_head.get_mut(&self.head) {
            entries.remove(&self.id);
            if entries.is_empty() {
                table.by_head.remove(&self.head);
            }
        }
    }
}

impl Producers {
    /// Notes that `definition` came from `request`, for as long as the answer
    /// is kept. A definition without a head has no producer.
    pub(crate) fn register(
        &self,
        definition: &pb::Definition,
        request: RequestProvenance,
    ) -> Option<Registered> {
        let head = head(definition)?;
        let mut table = self.0.lock();
        table.last += 1;
        let id = table.last;
        table.by_head.entry(head.clone()).or_default().insert(id, request);
        Some(Registered { producers: self.clone(), head, id })
    }

    /// The request `definition` came from, if all who know it say the same.
    pub(crate) fn find(&self, definition: &pb::Definition) -> Option<RequestProvenance> {
        let table = self.0.lock();
        let mut known = table.by_head.get(&head(definition)?)?.values().cloned().map(|mut request| {
            request.request.root = None;
            request
        });
        let first = known.next()?;
        known.all(|other| other == first).then_some(first)
    }
}

/// The digest of what a definition is there for.
fn head(definition: &pb::Definition) -> Option<Digest> {
    let op = pb::Op::decode(&**definition.def.last()?).ok()?;
    op.inputs.first()?.digest.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_is_known_while_its_build_runs() {
        let input = pb::Input { digest: Digest::of("x").to_string(), index: 0 };
        let end = pb::Op { inputs: vec![input], ..pb::Op::default() };
        let definition = pb::Definition { def: vec![end.encode_to_vec()], ..pb::Definition::default() };
        let request = |frontend: &str| super::super::capture::request(frontend, BTreeMap::new(), &[]);
        let producers = Producers::default();
        let first = producers.register(&definition, request("a")).unwrap();
        assert_eq!(producers.find(&definition), Some(request("a")));
        let second = producers.register(&definition, request("b")).unwrap();
        assert_eq!(producers.find(&definition), None, "they differ");
        drop(first);
        assert_eq!(producers.find(&definition), Some(request("b")));
        drop(second);
        assert!(producers.0.lock().by_head.is_empty());
        assert!(producers.find(&pb::Definition::default()).is_none());
    }
}
