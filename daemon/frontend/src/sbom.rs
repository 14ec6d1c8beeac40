//! Lists of contents: a scanner is run over the result.
//!
//! The scanner is an image. It runs as a step of the build, finds what it is to
//! look at where variables named `BUILDKIT_SCAN_…` say, and leaves statements
//! in a directory: the attestation.

use std::collections::BTreeMap;

use base::{Failure, Kind, Platform};
use llb::build::{Defaults, FileAction, Image as ImageSource, Mount, Options, Run, State};

use crate::convert::Image;
use crate::dockerui::Sbom;
use crate::gateway::{
    Attestation, AttestationKind, FrontendResult, Gateway, ImageOptions, RefId, ResolvedImage, Solve,
    resolve_image,
};

/// What a list of contents is called in a statement.
pub const SPDX: &str = "https://spdx.dev/Document";

const CORE: &str = "sbom";
const SOURCE: &str = "/run/src";
const OUTPUT: &str = "/run/out/";

/// A scanner, found and ready.
pub struct Scanner {
    image: String,
    config: Image,
    platform: Platform,
    parameters: BTreeMap<String, String>,
}

/// What to scan.
pub struct Target<'a> {
    /// The platform's name.
    pub id: &'a str,
    /// The result.
    pub state: &'a State,
    /// What else, by name.
    pub extras: &'a BTreeMap<String, State>,
    /// Scan again even when the same was scanned before.
    pub ignore_cache: bool,
}

impl Scanner {
    /// Looks for the scanner that is `wanted`, which runs on `platform`.
    ///
    /// # Errors
    /// When there is no such image, or it has nothing to run.
    pub async fn find(
        gateway: &dyn Gateway,
        wanted: &Sbom,
        platform: Platform,
        resolve_mode: String,
    ) -> Result<Self, Failure> {
        let options =
            ImageOptions { platform: Some(platform.clone()), resolve_mode, ..ImageOptions::default() };
        let (image, raw) = match resolve_image(gateway, &wanted.generator, options).await? {
            ResolvedImage::Image { reference, config, .. } => (reference, config),
            ResolvedImage::Other { identifier } => {
                return Err(Failure::new(
                    Kind::Unknown,
                    format!(
                        "ref mutated by policy to non-image: docker-image://{} -> {identifier}",
                        wanted.generator
                    ),
                ));
            }
        };
        let config: Image =
            serde_json::from_slice(&raw).map_err(|e| Failure::new(Kind::Unknown, e.to_string()))?;
        if config.config.entrypoint.is_empty() && config.config.cmd.is_empty() {
            return Err(Failure::new(Kind::Unknown, format!("scanner {image} does not have cmd")));
        }
        Ok(Self { image, config, platform, parameters: wanted.parameters.clone() })
    }

    fn state(&self, target: &Target<'_>) -> Result<State, Failure> {
        let config = &self.config.config;
        let options = Options::new().platform(self.platform.clone());
        let scanner = ImageSource { options, ..ImageSource::default() }.state(&self.image)?;
        let mut state = scanner.dir(&config.working_dir);
        let mut env: Vec<(String, String)> = config
            .env
            .iter()
            .map(|e| e.split_once('=').unwrap_or((e, "")))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        env.push(("BUILDKIT_SCAN_DESTINATION".to_owned(), OUTPUT.to_owned()));
        env.push(("BUILDKIT_SCAN_SOURCE".to_owned(), format!("{SOURCE}/core/{CORE}")));
        if !target.extras.is_empty() {
            env.push(("BUILDKIT_SCAN_SOURCE_EXTRAS".to_owned(), format!("{SOURCE}/extras")));
        }
        env.extend(self.parameters.iter().map(|(k, v)| (format!("BUILDKIT_SCAN_{k}"), v.clone())));
        for (key, value) in &env {
            state = state.env(key, value);
        }
        let mut mounts = vec![if self.platform.os == "windows" {
            let mkdir = FileAction::Mkdir {
                path: "/tmp".to_owned(),
                mode: 0o777,
                parents: true,
                owner: None,
                created: None,
            };
            Mount::new("/tmp", &scanner.file(vec![mkdir], Options::new())).selector("/tmp").no_output()
        } else {
            Mount::new("/tmp", &State::scratch()).tmpfs(0)
        }];
        mounts.push(Mount::new(format!("{SOURCE}/core/{CORE}"), target.state).readonly());
        for (name, extra) in target.extras {
            mounts.push(Mount::new(format!("{SOURCE}/extras/{CORE}-{name}"), extra).readonly());
        }
        mounts.push(Mount::new(OUTPUT, &State::scratch()));
        let mut options =
            Options::new().name(format!("[{}] generating sbom using {}", target.id, self.image));
        if target.ignore_cache {
            options = options.ignore_cache();
        }
        let args = [config.entrypoint.clone(), config.cmd.clone()].concat();
        let exec = state.run(Run { args: Some(args), mounts, options, ..Run::default() });
        exec.mount(OUTPUT).cloned().ok_or_else(|| Failure::internal("the scanner has no output"))
    }

    /// Plans the scan.
    ///
    /// # Errors
    /// Those of the gateway.
    pub async fn scan(&self, gateway: &dyn Gateway, target: Target<'_>) -> Result<Attestation, Failure> {
        let definition = self.state(&target)?.marshal(&Defaults::default())?;
        let result = gateway.solve(Solve::definition(definition)).await?;
        Ok(attestation(result.single_ref()?.cloned()))
    }
}

fn attestation(reference: Option<RefId>) -> Attestation {
    let metadata = [("reason", CORE), ("sbom-core", CORE)];
    Attestation {
        kind: AttestationKind::Bundle,
        metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect(),
        reference,
        path: String::new(),
        predicate_type: SPDX.to_owned(),
        subjects: Vec::new(),
    }
}

/// Whether somebody made a list of contents already.
pub fn has(result: &FrontendResult) -> bool {
    result.attestations.values().flatten().any(|a| a.predicate_type == SPDX)
}
