//! From a Dockerfile to LLB.
//!
//! Stages become states: each instruction gives the next state of its stage and
//! the next configuration of its image. Only what the target needs is
//! converted, and stages that do not need each other share nothing in the
//! graph. The bytes of the graph, the names of its vertices and the JSON of the
//! image are those of the reference's Dockerfile frontend, version 1.26: digests,
//! caches and progress displays depend on them.

mod build;
mod copy;
mod dispatch;
mod epoch;
mod error;
mod expose;
mod image;
mod names;
mod ospath;
mod outline;
mod plan;
mod platform;
mod requests;
mod resolve;
mod run;
mod stage;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Platform;
use llb::build::{Defaults, SourceMap, State};
use llb::caps::CapSet;

use crate::dockerfile::lint::{self, Warning};
use crate::dockerfile::subrequests::outline::Outline;
use crate::dockerfile::{directives, parser};
use crate::dockerui::Client;

pub use build::build;
pub use epoch::Epoch;
pub use error::Failed;
pub(crate) use platform::{BadPlatform, parse as parse_platform};

pub use image::{Config, Healthcheck, History, Image};

use error::Result;
use plan::Converter;

/// How to convert.
#[derive(Clone)]
pub struct Options {
    /// Who asks, and for what.
    pub client: Arc<Client>,
    /// The Dockerfile and how it was loaded.
    pub source: Arc<SourceMap>,
    /// What to build for; `None`: what the builder is.
    pub platform: Option<Platform>,
    /// Collect warnings.
    pub lint: bool,
    /// Convert every stage, not only what the target needs.
    pub all_stages: bool,
}

/// What a Dockerfile comes to.
#[derive(Debug, Clone)]
pub struct Converted {
    /// The files of the target.
    pub state: State,
    /// How to write it.
    pub defaults: Defaults,
    /// The configuration of its image.
    pub image: Image,
    /// That of the image it is based on.
    pub base_image: Option<Image>,
    /// The time that times of files are limited to.
    pub epoch: Option<Epoch>,
    /// What else is to be scanned, by name.
    pub scan: BTreeMap<String, State>,
    /// Something of this is to be built anew.
    pub ignore_cache: bool,
    /// For outlines.
    pub outline: Outline,
}

/// Converts a Dockerfile. Warnings come with success and failure alike.
pub async fn convert(options: &Options) -> (Result<Converted>, Vec<Warning>) {
    let linter = match linter(options) {
        Ok(linter) => linter,
        Err(e) => return (Err(e), Vec::new()),
    };
    let result = match Converter::new(options, linter.clone()).await {
        Ok(converter) => converter.run().await,
        Err(e) => Err(e),
    };
    (result, linter.take())
}

/// The linter as the client or the file wants it.
fn linter(options: &Options) -> Result<lint::Linter> {
    let config = match &options.client.config().lint {
        Some(config) => config.clone(),
        None => {
            let check = directives::find(directives::Name::Check, &options.source.data);
            let text = check.map(|d| d.value).unwrap_or_default();
            lint::Config::parse(&text)
                .map_err(|e| Failed::new(e.to_string()).context("failed to parse check options"))?
        }
    };
    Ok(if options.lint { lint::Linter::new(config) } else { lint::Linter::off() })
}

/// The Dockerfile's instructions, split into words.
fn parse(data: &[u8]) -> Result<parser::Parsed> {
    if data.is_empty() {
        return Err(Failed::new("the Dockerfile cannot be empty"));
    }
    Ok(parser::parse(data)?)
}

/// How the result is written.
fn defaults(caps: &CapSet, target: &Platform) -> Defaults {
    Defaults { platform: Some(target.clone()), caps: Some(caps.clone()), ..Defaults::default() }
}
