//! What clients are told this daemon can do: what it does, and nothing more.

use std::collections::BTreeMap;

use frontend::gateway::{CapSet, Options, Worker};
use llb::caps;

use crate::builder::Deps;

/// Parts of LLB and of the gateway that are not there yet. Clients ask for
/// capabilities before they use them; what is not announced is not asked for.
const MISSING: &[&str] = &[caps::EXEC_META_SECURITY_DEVICES_V1];

fn set(known: &'static [caps::Cap]) -> CapSet {
    let all = caps::announce(known).into_iter();
    let there = all.filter(|c| !MISSING.contains(&c.id.as_str()));
    CapSet::announced(known, there.collect())
}

/// What a frontend is started with.
pub(crate) fn options(deps: &Deps, session: &str, opts: BTreeMap<String, String>) -> Options {
    Options {
        opts,
        session_id: session.to_owned(),
        product: "buildkit-cni".to_owned(),
        workers: vec![Worker {
            id: deps.info.id.clone(),
            labels: deps.info.labels.clone(),
            platforms: deps.worker.platforms.clone(),
        }],
        caps: set(caps::FRONTEND),
        llb_caps: set(caps::LLB),
    }
}
