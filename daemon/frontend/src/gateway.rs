//! What a frontend may ask of the daemon while it turns its input into a build.
//!
//! The daemon implements [`Gateway`] once per build and hands it down. Results
//! are named by [`RefId`]: the gateway keeps what they stand for until the build
//! is over, so an id can be copied, sent to a container and sent back, and means
//! nothing to any other build.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base::failure::Range;
use base::{Digest, Failure, Platform, Timestamp};
use proto::moby::buildkit::v1::sourcepolicy::Policy;
use proto::pb;

pub use llb::caps::CapSet;
pub use proto::fsutil::types::Stat;

/// What a frontend may ask of the daemon. Every call is safe to make from many
/// tasks at once and safe to drop; dropping gives up interest in its answer.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// What the frontend was started with, and by whom. Cheap: no round trip.
    fn options(&self) -> &Options;

    /// The named definitions the client gave as inputs.
    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, Failure>;

    /// Plans a definition or runs another frontend. Nothing is made until it is
    /// read, returned or asked for with [`Solve::evaluate`].
    async fn solve(&self, request: Solve) -> Result<FrontendResult, Failure>;

    /// Makes what `reference` stands for.
    async fn evaluate(&self, reference: &RefId) -> Result<(), Failure>;

    /// Reads a file; the whole of it without a range.
    async fn read_file(
        &self,
        reference: &RefId,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, Failure>;

    /// Lists a directory; only names that match `include` when it is not empty.
    async fn read_dir(&self, reference: &RefId, path: &str, include: &str) -> Result<Vec<Stat>, Failure>;

    /// Looks at a file, following links within the result.
    async fn stat_file(&self, reference: &RefId, path: &str) -> Result<Stat, Failure>;

    /// Resolves a source after policy: what it is now, and what it says of itself.
    async fn resolve_source_meta(&self, request: ResolveSource) -> Result<SourceMeta, Failure>;

    /// Tells the author of the build about something. Never fails the build.
    async fn warn(&self, warning: Warning) -> Result<(), Failure>;
}

/// What the frontend was started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--opt` of the client.
    pub opts: BTreeMap<String, String>,
    /// The client's session; empty when there is none.
    pub session_id: String,
    /// The product's name, for hints in errors.
    pub product: String,
    /// The workers; the first is the default.
    pub workers: Vec<Worker>,
    /// What the gateway can do.
    pub caps: CapSet,
    /// What LLB the daemon understands.
    pub llb_caps: CapSet,
}

/// Something that builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub id: String,
    /// What is known of it.
    pub labels: BTreeMap<String, String>,
    /// What it builds for; the first is the default.
    pub platforms: Vec<Platform>,
}

/// A result the gateway keeps for this build.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefId(Arc<str>);

impl RefId {
    /// An id; never empty on the wire, where empty means no result.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RefId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RefId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes; zero: to the end.
    pub length: u64,
}

/// What to plan.
#[derive(Debug, Clone, Default)]
pub struct Solve {
    /// The definition, or the frontend to run.
    pub what: SolveWhat,
    /// Remote caches to look in, beside those of the build.
    pub cache_imports: Vec<CacheImport>,
    /// Policies to apply, beside those of the build.
    pub policies: Vec<Policy>,
    /// Make the result before answering.
    pub evaluate: bool,
}

/// The definition, or the frontend to run.
#[derive(Debug, Clone, Default)]
pub enum SolveWhat {
    /// Nothing: an empty result.
    #[default]
    Scratch,
    /// LLB.
    Definition(Box<pb::Definition>),
    /// Another frontend, such as `gateway.v0`.
    Frontend {
        /// Its name.
        name: String,
        /// Its options.
        opts: BTreeMap<String, String>,
        /// Its inputs.
        inputs: BTreeMap<String, pb::Definition>,
    },
}

impl Solve {
    /// Plans `definition`.
    pub fn definition(definition: pb::Definition) -> Self {
        Self { what: SolveWhat::Definition(Box::new(definition)), ..Self::default() }
    }

    /// Runs the frontend `name`.
    pub fn frontend(
        name: impl Into<String>,
        opts: BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Self {
        Self { what: SolveWhat::Frontend { name: name.into(), opts, inputs }, ..Self::default() }
    }
}

/// A remote cache to look in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheImport {
    /// Such as `registry`.
    pub kind: String,
    /// Such as `ref`.
    pub attrs: BTreeMap<String, String>,
}

/// What a frontend made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FrontendResult {
    /// The results.
    pub refs: Refs,
    /// What goes with them, such as `containerimage.config`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What is said about them, by the id of the platform.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// One result, or one per platform. `None` is an empty result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refs {
    /// One.
    Single(Option<RefId>),
    /// By the id of the platform.
    ByPlatform(BTreeMap<String, Option<RefId>>),
}

impl Default for Refs {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl FrontendResult {
    /// One result and nothing else.
    pub fn single(reference: Option<RefId>) -> Self {
        Self { refs: Refs::Single(reference), ..Self::default() }
    }

    /// The one result.
    ///
    /// # Errors
    /// When there is one per platform.
    pub fn single_ref(&self) -> Result<Option<&RefId>, Failure> {
        match &self.refs {
            Refs::Single(reference) => Ok(reference.as_ref()),
            Refs::ByPlatform(_) => Err(Failure::invalid("invalid map result")),
        }
    }

    /// Every result there is, attestations included.
    pub fn each_ref(&self) -> impl Iterator<Item = &RefId> {
        let (one, many) = match &self.refs {
            Refs::Single(one) => (one.as_ref(), None),
            Refs::ByPlatform(many) => (None, Some(many)),
        };
        one.into_iter()
            .chain(many.into_iter().flat_map(|m| m.values().flatten()))
            .chain(self.attestations.values().flatten().filter_map(|a| a.reference.as_ref()))
    }
}

/// Something said about a result.
#[derive(Debug, Clone, PartialEq)]
pub struct Attestation {
    /// A statement, or a file with several.
    pub kind: AttestationKind,
    /// What goes with it, such as `reason`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The result with the file.
    pub reference: Option<RefId>,
    /// The file.
    pub path: String,
    /// What sort of statement.
    pub predicate_type: String,
    /// What it is about.
    pub subjects: Vec<Subject>,
}

/// A statement, or a file with several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    /// One in-toto predicate.
    InToto,
    /// One statement per line.
    Bundle,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The result itself, or something else by digest.
    pub kind: SubjectKind,
    /// Its name.
    pub name: String,
    /// Its digests.
    pub digests: Vec<String>,
}

/// The result itself, or something else by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SubjectKind {
    This,
    Raw,
}

/// What to find out about a source.
#[derive(Debug, Clone, Default)]
pub struct ResolveSource {
    /// The source.
    pub source: pb::SourceOp,
    /// Which of an image's platforms; the worker's without.
    pub platform: Option<Platform>,
    /// Under which name it is shown; empty: a name is made up.
    pub log_name: String,
    /// For images: `default`, `pull`, `local` or empty.
    pub resolve_mode: String,
    /// For images.
    pub image: ImageQuery,
    /// For git: the commit and tag objects as well.
    pub git_objects: bool,
    /// For http: a digest over the body and a suffix.
    pub http_checksum: Option<ChecksumQuery>,
    /// Policies to apply, beside those of the build.
    pub policies: Vec<Policy>,
}

/// What to find out about an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageQuery {
    /// The digest is enough.
    pub no_config: bool,
    /// The manifests that lead to the attestations as well.
    pub attestation_chain: bool,
    /// Predicate types whose statements are wanted.
    pub attestations: Vec<String>,
}

/// A digest over a body and a suffix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumQuery {
    /// Which digest.
    pub algorithm: ChecksumAlgorithm,
    /// What to hash after the body; at most 4 KiB.
    pub suffix: Vec<u8>,
}

/// Which digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChecksumAlgorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// What a source says of itself.
#[derive(Debug, Clone, Default)]
pub struct SourceMeta {
    /// The source as policy left it, pinned where it could be.
    pub source: pb::SourceOp,
    /// When it is an image.
    pub image: Option<ImageMeta>,
    /// When it is a repository.
    pub git: Option<GitMeta>,
    /// When it is a file.
    pub http: Option<HttpMeta>,
}

/// An image.
#[derive(Debug, Clone)]
pub struct ImageMeta {
    /// Of the manifest or index.
    pub digest: Digest,
    /// The configuration as it was received; empty when it was not asked for.
    pub config: Vec<u8>,
    /// When it was asked for.
    pub attestation_chain: Option<AttestationChain>,
}

/// The manifests that lead to an image's attestations.
#[derive(Debug, Clone)]
pub struct AttestationChain {
    /// The index.
    pub root: Digest,
    /// The image's manifest.
    pub image_manifest: Digest,
    /// The attestations' manifest.
    pub attestation_manifest: Option<Digest>,
    /// Manifests of signatures.
    pub signature_manifests: Vec<Digest>,
    /// All of these but the image's manifest, the parts of the signatures, and what
    /// was asked for.
    pub blobs: Vec<(base::Descriptor, Vec<u8>)>,
}

/// A repository at a reference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitMeta {
    /// What the reference points to: a commit, or a tag object.
    pub checksum: String,
    /// The full reference.
    pub reference: String,
    /// The commit, when `checksum` is a tag object.
    pub commit_checksum: String,
    /// The commit, when it was asked for.
    pub commit_object: Vec<u8>,
    /// The tag, when it was asked for and there is one.
    pub tag_object: Vec<u8>,
}

/// A file by URL.
#[derive(Debug, Clone)]
pub struct HttpMeta {
    /// Of the body.
    pub digest: Digest,
    /// Its name.
    pub filename: String,
    /// When it was last changed, as the server says.
    pub last_modified: Option<Timestamp>,
    /// The digest that was asked for, and its suffix.
    pub checksum: Option<(String, Vec<u8>)>,
}

/// Something the author of a build should know.
#[derive(Debug, Clone, Default)]
pub struct Warning {
    /// The vertex it is about.
    pub vertex: Option<Digest>,
    /// 1 is a lint, higher is less important.
    pub level: i64,
    /// One line.
    pub short: Vec<u8>,
    /// More lines.
    pub detail: Vec<Vec<u8>>,
    /// Where to read on.
    pub url: String,
    /// The file it is about.
    pub source: Option<pb::SourceInfo>,
    /// The places in it.
    pub ranges: Vec<Range>,
}

/// Where an image's configuration is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ImageOptions {
    /// Which platform; the worker's without.
    pub platform: Option<Platform>,
    /// `default`, `pull`, `local` or empty.
    pub resolve_mode: String,
    /// Under which name it is shown.
    pub log_name: String,
    /// An OCI layout of a client instead of a registry.
    pub layout: Option<Layout>,
}

/// An OCI layout that a client serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The session.
    pub session_id: String,
    /// The store within it.
    pub store_id: String,
}

/// What became of an image reference.
#[derive(Debug, Clone)]
pub enum ResolvedImage {
    /// An image.
    Image {
        /// The reference as policy left it.
        reference: String,
        /// Of the manifest or index.
        digest: Digest,
        /// The configuration as it was received.
        config: Vec<u8>,
    },
    /// Policy made another sort of source of it.
    Other {
        /// The identifier, with its scheme.
        identifier: String,
    },
}

/// The configuration of the image `reference`, which is normalised, with a tag
/// or digest.
///
/// # Errors
/// What [`Gateway::resolve_source_meta`] says, with the reference.
pub async fn resolve_image(
    gateway: &dyn Gateway,
    reference: &str,
    options: ImageOptions,
) -> Result<ResolvedImage, Failure> {
    let mut source = pb::SourceOp::default();
    match options.layout {
        None => source.identifier = format!("docker-image://{reference}"),
        Some(layout) => {
            source.identifier = format!("oci-layout://{reference}");
            for (key, value) in
                [(llb::attr::OCI_SESSION, layout.session_id), (llb::attr::OCI_STORE, layout.store_id)]
            {
                if !value.is_empty() {
                    source.attrs.insert(key.to_owned(), value);
                }
            }
        }
    }
    let request = ResolveSource {
        source,
        platform: options.platform,
        log_name: options.log_name,
        resolve_mode: options.resolve_mode,
        ..ResolveSource::default()
    };
    let meta = gateway
        .resolve_source_meta(request)
        .await
        .map_err(|e| e.context(format!("failed to resolve source metadata for {reference}")))?;
    let identifier = meta.source.identifier;
    Ok(match meta.image {
        Some(image) => {
            let text = identifier.strip_prefix("docker-image://").unwrap_or(&identifier);
            let text = text.strip_prefix("oci-layout://").unwrap_or(text);
            ResolvedImage::Image { reference: text.to_owned(), digest: image.digest, config: image.config }
        }
        None => ResolvedImage::Other { identifier },
    })
}
