//! `image`: an image in the daemon's store and, on request, in registries.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Compatibility, Descriptor, Digest, Failure, Timestamp, gojson};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use store::Compression;

use crate::commit::{self, commit};
use crate::error::Error;
use crate::names::{Images, Named};
use crate::options::{Attrs, ImageOptions, take_flag};
use crate::push::{Push, push};
use crate::{Context, Deps, Exported, Exporter, Source};

/// The exporter.
pub(crate) struct Image {
    id: i64,
    attrs: Attrs,
    deps: Deps,
    options: ImageOptions,
    push: bool,
    push_by_digest: bool,
    insecure: bool,
    unpack: bool,
    /// Not said: when the image is not pushed, as it is lost otherwise.
    store: Option<bool>,
    name_canonical: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
    /// Options nobody knows, for the frontend's metadata.
    metadata: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// # Errors
    /// An option that makes no sense.
    pub(crate) fn new(id: i64, attrs: Attrs, deps: Deps) -> Result<Self, Error> {
        let mut rest = attrs.clone();
        let options = ImageOptions::take(&mut rest, true)?;
        let stored = rest.contains_key("store");
        let store = take_flag(&mut rest, "store", true)?;
        // A test option of other implementations; lazy layers never have to be here.
        take_flag(&mut rest, "unsafe-internal-store-allow-incomplete", false)?;
        Ok(Self {
            id,
            attrs,
            deps,
            options,
            push: take_flag(&mut rest, "push", false)?,
            push_by_digest: take_flag(&mut rest, "push-by-digest", false)?,
            insecure: take_flag(&mut rest, "registry.insecure", false)?,
            unpack: take_flag(&mut rest, "unpack", false)?,
            store: stored.then_some(store),
            name_canonical: take_flag(&mut rest, "name-canonical", false)?,
            dangling_prefix: rest.remove("dangling-name-prefix").unwrap_or_default(),
            dangling_empty_only: take_flag(&mut rest, "danging-name-empty-only", false)?,
            metadata: rest.into_iter().map(|(key, value)| (key, value.into_bytes())).collect(),
        })
    }

    /// The image's names, and whether each is also to be kept with its digest.
    fn names(&self, source: &Source, digest: &Digest) -> (String, bool) {
        let mut names = self.options.name.clone();
        if let Some(given) = source.metadata.get("image.name").filter(|_| names == "*") {
            names = String::from_utf8_lossy(given).into_owned();
        }
        let mut canonical = self.name_canonical;
        if !self.dangling_prefix.is_empty() && (!self.dangling_empty_only || names.is_empty()) {
            let dangling = format!("{}@{digest}", self.dangling_prefix);
            if names.is_empty() {
                names = dangling;
                canonical = false;
            } else {
                names = format!("{names},{dangling}");
            }
        }
        (names, canonical)
    }

    /// Gives the image its name in the store.
    async fn name(
        &self,
        name: &str,
        canonical: bool,
        image: &commit::Image,
        context: &Context,
    ) -> Result<(), Failure> {
        let status = context.progress.counter(format!("naming to {name}"), 0);
        let mut names = vec![name.to_owned()];
        if canonical && !name.contains('@') {
            names.push(format!("{name}@{}", image.descriptor.digest));
        }
        let updated = image.epoch.as_ref().map_or_else(Timestamp::now, crate::epoch::Time::timestamp);
        let named = Named { descriptor: image.descriptor.clone(), updated };
        let digests = image.content.digests();
        let store = self.deps.store.clone();
        base::task::blocking(move || {
            // Layers that are not here stay away; the pins keep what is.
            let mut pins = Vec::new();
            for digest in &digests {
                pins.extend(store.blobs().pin(digest)?);
            }
            let here: Vec<_> = pins.iter().map(|pin| pin.digest().clone()).collect();
            let images = Images::new(store);
            for name in names {
                images.set(&name, &named, &here)?;
            }
            Ok(())
        })
        .await?;
        status.finish();
        Ok(())
    }
}

#[async_trait]
impl Exporter for Image {
    fn id(&self) -> i64 {
        self.id
    }

    fn name(&self) -> String {
        "exporting to image".to_owned()
    }

    fn kind(&self) -> &'static str {
        "image"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn compression(&self) -> Compression {
        self.options.compression
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported, Failure> {
        let mut source = source.clone();
        source.metadata.extend(self.metadata.clone());
        let mut options = self.options.clone();
        options.annotations.add_metadata(&source.metadata)?;
        options.settle(default_oci_types(context, &source), context.compatibility);
        if self.unpack && options.rewrite_timestamp {
            let what = "exporter option \"rewrite-timestamp\" conflicts with \"unpack\"";
            return Err(Error::Conflict(what).into());
        }
        let mut image = commit(&self.deps.store, &source, &options, context, self.kind()).await?;

        let mut response = response(&mut image)?;
        let (names, canonical) = self.names(&source, &image.descriptor.digest);
        let mut targets = Vec::new();
        for name in names.split(',').filter(|_| !names.is_empty()) {
            if self.store.unwrap_or(!self.push) {
                self.name(name, canonical, &image, context).await?;
            }
            if self.push {
                targets.push(name.to_owned());
            }
        }
        if !names.is_empty() {
            response.insert("image.name".to_owned(), names);
        }
        let pins = image.content.own().to_vec();
        let descriptor = image.descriptor.clone();
        let mut exported = Exported { response, descriptor: Some(descriptor), pins, finalize: None };
        if !targets.is_empty() {
            let job = Push {
                registries: self.deps.registries.clone(),
                store: self.deps.store.clone(),
                access: context.access.clone().insecure(self.insecure),
                root: image.descriptor,
                content: Arc::new(image.content),
                by_digest: self.push_by_digest,
                progress: context.progress.clone(),
            };
            let scope = context.scope.clone();
            exported.finalize = Some(Box::pin(async move {
                for target in targets {
                    let pushed = scope.run(push(&job, &target)).await;
                    pushed.map_err(|e| e.context(format!("failed to push {target}")))?;
                }
                Ok(())
            }));
        }
        Ok(exported)
    }
}

/// Whether images have OCI media types when nobody said.
pub(crate) fn default_oci_types(context: &Context, source: &Source) -> bool {
    context.compatibility >= Compatibility::V30 || !source.attestations.is_empty()
}

/// What the client is told of the image.
///
/// # Errors
/// Never in fact.
pub(crate) fn response(image: &mut commit::Image) -> Result<BTreeMap<String, String>, Error> {
    let mut out = BTreeMap::new();
    out.insert("containerimage.digest".to_owned(), image.descriptor.digest.to_string());
    if let Some(config) = &image.config {
        out.insert("containerimage.config.digest".to_owned(), config.to_string());
    }
    out.insert("containerimage.descriptor".to_owned(), encode(&image.descriptor)?);
    Ok(out)
}

fn encode(descriptor: &Descriptor) -> Result<String, Error> {
    let json = gojson::to_vec(descriptor).map_err(Error::json("failed to marshal descriptor"))?;
    Ok(STANDARD.encode(json))
}
