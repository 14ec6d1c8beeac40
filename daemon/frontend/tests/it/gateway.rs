//! A gateway that makes nothing and notes what it is asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base::{Digest, Failure, Kind, Platform, Timestamp};
use frontend::gateway::{
    CapSet, FileRange, FrontendResult, Gateway, GitMeta, HttpMeta, ImageMeta, Options, RefId, ResolveSource,
    Solve, SolveWhat, SourceMeta, Stat, Warning, Worker,
};
use llb::build::{Defaults, FileAction, Image, Options as BuildOptions};
use prost::Message;
use proto::pb;
use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Cases {
    /// Configurations by identifier, perhaps with platform; or another identifier.
    pub(crate) images: BTreeMap<String, String>,
    pub(crate) cases: Vec<Case>,
}

/// What a build is given.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) opts: BTreeMap<String, String>,
    /// By the identifier of a source and path.
    pub(crate) files: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) commit: String,
    #[serde(default)]
    pub(crate) modified: i64,
    /// The reference adds capabilities to operations it has written before.
    #[serde(default)]
    pub(crate) ignore_caps: bool,
}

/// What it asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) solves: Vec<Solved>,
    #[serde(default)]
    pub(crate) resolves: Vec<String>,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    #[serde(default)]
    pub(crate) result: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) refs: Vec<String>,
    #[serde(default)]
    pub(crate) error: String,
    #[serde(default)]
    pub(crate) places: Vec<String>,
}

/// One definition or frontend.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Solved {
    /// The beginning of each digest, and metadata.
    #[serde(default)]
    pub(crate) ops: Vec<String>,
    #[serde(default)]
    pub(crate) frontend: String,
    #[serde(default)]
    pub(crate) opts: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) source: String,
}

pub(crate) struct Fake {
    case: Case,
    images: Arc<BTreeMap<String, String>>,
    options: Options,
    pub(crate) asked: Mutex<Asked>,
}

impl Fake {
    pub(crate) fn new(case: Case, images: Arc<BTreeMap<String, String>>) -> Self {
        let options = Options {
            opts: case.opts.clone(),
            session_id: "session-id".into(),
            product: String::new(),
            workers: vec![Worker {
                id: "w".into(),
                labels: BTreeMap::new(),
                platforms: vec![Platform::new("linux", "amd64", "")],
            }],
            caps: CapSet::all(llb::caps::FRONTEND),
            llb_caps: CapSet::all(llb::caps::LLB),
        };
        let asked = Mutex::new(Asked { name: case.name.clone(), ..Asked::default() });
        Self { case, images, options, asked }
    }
}

fn json(value: &impl Serialize) -> String {
    String::from_utf8(base::gojson::to_vec(value).unwrap()).unwrap()
}

fn meta(m: &pb::OpMetadata) -> String {
    let caps: Vec<&str> = m.caps.keys().map(String::as_str).collect();
    let mut text = format!("{} ignore={} caps={}", json(&m.description), m.ignore_cache, caps.join(","));
    if let Some(g) = &m.progress_group {
        text.push_str(&format!(" group={}/{}", base::gotext::quote(&g.name), g.weak));
    }
    if let Some(r) = &m.linux_resources {
        text.push_str(&format!(" resources={}", resources(r)));
    }
    text
}

fn resources(r: &pb::LinuxResources) -> String {
    let mut fields = Vec::new();
    for (name, value) in [
        ("memory", r.memory.to_string()),
        ("memorySwap", r.memory_swap.to_string()),
        ("cpuShares", r.cpu_shares.to_string()),
        ("cpuPeriod", r.cpu_period.to_string()),
        ("cpuQuota", r.cpu_quota.to_string()),
    ] {
        if value != "0" {
            fields.push(format!("\"{name}\":{value}"));
        }
    }
    for (name, value) in [("cpusetCpus", &r.cpuset_cpus), ("cpusetMems", &r.cpuset_mems)] {
        if !value.is_empty() {
            fields.push(format!("\"{name}\":\"{value}\""));
        }
    }
    format!("{{{}}}", fields.join(","))
}

fn places(source: &pb::Source) -> String {
    let mut all = Vec::new();
    for (digest, locations) in &source.locations {
        for l in &locations.locations {
            for r in &l.ranges {
                let line = |p: Option<pb::Position>| p.unwrap().line;
                let short = &digest[7..15];
                all.push(format!("{short}:{}:{}-{}", l.source_index, line(r.start), line(r.end)));
            }
        }
    }
    all.sort();
    all.join(" ")
}

#[async_trait]
impl Gateway for Fake {
    fn options(&self) -> &Options {
        &self.options
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, Failure> {
        let Some(name) = self.case.opts.get("test-input") else { return Ok(BTreeMap::new()) };
        let options = BuildOptions::new().platform(Platform::new("linux", "arm64", ""));
        let mkdir =
            FileAction::Mkdir { path: "/in".into(), mode: 0o700, parents: false, owner: None, created: None };
        let state = Image { options, ..Image::default() }
            .state("docker.io/library/input:latest")?
            .file(vec![mkdir], BuildOptions::new());
        Ok(BTreeMap::from([(name.clone(), state.marshal(&Defaults::default())?)]))
    }

    async fn solve(&self, request: Solve) -> Result<FrontendResult, Failure> {
        let mut solved = Solved::default();
        let mut id = String::new();
        match request.what {
            SolveWhat::Scratch => {}
            SolveWhat::Frontend { name, opts, .. } => {
                solved.frontend = name;
                solved.opts = opts;
            }
            SolveWhat::Definition(definition) => {
                let single = definition.def.len() == 2;
                for bytes in &definition.def {
                    let digest = Digest::of(bytes).as_str().to_owned();
                    let known = definition.metadata.get(&digest).map(meta).unwrap_or_default();
                    solved.ops.push(format!("{} {known}", &digest[7..27]));
                    let op = pb::Op::decode(bytes.as_slice()).unwrap();
                    match op.op {
                        Some(pb::op::Op::Source(source)) if single => id = source.identifier,
                        _ if id.is_empty() || !single => id = digest,
                        _ => {}
                    }
                }
                solved.source = definition.source.as_ref().map(places).unwrap_or_default();
            }
        }
        self.asked.lock().unwrap().solves.push(solved);
        Ok(FrontendResult::single((!id.is_empty()).then(|| RefId::new(id))))
    }

    async fn evaluate(&self, _: &RefId) -> Result<(), Failure> {
        Ok(())
    }

    async fn read_file(
        &self,
        reference: &RefId,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, Failure> {
        let found = self.case.files.get(reference.as_str()).and_then(|files| files.get(path));
        let Some(text) = found else {
            return Err(Failure::new(Kind::NotFound, format!("open {path}: no such file or directory")));
        };
        let length = range.map_or(usize::MAX, |r| usize::try_from(r.length).unwrap());
        Ok(text.bytes().take(length).collect())
    }

    async fn read_dir(&self, _: &RefId, _: &str, _: &str) -> Result<Vec<Stat>, Failure> {
        Ok(Vec::new())
    }

    async fn stat_file(&self, _: &RefId, path: &str) -> Result<Stat, Failure> {
        Err(Failure::new(Kind::NotFound, path))
    }

    async fn resolve_source_meta(&self, request: ResolveSource) -> Result<SourceMeta, Failure> {
        let mut source = request.source;
        let platform = request
            .platform
            .map(|p| format!("{}/{}/{}", p.os, p.architecture, p.variant))
            .unwrap_or_default();
        let id = source.identifier.clone();
        self.asked.lock().unwrap().resolves.push(format!(
            "{id} {} {platform} {} {} {}",
            json(&source.attrs),
            request.resolve_mode,
            request.git_objects,
            request.log_name
        ));
        if id.starts_with("git://") {
            let git = GitMeta {
                checksum: "a".repeat(40),
                commit_object: self.case.commit.clone().into_bytes(),
                ..GitMeta::default()
            };
            return Ok(SourceMeta { source, git: Some(git), ..SourceMeta::default() });
        }
        if id.starts_with("http") {
            let modified = self.case.modified;
            let http = HttpMeta {
                digest: Digest::of("x"),
                filename: String::new(),
                last_modified: (modified != 0).then(|| Timestamp::from_secs(modified)),
                checksum: None,
            };
            return Ok(SourceMeta { source, http: Some(http), ..SourceMeta::default() });
        }
        let images = &self.images;
        let Some(config) =
            images.get(&format!("{id} {platform}")).or_else(|| images.get(&id)).or_else(|| images.get("*"))
        else {
            return Err(Failure::new(Kind::NotFound, format!("{id}: not found")));
        };
        if !config.starts_with('{') {
            source.identifier = config.clone();
            return Ok(SourceMeta { source, ..SourceMeta::default() });
        }
        let image = ImageMeta {
            digest: Digest::of(config),
            config: config.clone().into_bytes(),
            attestation_chain: None,
        };
        Ok(SourceMeta { source, image: Some(image), ..SourceMeta::default() })
    }

    async fn warn(&self, warning: Warning) -> Result<(), Failure> {
        let lines: Vec<String> = warning.ranges.iter().map(|r| r.start.line.to_string()).collect();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        self.asked.lock().unwrap().warnings.push(format!(
            "{} [{}] {} {}",
            text(&warning.short),
            lines.join(","),
            text(&warning.detail[0]),
            warning.url
        ));
        Ok(())
    }
}
