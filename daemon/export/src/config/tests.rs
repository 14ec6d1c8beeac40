use super::*;
use crate::content::Fetch;
use async_trait::async_trait;
use base::{Descriptor, Failure, Timestamp};
use std::sync::Arc;

struct Nowhere;

#[async_trait]
impl Fetch for Nowhere {
    async fn fetch(&self) -> Result<store::Pin, Failure> {
        Err(Failure::internal("nowhere"))
    }
}

fn layer(name: &str, secs: i64, description: &str) -> Layer {
    Layer {
        descriptor: Descriptor::new("t", Digest::of(name), 1),
        diff_id: Digest::of(name),
        created_at: Some(Timestamp::from_secs(secs)),
        description: Some(description.to_owned()),
        bytes: Arc::new(Nowhere),
    }
}

fn patched(config: &str, layers: &[Layer], epoch: Option<i64>, base: Option<&str>) -> String {
    let epoch = epoch.and_then(Time::from_secs);
    let with = Patch { layers, base: base.map(str::as_bytes), epoch: epoch.as_ref(), inline_cache: None };
    String::from_utf8(patch(config.as_bytes(), &with).unwrap()).unwrap()
}
