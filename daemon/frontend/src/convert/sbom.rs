//! Lists of contents: a scanner is run over the result.

use std::collections::BTreeMap;

use base::{Failure, Kind, Platform};
use llb::build::{Defaults, FileAction, Image as ImageSource, Mount, Options, Run, State};

use super::image::Image;
use crate::dockerui::{Client, Sbom};
use crate::gateway::{Attestation, AttestationKind, ImageOptions, RefId, ResolvedImage, Solve};

const CORE: &str = "sbom";
const SOURCE: &str = "/run/src";
const OUTPUT: &str = "/run/out/";

/// A scanner, found and ready.
pub(super) struct Scanner {
    image: String,
    config: Image,
    platform: Platform,
    parameters: BTreeMap<String, String>,
}

/// What to scan.
pub(super) struct Target<'a> {
    /// The platform's name.
    pub(super) id: &'a str,
    pub(super) state: &'a State,
    pub(super) extras: &'a BTreeMap<String, State>,
    pub(super) ignore_cache: bool,
}

impl Scanner {
    pub(super) async fn find(client: &Client, wanted: &Sbom) -> Result<Self, Failure> {
        let config = client.config();
        let platform = config.build_platforms.first().cloned().unwrap_or_else(Platform::host);
        let options = ImageOptions {
            platform: Some(platform.clone()),
            resolve_mode: client.options().opts.get("image-resolve-mode").cloned().unwrap_or_default(),
            ..ImageOptions::default()
        };
        let (image, raw) = match client.resolve_image(&wanted.generator, options).await? {
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
    pub(super) async fn scan(&self, client: &Client, target: Target<'_>) -> Result<Attestation, Failure> {
        let definition = self.state(&target)?.marshal(&Defaults::default())?;
        let result = client.gateway().solve(Solve::definition(definition)).await?;
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
        predicate_type: "https://spdx.dev/Document".to_owned(),
        subjects: Vec::new(),
    }
}
