//! Results of builds, kept elsewhere: written after a build, looked up by later
//! ones, also of other daemons.
//!
//! A cache is a description, [`mod@config`], of what was done and what came of
//! it, and the layers of results. [`exports`] reads what a client asks to have
//! written, [`Exporter::export`] writes it; [`import`] reads a cache, as a place
//! where the solver looks for results. Both directions are bytes that other
//! implementations understand.
//!
//! * `chains` puts records in order, `collect` makes them of the solver's keys.
//! * `imported` is a cache that was read, `import` reads it.
//! * `inline`, `registry` and `local` are where caches are; so are `s3`, `azblob` and
//!   `gha`, which keep `objects` and are spoken to through `web`.
//!
//! What is read is not believed: indexes and circles are checked, layers are
//! verified when they are fetched, and what cannot be used is not there.

mod azblob;
mod chains;
mod collect;
mod config;
mod content;
mod error;
mod gha;
mod import;
mod imported;
mod inline;
mod local;
mod objects;
mod options;
mod registry;
mod s3;
#[cfg(test)]
mod server;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::registry::Access;
use base::progress::VertexSink;
use base::{Digest, Failure, gojson};
use ops::Output;
use ops::source::image::Images;
use refs::{Compression, Refs};
use session::Sessions;
use solver::{Keys, OpContext};
use store::Store;

pub use collect::{Known, Mode};
pub use error::Error;
pub use imported::Imported;
pub use inline::Inline;
pub use options::Attrs;

use collect::Collected;
use objects::Cloud;
use options::{Env, Form};

/// What caches are written and read with.
#[derive(Clone)]
pub struct Deps {
    /// Blobs on this machine.
    pub store: Store,
    /// Results on this machine.
    pub refs: Refs,
    /// Registries.
    pub images: Arc<Images>,
    /// Clients.
    pub sessions: Sessions,
}

/// The build on whose behalf a cache is written or read.
#[derive(Clone)]
pub struct Context {
    /// The session of its client.
    pub session: String,
    /// Who it is to registries.
    pub access: Access,
}

enum Kind {
    Registry(registry::Named, Form),
    Local(local::Dest, Form),
    Objects(Box<dyn Cloud>),
}

/// A cache to be written.
pub struct Exporter {
    kind: Kind,
    mode: Mode,
    compression: Compression,
    ignore_error: bool,
}

/// Everything a client wants written.
#[derive(Default)]
pub struct Exports {
    /// Images are to tell how they were made.
    pub inline: bool,
    /// Caches of their own.
    pub exporters: Vec<Exporter>,
}

/// Reads what is to be written.
///
/// # Errors
/// A type nobody knows, an attribute that makes no sense, or the same cache twice.
pub fn exports<'a>(
    entries: impl IntoIterator<Item = (&'a str, &'a Attrs)>,
    session: &str,
) -> Result<Exports, Failure> {
    let (mut exports, mut seen, mut twice) = (Exports::default(), BTreeSet::new(), Vec::new());
    let mut wanted = Vec::new();
    for (kind, attrs) in entries {
        if kind == "inline" && exports.inline {
            continue;
        }
        exports.inline |= kind == "inline";
        if !seen.insert(id(kind, attrs)) {
            twice.push(kind);
        }
        wanted.push((kind, attrs));
    }
    if !twice.is_empty() {
        return Err(Error::Duplicate(twice.join(" ")).into());
    }
    for (kind, attrs) in wanted.into_iter().filter(|(kind, _)| *kind != "inline") {
        let configured = exporter(kind, attrs, session);
        let exporter = configured.map_err(|e| match kind {
            "registry" | "local" | "s3" | "azblob" | "gha" => {
                e.context(format!("failed to configure {kind} cache exporter"))
            }
            _ => e,
        })?;
        exports.exporters.push(exporter);
    }
    Ok(exports)
}

fn exporter(kind: &str, attrs: &Attrs, session: &str) -> Result<Exporter, Failure> {
    let kind = match kind {
        "registry" => Kind::Registry(registry::Named::new(attrs)?, Form::new(attrs)?),
        "local" if session.is_empty() => {
            return Err(Error::attribute("local cache exporter/importer requires session").into());
        }
        "local" => Kind::Local(local::Dest::new(attrs)?, Form::new(attrs)?),
        _ => match cloud(kind, attrs)? {
            Some(cloud) => Kind::Objects(cloud),
            None => return Err(Error::UnknownExporter(kind.to_owned()).into()),
        },
    };
    let mode = match attrs.get("mode").map(String::as_str) {
        Some("max") => Mode::Max,
        _ => Mode::Min,
    };
    let ignore_error = attrs.get("ignore-error").and_then(|text| base::gotext::parse_bool(text));
    let compression = match kind {
        // As the reference does, whatever is asked for.
        Kind::Objects(_) => Compression::default(),
        _ => export::compression(attrs)?,
    };
    Ok(Exporter { kind, mode, compression, ignore_error: ignore_error.unwrap_or(false) })
}

/// The stores of objects; none if `kind` is none of them.
fn cloud(kind: &str, attrs: &Attrs) -> Result<Option<Box<dyn Cloud>>, Failure> {
    let cloud: Box<dyn Cloud> = match kind {
        "s3" => Box::new(s3::Options::new(attrs, Env::own())?),
        "azblob" => Box::new(azblob::Options::new(attrs, Env::own())?),
        "gha" => Box::new(gha::Options::new(attrs)?),
        _ => return Ok(None),
    };
    Ok(Some(cloud))
}

impl Exporter {
    /// For people.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Registry(..) => "exporting cache to registry",
            Kind::Local(..) => "exporting cache to client directory",
            Kind::Objects(cloud) => cloud.title(),
        }
    }

    /// A build is fine even if this goes wrong.
    pub fn ignores_errors(&self) -> bool {
        self.ignore_error
    }

    /// Writes the cache of a build with these results. What the client is told.
    ///
    /// # Errors
    /// When layers cannot be made or had, or the other end does not take them.
    pub async fn export(
        &self,
        results: &[Arc<Keys>],
        known: &Known,
        deps: &Deps,
        context: &Context,
        op: &OpContext<Output>,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let status = op.progress.counter("preparing build cache for export", 0);
        let mut made = Collected::default();
        for keys in results {
            made = known.collect(keys, self.mode, self.compression, op, made).await?;
        }
        status.finish();
        let status = op.progress.counter("sending cache export", 0);
        let written = match &self.kind {
            Kind::Registry(named, form) => {
                form.check()?;
                let target = named.target(deps, &context.access).await?;
                content::write(&target, *form, &made, &op.progress).await?
            }
            Kind::Local(dest, form) => {
                form.check()?;
                let target = dest.target(deps, &context.session).await?;
                content::write(&target, *form, &made, &op.progress).await?
            }
            Kind::Objects(cloud) => {
                let objects = cloud.open(deps.images.registries().downloads().await?).await?;
                objects::write(&*objects, &made, &op.progress).await?;
                None
            }
        };
        status.finish();
        let mut response = BTreeMap::new();
        if let Some(manifest) = written {
            let json = gojson::to_vec(&manifest).map_err(|e| Failure::internal(e.to_string()))?;
            response.insert("cache.manifest".to_owned(), String::from_utf8_lossy(&json).into_owned());
        }
        Ok(response)
    }
}

/// The name of a cache, for people and to tell it from others.
pub fn id(kind: &str, attrs: &Attrs) -> String {
    if let Some(name) = options::text(attrs, "ref").filter(|_| kind == "registry") {
        return name.to_owned();
    }
    let text: Vec<String> = attrs.iter().map(|(key, value)| format!("{key}\0{value}\0")).collect();
    let hash = Digest::of(text.concat());
    let number = u64::from_str_radix(hash.hex().get(..16).unwrap_or_default(), 16).unwrap_or_default();
    format!("{kind}:{number}")
}

/// Reads a cache.
///
/// # Errors
/// When it is not there, broken, or of a type nobody knows.
pub async fn import(
    kind: &str,
    attrs: &Attrs,
    deps: &Deps,
    context: &Context,
    progress: &VertexSink,
) -> Result<Imported, Failure> {
    let configure = |e: Failure| e.context(format!("failed to configure {kind} cache importer"));
    if let Some(cloud) = cloud(kind, attrs).map_err(configure)? {
        let downloads = deps.images.registries().downloads().await?;
        return objects::import(cloud.open(downloads).await.map_err(configure)?, deps.refs.clone()).await;
    }
    let found = match kind {
        "registry" => match registry::Named::new(attrs) {
            Ok(named) => named.find(deps, &context.access).await,
            Err(e) => Err(e),
        },
        "local" => local::find(attrs, deps, &context.session).await,
        _ => return Err(Error::UnknownImporter(kind.to_owned()).into()),
    };
    let (place, root) = found.map_err(configure)?;
    import::import(place, &root, deps.refs.clone(), progress).await
}
