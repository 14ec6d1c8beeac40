//! `registry`: caches and images in registries.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Descriptor, Failure};
use bytes::Bytes;
use registry::{Access, Reference, Repository};

use crate::collect::Had;
use crate::content::Target;
use crate::imported::Place;
use crate::options::{Attrs, flag, text};
use crate::{Deps, Error};

/// Which one.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) reference: Reference,
    insecure: bool,
}

impl Named {
    /// # Errors
    /// When there is no name, or it is none.
    pub(crate) fn new(attrs: &Attrs) -> Result<Self, Failure> {
        let name = text(attrs, "ref").ok_or_else(|| Error::attribute("missing ref"))?;
        let reference = name.parse::<Reference>()?.tag_name_only();
        Ok(Self { reference, insecure: flag(attrs, "registry.insecure")?.unwrap_or(false) })
    }

    fn access(&self, access: &Access) -> Access {
        access.clone().insecure(self.insecure)
    }

    pub(crate) async fn target(&self, deps: &Deps, access: &Access) -> Result<Pusher, Failure> {
        let repository = deps.images.registries().repository(&self.reference, &self.access(access)).await?;
        Ok(Pusher { repository, store: deps.store.clone() })
    }

    pub(crate) async fn find(&self, deps: &Deps, access: &Access) -> Result<(Place, Descriptor), Failure> {
        let access = self.access(access);
        let root = deps.images.registries().repository(&self.reference, &access).await?.resolve().await?;
        let source = deps.images.layers(self.reference.clone(), access);
        // An insecure registry would not be found again by its name alone.
        let origin = (!self.insecure).then(|| self.reference.to_string());
        Ok((Place { source, fleeting: self.insecure, origin }, root))
    }
}

/// A repository that takes a cache.
pub(crate) struct Pusher {
    repository: Repository,
    store: store::Store,
}

#[async_trait]
impl Target for Pusher {
    async fn layer(&self, descriptor: &Descriptor, had: &Had) -> Result<(), Failure> {
        let mut descriptor = descriptor.clone();
        let origin = had.origin.as_ref().and_then(|name| name.parse::<Reference>().ok());
        if let Some(origin) = origin {
            let label = export::source_label(origin.domain());
            descriptor.annotations.insert(label, origin.path().to_owned());
        }
        export::push_blob(&self.store, &self.repository, &descriptor, Arc::new(had.blob.clone())).await
    }

    async fn config(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
        self.repository.push_blob(descriptor, Arc::new(bytes), &[], None).await?;
        Ok(())
    }

    async fn manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Failure> {
        let tag = self.repository.reference().tag();
        self.repository.push_manifest(bytes, &descriptor.media_type, tag).await?;
        Ok(())
    }
}
