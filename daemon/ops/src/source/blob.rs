//! `docker-image+blob://` and `oci-layout+blob://`: one blob as a file.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Failure, Timestamp, gojson};
use futures_util::{StreamExt as _, TryStreamExt as _};
use proto::pb;
use registry::Reference;
use serde::Serialize;
use solver::{CacheMap, Operation};

use super::Attrs;
use super::file::{NewFile, Pieces, Shape, safe_name};
use super::layout::Layout;
use crate::used::Material;
use crate::{Behalf, Cx, Error, Output, Worker};

pub(crate) const REGISTRY_SCHEME: &str = "docker-image+blob";
pub(crate) const LAYOUT_SCHEME: &str = "oci-layout+blob";

/// Which blob, and where.
#[derive(Debug, Clone)]
pub(crate) struct Locator {
    place: Place,
    /// Without scheme.
    text: String,
    digest: Digest,
}

#[derive(Debug, Clone)]
enum Place {
    Registry(Reference),
    Layout(Layout),
}

impl Locator {
    /// Reads `scheme://name@digest`; attributes name the layout.
    pub(crate) fn parse(identifier: &str, attrs: &Attrs<'_>) -> Result<Self, Failure> {
        let bad = |reason: &str| Error::Blob { identifier: identifier.to_owned(), reason: reason.to_owned() };
        let (scheme, text) = identifier.split_once("://").ok_or_else(|| bad("missing scheme"))?;
        let digest = text.rsplit_once('@').map(|(_, digest)| digest).ok_or_else(|| bad("no digest"))?;
        let digest = digest.parse::<Digest>().map_err(|e| bad(&format!("invalid reference digest: {e}")))?;
        if digest.algorithm() != "sha256" {
            return Err(bad(&format!("digests of the kind {} are not supported", digest.algorithm())).into());
        }
        let place = match scheme {
            REGISTRY_SCHEME => Place::Registry(registry::parse(text)?),
            LAYOUT_SCHEME => {
                let layout = Layout::parse(attrs)?;
                if layout.store().is_empty() {
                    return Err(bad("oci-layout blob source requires store id").into());
                }
                Place::Layout(layout)
            }
            _ => return Err(bad("not the scheme of a blob").into()),
        };
        Ok(Self { place, text: text.to_owned(), digest })
    }

    /// The blob's bytes, not verified.
    pub(crate) async fn open(&self, worker: &Worker, behalf: &Behalf) -> Result<Pieces, Failure> {
        let sessions = behalf.sessions();
        match &self.place {
            Place::Registry(reference) => {
                let access = worker.images.access(&sessions);
                let repository = worker.images.registries().repository(reference, &access).await?;
                let descriptor = repository.stat_blob(&self.digest).await?;
                Ok(repository.open(&descriptor, 0).await?.into_stream().map_err(Failure::from).boxed())
            }
            Place::Layout(layout) => {
                layout.size(&worker.sessions, &sessions, &self.digest).await?;
                layout.open(&worker.sessions, &sessions, &self.digest, 0).await
            }
        }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// With its scheme.
    pub(crate) fn address(&self) -> String {
        let scheme = if self.is_local() { LAYOUT_SCHEME } else { REGISTRY_SCHEME };
        format!("{scheme}://{}", self.text)
    }

    fn is_local(&self) -> bool {
        matches!(self.place, Place::Layout(_))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// A blob as a source.
pub(crate) struct BlobFile {
    worker: Arc<Worker>,
    locator: Locator,
    shape: Shape,
}

/// What the key is made of; the names are those of the reference.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    digest: &'a Digest,
    filename: &'a str,
    perm: i64,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
}

impl BlobFile {
    pub(crate) fn new(worker: Arc<Worker>, op: &pb::SourceOp) -> Result<Self, Failure> {
        let attrs = Attrs::new(op);
        attrs.record_type()?;
        let mut shape = Shape::parse(&attrs)?;
        if attrs.get(llb::attr::HTTP_FILENAME).is_some() {
            shape.filename = safe_name(&shape.filename);
        }
        Ok(Self { worker, locator: Locator::parse(&op.identifier, &attrs)?, shape })
    }

    pub(crate) fn material(&self) -> Material {
        let (reference, digest) = (self.locator.text.clone(), self.locator.digest.clone());
        Material::Blob { reference, digest, local: self.locator.is_local() }
    }
}

#[async_trait]
impl Operation<Output> for BlobFile {
    async fn cache_map(&self, _: usize, _: &Cx) -> Result<CacheMap, Failure> {
        let key = Key {
            digest: self.locator.digest(),
            filename: &self.shape.filename,
            perm: self.shape.perm,
            uid: self.shape.owner.uid,
            gid: self.shape.owner.gid,
        };
        let json = gojson::to_vec(&key).map_err(|e| Failure::internal(e.to_string()))?;
        let digest = super::key_digest(Digest::of(json).as_str());
        Ok(CacheMap { digest, deps: Vec::new(), last: true })
    }

    async fn content_key(&self, _: usize, _: &Output, _: &Cx) -> Result<Option<Digest>, Failure> {
        Ok(None)
    }

    async fn run(&self, _: Vec<Output>, cx: &Cx) -> Result<Vec<Output>, Failure> {
        let behalf = Behalf::of(cx);
        let pieces = cx.scope.run(self.locator.open(&self.worker, &behalf)).await?;
        let expected = self.locator.digest();
        let new = NewFile {
            description: format!("blob {}", self.locator.text()),
            name: if self.shape.filename.is_empty() { expected.hex() } else { &self.shape.filename },
            shape: &self.shape,
            modified: Timestamp::EPOCH,
            gzip: false,
        };
        let (mutable, actual) = new.write(&self.worker, pieces, &behalf).await?;
        if actual != *expected {
            let reason = format!("its content has the digest {actual}");
            return Err(Error::Blob { identifier: self.locator.text().to_owned(), reason }.into());
        }
        Ok(vec![Some(mutable.commit().await?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locators_name_a_digest_and_a_store() {
        let digest = Digest::of("x");
        let read = |scheme: &str, rest: &str, store: &str| {
            let mut op = pb::SourceOp { identifier: format!("{scheme}://{rest}"), ..pb::SourceOp::default() };
            op.attrs.insert(llb::attr::OCI_STORE.to_owned(), store.to_owned());
            Locator::parse(&op.identifier.clone(), &Attrs::new(&op)).map(|l| l.digest)
        };
        let named = format!("h/a@{digest}");
        assert_eq!(read(REGISTRY_SCHEME, &named, "").unwrap(), digest);
        assert_eq!(read(LAYOUT_SCHEME, &named, "s").unwrap(), digest);
        for (scheme, rest, store) in [
            (LAYOUT_SCHEME, named.as_str(), ""),
            (REGISTRY_SCHEME, "h/a:latest", ""),
            (REGISTRY_SCHEME, "h/a@sha256:1", ""),
            (REGISTRY_SCHEME, &format!("h/a@sha512:{}", "0".repeat(128)), ""),
            ("https", &named, ""),
        ] {
            assert!(read(scheme, rest, store).is_err(), "{scheme}://{rest}");
        }
    }
}
