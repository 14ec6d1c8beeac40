//! `oci` and `docker`: an image as an archive at the client, or its blobs in a
//! content store there.
//!
//! Both archives are OCI layouts. The Docker one has a `manifest.json` beside,
//! for `docker load`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base::descriptor::media;
use base::{Descriptor, Failure, Timestamp, gojson};
use bytes::Bytes;
use registry::{MAX_MANIFEST, Reference};
use serde::Serialize;
use session::{Caller, Deliver};
use store::{Compression, Pin};
use tokio::io::AsyncReadExt;

use crate::archive::{self, Body};
use crate::commit::{self, commit};
use crate::epoch::Time;
use crate::error::Error;
use crate::image::{default_oci_types, response};
use crate::manifest::{Index, Manifest};
use crate::options::{Attrs, ImageOptions, take_flag};
use crate::{Context, Deps, Exported, Exporter, Source};

const CREATED: &str = "org.opencontainers.image.created";
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The client's content store that takes exports.
const STORE: &str = "export";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Oci,
    Docker,
}

impl Variant {
    fn as_str(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Docker => "docker",
        }
    }
}

/// The exporter.
pub(crate) struct Archive {
    variant: Variant,
    id: i64,
    attrs: Attrs,
    deps: Deps,
    options: ImageOptions,
    tar: bool,
    /// Options nobody knows, for the frontend's metadata.
    metadata: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    /// # Errors
    /// An option that makes no sense.
    pub(crate) fn new(variant: Variant, id: i64, attrs: Attrs, deps: Deps) -> Result<Self, Error> {
        let mut rest = attrs.clone();
        let options = ImageOptions::take(&mut rest, false)?;
        let tar = take_flag(&mut rest, "tar", true)?;
        let metadata = rest.into_iter().map(|(key, value)| (key, value.into_bytes())).collect();
        Ok(Self { variant, id, attrs, deps, options, tar, metadata })
    }

    fn names(&self, source: &Source) -> Result<Vec<Reference>, Error> {
        let mut names = self.options.name.clone();
        if let Some(given) = source.metadata.get("image.name").filter(|_| names == "*") {
            names = String::from_utf8_lossy(given).into_owned();
        }
        let names = names.split(',').filter(|_| !names.is_empty());
        names
            .map(|name| {
                let parsed: Result<Reference, _> = name.parse();
                let bad = |source| Error::Name { name: name.to_owned(), source };
                parsed.map(Reference::tag_name_only).map_err(bad)
            })
            .collect()
    }

    /// Writes the archive to the client.
    async fn send(
        &self,
        caller: &Caller,
        parts: Parts,
        root: &Descriptor,
        names: &[Reference],
        response: &BTreeMap<String, String>,
        context: &Context,
    ) -> Result<(), Failure> {
        let mut entries = vec![
            ("oci-layout".to_owned(), 0o444, Body::Bytes(b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec())),
            ("index.json".to_owned(), 0o644, Body::Bytes(layout_index(root, names)?)),
            ("blobs/".to_owned(), 0o755, Body::Dir),
        ];
        if let Some(manifest) = parts.single.as_ref().filter(|_| self.variant == Variant::Docker) {
            entries.push(("manifest.json".to_owned(), 0o644, Body::Bytes(docker_manifest(manifest, names)?)));
        }
        for pin in parts.blobs.into_iter().chain(parts.manifests) {
            let digest = pin.digest();
            entries.push((format!("blobs/{}/", digest.algorithm()), 0o755, Body::Dir));
            entries.push((blob_path(digest), 0o444, Body::Blob(pin)));
        }
        let to = Deliver { exporter: self.id, metadata: response.clone(), multi_platform: false };
        let file = caller.send_stream(&to)?;
        let status = context.progress.counter("sending tarball", 0);
        context.scope.run(archive::send(file, move |out| archive::write(out, entries))).await?;
        status.finish();
        Ok(())
    }
}

/// All blobs of an image, here.
#[derive(Default)]
struct Parts {
    blobs: Vec<Pin>,
    /// Those inside an index before the index.
    manifests: Vec<Pin>,
    /// The image's manifest, when there is no index.
    single: Option<Manifest>,
}

#[async_trait]
impl Exporter for Archive {
    fn id(&self) -> i64 {
        self.id
    }

    fn name(&self) -> String {
        format!("exporting to {} image format", self.variant.as_str())
    }

    fn kind(&self) -> &'static str {
        self.variant.as_str()
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn compression(&self) -> Compression {
        self.options.compression
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported, Failure> {
        if self.variant == Variant::Docker && source.is_map() {
            let what = "docker exporter does not currently support exporting manifest lists";
            return Err(Error::shape(what).into());
        }
        let mut source = source.clone();
        source.metadata.extend(self.metadata.clone());
        let mut options = self.options.clone();
        options.annotations.add_metadata(&source.metadata)?;
        let oci = self.variant == Variant::Oci || default_oci_types(context, &source);
        options.settle(oci, context.compatibility);
        let mut image = commit(&self.deps.store, &source, &options, context, self.kind()).await?;
        let created = image.epoch.clone().unwrap_or_else(|| Time::from(Timestamp::now())).to_seconds();
        image.descriptor.annotations.entry(CREATED.to_owned()).or_insert(created);

        let mut response = response(&mut image)?;
        let names = self.names(&source)?;
        if !names.is_empty() {
            let all: Vec<_> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".to_owned(), all.join(","));
        }
        let caller = context.caller(&self.deps.sessions).await?;
        let parts = context.scope.run(self.parts(&image)).await?;
        let root = &image.descriptor;
        if self.tar {
            self.send(&caller, parts, root, &names, &response, context).await?;
        } else {
            for pin in parts.blobs.into_iter().chain(parts.manifests) {
                context.scope.run(copy_blob(&caller, STORE, &pin)).await?;
            }
        }
        let pins = image.content.own().to_vec();
        Ok(Exported { response, descriptor: Some(image.descriptor), pins, finalize: None })
    }
}

impl Archive {
    /// Brings everything the image consists of here.
    async fn parts(&self, image: &commit::Image) -> Result<Parts, Failure> {
        let mut parts = Parts::default();
        let content = &image.content;
        let read =
            |digest: base::Digest| async move { content.read(&self.deps.store, &digest, MAX_MANIFEST).await };
        let root = &image.descriptor;
        let mut manifests = Vec::new();
        if media::is_index(&root.media_type) {
            let index: Index = parse(&read(root.digest.clone()).await?)?;
            manifests.extend(index.manifests);
        }
        let inner = if manifests.is_empty() { vec![root.clone()] } else { manifests };
        for descriptor in inner.iter().filter(|d| media::is_manifest(&d.media_type)) {
            let manifest: Manifest = parse(&read(descriptor.digest.clone()).await?)?;
            for blob in manifest.layers.iter().flatten().chain([&manifest.config]) {
                parts.blobs.push(content.fetch(&blob.digest).await?);
            }
            parts.manifests.push(content.fetch(&descriptor.digest).await?);
            if descriptor.digest == root.digest {
                parts.single = Some(manifest);
            }
        }
        if parts.single.is_none() {
            parts.manifests.push(content.fetch(&root.digest).await?);
        }
        Ok(parts)
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(Error::json("invalid manifest"))
}

fn blob_path(digest: &base::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// `index.json`: the image, once for each of its names.
fn layout_index(root: &Descriptor, names: &[Reference]) -> Result<Vec<u8>, Error> {
    let mut manifests: Vec<Descriptor> = names
        .iter()
        .map(|name| {
            let mut descriptor = root.clone();
            let full = name.to_string();
            descriptor.annotations.insert(REF_NAME.to_owned(), object(&full).to_owned());
            descriptor.annotations.insert(IMAGE_NAME.to_owned(), full);
            descriptor
        })
        .collect();
    if manifests.is_empty() {
        manifests.push(root.clone());
    }
    let media_type = media::OCI_INDEX.to_owned();
    let index = Index { schema_version: 2, media_type, manifests, annotations: BTreeMap::new() };
    gojson::to_vec(&index).map_err(Error::json("failed to marshal index"))
}

/// What comes after the repository: a tag, or `@` and a digest.
fn object(name: &str) -> &str {
    let path = name.split_once('/').map_or(name, |(_, path)| path);
    match path.find([':', '@']) {
        Some(at) => path[at..].strip_prefix(':').unwrap_or(&path[at..]),
        None => "",
    }
}

/// `manifest.json`, as `docker load` reads it. What is empty is `null`.
fn docker_manifest(manifest: &Manifest, names: &[Reference]) -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    let layers: Vec<_> = manifest.layers.iter().flatten().map(|layer| blob_path(&layer.digest)).collect();
    let tags: Vec<_> = names.iter().map(Reference::familiar).collect();
    let entry = Entry {
        config: blob_path(&manifest.config.digest),
        repo_tags: (!tags.is_empty()).then_some(tags),
        layers: (!layers.is_empty()).then_some(layers),
    };
    gojson::to_vec(&[entry]).map_err(Error::json("unable to create manifests file"))
}

/// Writes a blob into the client's content store `store`, unless it is there.
///
/// # Errors
/// When the client does not take it, or it cannot be read.
pub async fn copy_blob(caller: &Caller, store: &str, pin: &Pin) -> Result<(), Failure> {
    let digest = pin.digest();
    let reference = format!("blob-{digest}");
    let Some(mut writer) = caller.write_blob(store, &reference, digest, pin.size()).await? else {
        return Ok(());
    };
    let offset = writer.offset();
    let opened = pin.clone();
    let file = base::task::blocking(move || Ok(opened.open()?)).await?;
    let mut file = tokio::fs::File::from_std(file);
    let unreadable = |e| Failure::internal(format!("read blob {digest}: {e}"));
    tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(offset)).await.map_err(unreadable)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer).await.map_err(unreadable)?;
        if n == 0 {
            break;
        }
        writer.write(Bytes::copy_from_slice(&buffer[..n])).await?;
    }
    Ok(writer.commit().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Digest;

    #[test]
    fn tags_are_what_comes_after_the_repository() {
        for (name, want) in [
            ("docker.io/library/alpine:3", "3"),
            ("localhost:5000/a/b:latest", "latest"),
            ("docker.io/library/a@sha256:ab", "@sha256:ab"),
            ("docker.io/library/a:t@sha256:ab", "t@sha256:ab"),
        ] {
            assert_eq!(object(name), want);
        }
    }

    #[test]
    fn the_docker_manifest_names_blobs() {
        let digest = Digest::of("x");
        let manifest = Manifest {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: None,
            config: Descriptor::new("c", digest.clone(), 1),
            layers: None,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let names = ["alpine".parse::<Reference>().unwrap().tag_name_only()];
        let json = String::from_utf8(docker_manifest(&manifest, &names).unwrap()).unwrap();
        let hex = digest.hex();
        assert_eq!(
            json,
            format!(
                "[{{\"Config\":\"blobs/sha256/{hex}\",\"RepoTags\":[\"alpine:latest\"],\"Layers\":null}}]"
            )
        );
    }
}
