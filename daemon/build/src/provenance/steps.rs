//! A definition as the steps of a document.

use std::collections::{BTreeMap, HashMap};

use base::{Digest, Failure};
use llb::GoJson;
use prost::Message as _;
use proto::pb;
use serde_json::{Value, json};

/// The steps of `definition`, inputs first, and their places by digest. Empty
/// when there is nothing in it.
///
/// # Errors
/// When it is no definition.
pub(crate) fn steps(definition: &pb::Definition) -> Result<(Vec<Value>, BTreeMap<Digest, usize>), Failure> {
    let mut ops: HashMap<Digest, pb::Op> = HashMap::with_capacity(definition.def.len());
    let mut last = None;
    for bytes in &definition.def {
        let mut op = pb::Op::decode(&**bytes)
            .map_err(|e| Failure::invalid(format!("failed to parse llb proto op: {e}")))?;
        if let Some(pb::op::Op::Source(source)) = &mut op.op {
            // They are of one client at one time.
            source.attrs.remove(llb::attr::LOCAL_SESSION);
            source.attrs.remove(llb::attr::LOCAL_UNIQUE);
        }
        let digest = Digest::of(bytes);
        ops.insert(digest.clone(), op);
        last = Some(digest);
    }
    let Some(last) = last else { return Ok(Default::default()) };
    if ops.get(&last).is_some_and(|op| op.op.is_some() || op.inputs.len() != 1) {
        return Err(Failure::invalid("invalid last vertex of a definition"));
    }
    let order = order(&ops, last)?;
    let places: BTreeMap<Digest, usize> = order.iter().cloned().zip(0..).collect();
    let place = |digest: &str| digest.parse::<Digest>().ok().and_then(|d| places.get(&d).copied());
    let mut steps = Vec::with_capacity(order.len());
    for (at, digest) in order.iter().enumerate() {
        let Some(mut op) = ops.remove(digest) else { continue };
        let inputs: Vec<String> = std::mem::take(&mut op.inputs)
            .iter()
            .map(|input| format!("step{}:{}", place(&input.digest).unwrap_or_default(), input.index))
            .collect();
        let op = serde_json::to_value(GoJson(&op)).map_err(|e| Failure::internal(e.to_string()))?;
        let mut step = json!({ "id": format!("step{at}"), "op": op });
        if !inputs.is_empty() {
            step["inputs"] = inputs.into();
        }
        steps.push(step);
    }
    Ok((steps, places))
}

/// Inputs before those who need them, from `last` on. Not by recursion:
/// definitions may be deep.
fn order(ops: &HashMap<Digest, pb::Op>, last: Digest) -> Result<Vec<Digest>, Failure> {
    let mut order = Vec::with_capacity(ops.len());
    let mut seen = std::collections::HashSet::from([last.clone()]);
    let mut stack = vec![(last, 0)];
    while let Some((digest, next)) = stack.pop() {
        let op =
            ops.get(&digest).ok_or_else(|| Failure::invalid(format!("failed to find input {digest}")))?;
        let Some(input) = op.inputs.get(next) else {
            order.push(digest);
            continue;
        };
        let below: Digest =
            input.digest.parse().map_err(|e| Failure::invalid(format!("input {}: {e}", input.digest)))?;
        stack.push((digest, next + 1));
        if seen.insert(below.clone()) {
            stack.push((below, 0));
        }
    }
    Ok(order)
}

/// `stepN` by digest.
pub(crate) fn mapping(places: &BTreeMap<Digest, usize>) -> BTreeMap<String, String> {
    places.iter().map(|(digest, at)| (digest.to_string(), format!("step{at}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(inputs: &[&pb::Op], op: Option<pb::op::Op>) -> pb::Op {
        let inputs = inputs.iter().map(|i| pb::Input { digest: digest(i).to_string(), index: 0 });
        pb::Op { inputs: inputs.collect(), op, ..pb::Op::default() }
    }

    fn digest(op: &pb::Op) -> Digest {
        Digest::of(llb::encode(op.clone()))
    }

    #[test]
    fn steps_have_their_inputs_before_them() {
        let source = |name: &str| {
            let attrs = [("local.session", "s"), ("local.followpaths", "x")];
            let attrs = attrs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            op(&[], Some(pb::op::Op::Source(pb::SourceOp { identifier: name.into(), attrs })))
        };
        let (a, b) = (source("local://a"), source("local://b"));
        let merge = op(&[&b, &a], Some(pb::op::Op::Merge(pb::MergeOp::default())));
        let end = op(&[&merge], None);
        let def = [&a, &b, &merge, &end].map(|o| llb::encode(o.clone())).to_vec();
        let definition = pb::Definition { def, ..pb::Definition::default() };
        let (steps, places) = steps(&definition).unwrap();
        assert_eq!(places[&digest(&b)], 0);
        assert_eq!(steps[2]["inputs"], json!(["step0:0", "step1:0"]));
        assert_eq!(
            steps[0]["op"],
            json!({"Op": {"source": {"identifier": "local://b", "attrs": {"local.followpaths": "x"}}}})
        );
        assert_eq!(steps[3], json!({"id": "step3", "op": {"Op": {}}, "inputs": ["step2:0"]}));
        let broken = pb::Definition { def: vec![llb::encode(end)], ..pb::Definition::default() };
        assert!(super::steps(&broken).is_err());
    }
}
