//! Making an image of a result: configs, manifests and, for several platforms
//! or with attestations, an index.

use std::collections::BTreeMap;

use base::{Compatibility, Descriptor, Digest, Failure, Platform};
use futures_util::future::try_join_all;
use store::{Pin, Store};

use crate::annotations::Annotations;
use crate::attest;
use crate::config::{self, Patch};
use crate::content::{Content, Layer};
use crate::epoch::{self, Epoch, Time};
use crate::error::Error;
use crate::estargz;
use crate::manifest::{self, Index, Manifest, Types};
use crate::options::ImageOptions;
use crate::platforms::{PlatformEntry, metadata_for, platforms};
use crate::rewrite::rewrite;
use crate::supplement::supplement;
use crate::{Context, Source};

const CONFIG: &str = "containerimage.config";
const BASE_CONFIG: &str = "containerimage.base.config";

/// An image in the making.
pub(crate) struct Image {
    /// Its root: a manifest or an index.
    pub(crate) descriptor: Descriptor,
    /// The config, when there is only one.
    pub(crate) config: Option<Digest>,
    /// Everything it consists of.
    pub(crate) content: Content,
    /// The epoch that holds for all platforms, if there is one.
    pub(crate) epoch: Epoch,
}

/// Makes an image of `source`.
///
/// # Errors
/// When the result does not fit the options, or the store fails.
pub(crate) async fn commit(
    store: &Store,
    source: &Source,
    options: &ImageOptions,
    context: &Context,
    kind: &str,
) -> Result<Image, Failure> {
    let mut maker = Maker::new(store, source, options, context, kind)?;
    let list = platforms(&source.metadata)?;
    let attested = |p: &PlatformEntry| {
        source
            .attestations
            .get(&p.id)
            .is_some_and(|all| all.iter().any(|a| options.inline_attestations || !a.is_inline_only()))
    };
    let descriptor = if source.is_map() || list.iter().any(attested) {
        maker.index(&list).await?
    } else {
        maker.single(&list).await?
    };
    let epoch = maker.epoch.flatten();
    Ok(Image { descriptor, config: maker.config, content: maker.content, epoch })
}

struct Maker<'a> {
    store: &'a Store,
    source: &'a Source,
    options: &'a ImageOptions,
    context: &'a Context,
    types: Types,
    /// The outer none: every platform has its own, or none.
    epoch: Option<Epoch>,
    config: Option<Digest>,
    content: Content,
}

impl<'a> Maker<'a> {
    fn new(
        store: &'a Store,
        source: &'a Source,
        options: &'a ImageOptions,
        context: &'a Context,
        kind: &str,
    ) -> Result<Self, Error> {
        if source.is_map() && !source.metadata.contains_key("refs.platforms") {
            return Err(Error::shape("unable to export multiple refs, missing platforms mapping"));
        }
        options.validate()?;
        if context.compatibility == Compatibility::V10
            && options.compression.kind == store::CompressionKind::Zstd
        {
            let what = format!("compatibility-version 10 does not support {kind} exporter compression=zstd");
            return Err(Error::shape(what));
        }
        let epoch = match &options.epoch {
            Some(epoch) => Some(epoch.clone()),
            None => epoch::from_metadata(&source.metadata, None)?.filter(Option::is_some),
        };
        for platform in options.annotations.platforms() {
            if source.find(platform).is_none() {
                return Err(Error::AnnotationPlatform { platform: platform.to_owned() });
            }
        }
        if !options.oci_types() && options.annotations.need_oci() {
            return Err(Error::Conflict("cannot export annotations with \"oci-mediatypes=false\""));
        }
        let types = Types::new(options.oci_types());
        Ok(Self { store, source, options, context, types, epoch, config: None, content: Content::default() })
    }

    async fn single(&mut self, list: &[PlatformEntry]) -> Result<Descriptor, Failure> {
        let [platform] = list else {
            return Err(
                Error::shape("cannot export multiple platforms without multi-platform enabled").into()
            );
        };
        let annotations = self.options.annotations.of(None);
        if !annotations.index.is_empty() || !annotations.index_descriptor.is_empty() {
            return Err(Error::shape("index annotations not supported for single platform export").into());
        }
        let layers = self.layers(std::slice::from_ref(platform)).await?.pop().unwrap_or_default();
        let mut descriptor = self.manifest(platform, &layers, annotations).await?;
        descriptor.platform = Some(platform.platform.clone());
        Ok(descriptor)
    }

    async fn index(&mut self, list: &[PlatformEntry]) -> Result<Descriptor, Failure> {
        if !self.options.oci_types() && !self.source.attestations.is_empty() {
            return Err(Error::Conflict("cannot export attestations with \"oci-mediatypes=false\"").into());
        }
        let all = self.layers(list).await?;
        let mut manifests = Vec::new();
        let mut attestations = Vec::new();
        for (platform, layers) in list.iter().zip(&all) {
            let annotations = self.options.annotations.of(Some(&platform.platform));
            let mut descriptor = self.manifest(platform, layers, annotations).await?;
            descriptor.platform = Some(platform.platform.clone());
            if let Some(statements) = self.statements(platform, layers, &descriptor).await? {
                attestations.push(self.attestation(&descriptor, statements).await?);
            }
            manifests.push(descriptor);
        }
        manifests.extend(attestations);
        self.config = None;

        let annotations = self.options.annotations.of(None);
        let index = Index {
            schema_version: 2,
            media_type: self.types.index.to_owned(),
            manifests,
            annotations: annotations.index,
        };
        let bytes = manifest::json(&index)?;
        let mut descriptor = describe(self.types.index, &bytes);
        descriptor.annotations = annotations.index_descriptor;
        self.write(format!("exporting manifest list {}", descriptor.digest), vec![bytes]).await?;
        Ok(descriptor)
    }

    /// The layers of each platform, bottom first.
    async fn layers(&self, list: &[PlatformEntry]) -> Result<Vec<Vec<Layer>>, Failure> {
        let mut trees = Vec::new();
        for platform in list {
            let tree = self.source.find(&platform.id);
            trees.push(
                tree.ok_or_else(|| Error::shape(format!("failed to find ref for ID {}", platform.id)))?,
            );
        }
        let _status = self.context.progress.counter("exporting layers", 0);
        let all = trees.into_iter().map(|tree| async move {
            match tree {
                None => Ok(Vec::new()),
                Some(tree) => {
                    let layers = tree.layers(self.options.compression).await?;
                    Ok(layers.into_iter().map(Layer::from).collect())
                }
            }
        });
        self.context.scope.run(try_join_all(all)).await
    }

    fn epoch_of(&self, platform: &PlatformEntry) -> Result<Epoch, Error> {
        match &self.epoch {
            Some(epoch) => Ok(epoch.clone()),
            None => Ok(epoch::from_metadata(&self.source.metadata, Some(&platform.id))?.flatten()),
        }
    }

    /// Writes config and manifest of one platform.
    async fn manifest(
        &mut self,
        platform: &PlatformEntry,
        layers: &[Layer],
        annotations: Annotations,
    ) -> Result<Descriptor, Failure> {
        let epoch = self.epoch_of(platform)?;
        let rewritten;
        let layers = match &epoch {
            Some(epoch) if self.options.rewrite_timestamp => {
                let base = metadata_for(&self.source.metadata, BASE_CONFIG, Some(platform));
                let compression = self.options.compression;
                rewritten = rewrite(self.store, layers, base, epoch, compression, self.context).await?;
                &rewritten
            }
            _ => layers,
        };
        let converted;
        let layers = if self.options.estargz {
            converted = estargz::convert(self.store, layers, self.options.compression, self.context).await?;
            &converted
        } else {
            layers
        };
        let cache = match &self.context.inline_cache {
            Some(cache) => cache.entry(Some(&platform.id), self.options.compression).await?,
            None => None,
        };
        let config = self.config_bytes(platform, layers, epoch.as_ref(), cache.as_deref())?;
        let config_descriptor = describe(self.types.config, &config);
        self.config = Some(config_descriptor.digest.clone());

        let keep = self.options.prefer_nondist_layers;
        let list: Vec<_> = layers.iter().map(|layer| self.types.layer(layer, keep)).collect();
        for layer in layers {
            self.content.add_layer(layer);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: self.types.manifest.to_owned(),
            artifact_type: None,
            config: config_descriptor.clone(),
            layers: (!list.is_empty()).then_some(list),
            subject: None,
            annotations: annotations.manifest,
        };
        let bytes = manifest::json(&manifest)?;
        let mut descriptor = describe(self.types.manifest, &bytes);
        descriptor.annotations = annotations.manifest_descriptor;
        self.write(format!("exporting manifest {}", descriptor.digest), vec![bytes]).await?;
        self.write(format!("exporting config {}", config_descriptor.digest), vec![config]).await?;
        Ok(descriptor)
    }

    fn config_bytes(
        &self,
        platform: &PlatformEntry,
        layers: &[Layer],
        epoch: Option<&Time>,
        inline_cache: Option<&[u8]>,
    ) -> Result<Vec<u8>, Error> {
        let metadata = &self.source.metadata;
        let given = metadata_for(metadata, CONFIG, Some(platform)).filter(|json| !json.is_empty());
        let default;
        let given = match given {
            Some(json) => json,
            None => {
                default = config::default_config(&Platform::host())?;
                &default
            }
        };
        let base = metadata_for(metadata, BASE_CONFIG, Some(platform));
        config::patch(given, &Patch { layers, base, epoch, inline_cache })
    }

    /// The statements about a platform's manifest.
    async fn statements(
        &self,
        platform: &PlatformEntry,
        layers: &[Layer],
        about: &Descriptor,
    ) -> Result<Option<Vec<attest::Statement>>, Failure> {
        let Some(all) = self.source.attestations.get(&platform.id) else { return Ok(None) };
        let all = all.iter().filter(|a| self.options.inline_attestations || !a.is_inline_only());
        let all: Vec<_> = all.cloned().collect();
        if all.is_empty() {
            return Ok(None);
        }
        let all = attest::unbundle(&all).await?;
        let all = try_join_all(all.into_iter().map(|a| supplement(a, layers))).await?;
        let subjects = attest::image_subjects(&self.options.name, &platform.platform, &about.digest)?;
        attest::statements(&all, &subjects).await.map(Some)
    }

    /// Writes the manifest that holds `statements` about `target`.
    async fn attestation(
        &mut self,
        target: &Descriptor,
        statements: Vec<attest::Statement>,
    ) -> Result<Descriptor, Failure> {
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        for statement in statements {
            let bytes = statement.json.into_bytes();
            let mut descriptor = describe(attest::MEDIA_TYPE, &bytes);
            let key = "in-toto.io/predicate-type".to_owned();
            descriptor.annotations = BTreeMap::from([(key, statement.predicate_type)]);
            layers.push(descriptor);
            blobs.push(bytes);
        }
        let artifact = self.options.oci_artifact();
        let (config, config_bytes) = if artifact {
            let bytes = b"{}".to_vec();
            let mut config = describe(manifest::EMPTY, &bytes);
            config.data = Some("e30=".to_owned());
            (config, bytes)
        } else {
            let digests: Vec<_> = layers.iter().map(|l| l.digest.clone()).collect();
            let bytes = config::attestation_config(&digests)?;
            (describe(self.types.config, &bytes), bytes)
        };
        let subject = Descriptor::new(target.media_type.clone(), target.digest.clone(), target.size);
        let manifest = Manifest {
            schema_version: 2,
            media_type: self.types.manifest.to_owned(),
            artifact_type: artifact.then(|| manifest::ATTESTATION.to_owned()),
            config,
            layers: (!layers.is_empty()).then_some(layers),
            subject: artifact.then_some(subject),
            annotations: BTreeMap::new(),
        };
        let bytes = manifest::json(&manifest)?;
        let mut descriptor = describe(self.types.manifest, &bytes);
        blobs.extend([config_bytes, bytes]);
        self.write(format!("exporting attestation manifest {}", descriptor.digest), blobs).await?;
        descriptor.annotations = BTreeMap::from([
            ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
            ("vnd.docker.reference.digest".to_owned(), target.digest.to_string()),
        ]);
        descriptor.platform =
            Some(Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() });
        Ok(descriptor)
    }

    /// Writes blobs, and says so.
    async fn write(&mut self, status: String, all: Vec<Vec<u8>>) -> Result<(), Failure> {
        let status = self.context.progress.counter(status, 0);
        let blobs = self.store.blobs().clone();
        let pins: Vec<Pin> = base::task::blocking(move || {
            let write = |bytes: &Vec<u8>| Ok(blobs.write(bytes, BTreeMap::new())?);
            all.iter().map(write).collect()
        })
        .await?;
        status.finish();
        pins.into_iter().for_each(|pin| self.content.add(pin));
        Ok(())
    }
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}
