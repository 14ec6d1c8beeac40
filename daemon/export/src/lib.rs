//! Results out: images, archives and directories.
//!
//! An [`Exporter`] takes a build's result, a [`Source`], and makes of it what
//! the client asked for: an image in the daemon's store or in registries
//! (`image`), an OCI or Docker archive at the client (`oci`, `docker`), a
//! directory (`local`) or a tarball (`tar`) there. [`resolve`] finds the one
//! for a request and checks its options before anything is built.
//!
//! What leaves the machine for good, a push, is done last, by
//! [`Exported::finalize`], so that several exporters can all succeed first.
//!
//! The bytes of manifests, indexes and configs are a contract: the same result
//! has the same digest wherever it was built.

mod annotations;
mod archive;
mod attest;
mod commit;
mod config;
mod content;
mod epoch;
mod error;
mod estargz;
mod files;
mod image;
mod manifest;
mod names;
mod oci;
mod options;
mod platforms;
mod push;
use base::rawjson;
mod rewrite;
mod source;
mod supplement;
mod tree;
mod verify;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use base::progress::VertexSink;
use base::task::Scope;
use base::{Compatibility, Descriptor, Failure};
use futures_util::future::BoxFuture;
use registry::{Access, Registries};
use session::{Caller, Sessions};
use store::{Compression, Pin, Store};

pub use attest::{Attestation, AttestationKind, MakeContent, Predicate, Subject, SubjectKind, package_url};
pub use content::Fetch;
pub use error::Error;
pub use manifest::{Index, Manifest, layer_media_type};
pub use names::{Images, Named};
pub use oci::copy_blob;
pub use options::compression;
pub use platforms::{PlatformEntry, metadata_for, platforms};
pub use push::{push_blob, source_label};
pub use source::{InlineCache, Source};
pub use verify::platform_warnings;

/// A client's session appears within this time or not at all.
const SESSION_WAIT: Duration = Duration::from_secs(5);

/// What exporters work with.
#[derive(Clone)]
pub struct Deps {
    /// Where blobs and names are.
    pub store: Store,
    /// Where images are pushed to.
    pub registries: Registries,
    /// Where clients are.
    pub sessions: Sessions,
}

/// The build on whose behalf something is exported.
#[derive(Clone)]
pub struct Context {
    /// The session of the client that gets the result.
    pub session: String,
    /// The build's id.
    pub build: String,
    /// Who the build is to registries.
    pub access: Access,
    /// What to put into image configs for later builds to find.
    pub inline_cache: Option<std::sync::Arc<dyn InlineCache>>,
    /// Which defaults apply.
    pub compatibility: Compatibility,
    /// Where it is told what goes on.
    pub progress: VertexSink,
    /// Ends the work early.
    pub scope: Scope,
}

/// What came of it.
#[derive(Default)]
pub struct Exported {
    /// For the client: `containerimage.digest` and the like.
    pub response: BTreeMap<String, String>,
    /// The image that was made.
    pub descriptor: Option<Descriptor>,
    /// Keeps the image's own blobs until whoever records the descriptor holds them.
    pub pins: Vec<Pin>,
    /// What is left to do, once all other exporters are done.
    pub finalize: Option<Finalize>,
}

/// Work to be done last.
pub type Finalize = BoxFuture<'static, Result<(), Failure>>;

/// One of the ways out of a build.
#[async_trait]
pub trait Exporter: Send + Sync {
    /// Its number in the request.
    fn id(&self) -> i64;

    /// What the user sees: `exporting to image`.
    fn name(&self) -> String;

    /// Its name in requests: `image`.
    fn kind(&self) -> &'static str;

    /// The options it was asked for with.
    fn attrs(&self) -> &BTreeMap<String, String>;

    /// How it wants layers compressed.
    fn compression(&self) -> Compression;

    /// Exports `source`.
    ///
    /// # Errors
    /// When the result does not suit the exporter, the client or the disk fails.
    async fn export(&self, source: &Source, context: &Context) -> Result<Exported, Failure>;
}

/// The exporter `kind`, with its options read.
///
/// # Errors
/// [`Error::Unknown`], or an option that makes no sense.
pub fn resolve(
    kind: &str,
    id: i64,
    attrs: BTreeMap<String, String>,
    deps: Deps,
) -> Result<Box<dyn Exporter>, Error> {
    Ok(match kind {
        "image" => Box::new(image::Image::new(id, attrs, deps)?),
        "oci" => Box::new(oci::Archive::new(oci::Variant::Oci, id, attrs, deps)?),
        "docker" => Box::new(oci::Archive::new(oci::Variant::Docker, id, attrs, deps)?),
        "local" => Box::new(files::local::Local::new(id, attrs, deps)?),
        "tar" => Box::new(files::tar::Tarball::new(id, attrs, deps)?),
        _ => return Err(Error::Unknown { kind: kind.to_owned() }),
    })
}

impl Context {
    /// The client that gets the result.
    async fn caller(&self, sessions: &Sessions) -> Result<Caller, Failure> {
        self.scope.run(async { Ok(sessions.get(&self.session, SESSION_WAIT).await?) }).await
    }
}
