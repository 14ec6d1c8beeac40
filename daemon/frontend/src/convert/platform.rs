//! Which platform a stage is for, and which variables say so.

use std::collections::BTreeMap;

use base::Platform;
use llb::build::EnvList;

/// The platforms of a build.
#[derive(Debug, Clone)]
pub(super) struct Platforms {
    /// What is built for.
    pub(super) target: Platform,
    /// What can be built on; the first is the default. Never empty.
    pub(super) build: Vec<Platform>,
    /// Nobody asked for the target.
    pub(super) implicit: bool,
}

impl Platforms {
    pub(super) fn new(target: Option<&Platform>, build: &[Platform]) -> Self {
        let mut build = build.to_vec();
        if build.is_empty() {
            build.push(target.cloned().unwrap_or_else(Platform::host));
        }
        let first = build.first().cloned().unwrap_or_else(Platform::host);
        Self { target: target.cloned().unwrap_or(first), build, implicit: target.is_none() }
    }

    fn native(&self) -> Platform {
        self.build.first().cloned().unwrap_or_else(Platform::host)
    }

    /// The variables every `FROM` may use without declaring them.
    pub(super) fn args(&self, overrides: &BTreeMap<String, String>, target_stage: &str) -> EnvList {
        let (b, t) = (self.native(), &self.target);
        let stage = if target_stage.is_empty() { "default" } else { target_stage };
        let mut env = EnvList::default();
        for (key, value) in [
            ("BUILDPLATFORM", b.to_string()),
            ("BUILDOS", b.os.clone()),
            ("BUILDOSVERSION", b.os_version.clone()),
            ("BUILDARCH", b.architecture.clone()),
            ("BUILDVARIANT", b.variant.clone()),
            ("TARGETPLATFORM", t.format_all()),
            ("TARGETOS", t.os.clone()),
            ("TARGETOSVERSION", t.os_version.clone()),
            ("TARGETARCH", t.architecture.clone()),
            ("TARGETVARIANT", t.variant.clone()),
            ("TARGETSTAGE", stage.to_owned()),
        ] {
            env.set(key, overrides.get(key).cloned().unwrap_or(value));
        }
        env
    }

    /// What an image that nobody asked a platform of is for: the target if it
    /// fits, else one of the platforms that can be built on.
    pub(super) fn detect(&self, image: &Platform, target: &Platform) -> Platform {
        let same = |p: &Platform| p.os == image.os && p.architecture == image.architecture;
        if same(target) {
            return target.clone();
        }
        self.build.iter().find(|p| same(p)).unwrap_or(target).clone()
    }
}

/// Reads a platform as it is written in a flag. Unlike a parsed and normalised
/// one it does not get a variant that was not written, and keeps `v8` of arm64:
/// that is what digests were made of ever since.
pub(crate) fn parse(text: &str) -> Result<Platform, base::platform::ParseError> {
    let mut platform: Platform = text.parse()?;
    let parts: Vec<&str> = text.split('/').collect();
    match (platform.architecture.as_str(), platform.variant.as_str(), parts.len()) {
        ("arm", "v7", 1 | 2) => platform.variant.clear(),
        ("arm64", "", 3..) => "v8".clone_into(&mut platform.variant),
        _ => {}
    }
    Ok(platform)
}

/// `->arch` or `->os/arch` where the variables name another platform than the
/// one a step runs on.
pub(super) fn cross(base: &Platform, env: &EnvList) -> String {
    let Some(mut target) = from_env(env) else { return String::new() };
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = target.normalized();
    if target.os != base.os {
        return format!("->{}", target.format_all());
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    match target.variant.as_str() {
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    }
}

fn from_env(env: &EnvList) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut set = false;
    for (key, value) in env.iter() {
        let field = match key {
            "TARGETPLATFORM" => match parse(value) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => &mut platform.os,
            "TARGETARCH" => &mut platform.architecture,
            "TARGETVARIANT" => &mut platform.variant,
            _ => continue,
        };
        value.clone_into(field);
        set = true;
    }
    set.then_some(platform)
}
