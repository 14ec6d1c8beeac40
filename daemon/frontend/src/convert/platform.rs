//! Which platform a stage is for, and which variables say so.

use std::collections::BTreeMap;

use base::Platform;
use base::gotext::quote;
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

/// The text is not a platform, in the words clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPlatform {
    #[error("{}: wildcards not yet supported: invalid argument", quote(.0))]
    Wildcard(String),
    #[error(
        "{} is an invalid OS component of {}: OSAndVersion specifier component must match {}: invalid argument",
        quote(.part), quote(.whole), quote(OS)
    )]
    System { part: String, whole: String },
    #[error(
        "{} is an invalid component of {}: platform specifier component must match {}: invalid argument",
        quote(.part), quote(.whole), quote(COMPONENT)
    )]
    Component { part: String, whole: String },
    #[error("{}: unknown operating system or architecture: invalid argument", quote(.0))]
    Unknown(String),
    #[error("{}: cannot parse platform specifier: invalid argument", quote(.0))]
    Parts(String),
}

/// What a component looks like, and the one with the system.
const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";
const OS: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";

/// Reads a platform as it is written in a flag. Unlike a parsed and normalised
/// one it does not get a variant that was not written, and keeps `v8` of arm64:
/// that is what digests were made of ever since.
pub(crate) fn parse(text: &str) -> Result<Platform, BadPlatform> {
    if text.contains('*') {
        return Err(BadPlatform::Wildcard(text.to_owned()));
    }
    let parts: Vec<&str> = text.splitn(4, '/').collect();
    let whole = || text.to_owned();
    let word = |t: &str, extra: &str| t.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
    let first = parts.first().copied().unwrap_or_default();
    let (os, options) = match first.split_once('(') {
        Some((os, options)) => (os, options.strip_suffix(')')),
        None => (first, Some("")),
    };
    let options = options.filter(|o| {
        let mut features = o.split('+');
        let version = features.next().unwrap_or_default();
        word(version, "_.%-") && features.all(|f| !f.is_empty() && word(f, "_.%-"))
    });
    let Some(options) = options.filter(|_| !os.is_empty() && word(os, "_-")) else {
        return Err(BadPlatform::System { part: first.to_owned(), whole: whole() });
    };
    if let Some(part) = parts.iter().skip(1).find(|p| p.is_empty() || !word(p, "_.-")) {
        return Err(BadPlatform::Component { part: (*part).to_owned(), whole: whole() });
    }
    // Normalised, with what was written put back.
    let normal = |os: &str, architecture: &str, variant: &str| Platform::new(os, architecture, variant);
    let mut platform = match parts.as_slice() {
        [_] if KNOWN_SYSTEMS.contains(&os.to_ascii_lowercase().as_str()) => {
            normal(os, &Platform::host().architecture, &Platform::host().variant)
        }
        [one] => {
            let mut platform = normal("linux", one, "");
            if !KNOWN_ARCHITECTURES.contains(&platform.architecture.as_str()) {
                return Err(BadPlatform::Unknown(whole()));
            }
            without_guess(&mut platform);
            platform
        }
        [_, architecture] => {
            let mut platform = normal(os, architecture, "");
            without_guess(&mut platform);
            platform
        }
        [_, architecture, variant] => {
            let mut platform = normal(os, architecture, variant);
            if platform.architecture == "arm64" && platform.variant.is_empty() {
                "v8".clone_into(&mut platform.variant);
            }
            platform
        }
        _ => return Err(BadPlatform::Parts(whole())),
    };
    if parts.len() > 1 || !options.is_empty() {
        let mut options = options.split('+');
        options.next().unwrap_or_default().clone_into(&mut platform.os_version);
        platform.os_features = options.map(str::to_owned).collect();
    }
    Ok(platform)
}

/// `arm` alone does not say `v7`.
fn without_guess(platform: &mut Platform) {
    if platform.architecture == "arm" && platform.variant == "v7" {
        platform.variant.clear();
    }
}

const KNOWN_SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const KNOWN_ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_written() {
        let p = |t: &str| parse(t).map(|p| (p.os, p.architecture, p.variant)).unwrap();
        let of = |o: &str, a: &str, v: &str| (o.to_owned(), a.to_owned(), v.to_owned());
        assert_eq!(p("linux/arm"), of("linux", "arm", ""));
        assert_eq!(p("linux/arm/v7"), of("linux", "arm", "v7"));
        assert_eq!(p("linux/arm64/v8"), of("linux", "arm64", "v8"));
        assert_eq!(p("armel"), of("linux", "arm", "v6"));
        assert_eq!(p("x86_64"), of("linux", "amd64", ""));
        assert_eq!(parse("windows(10.0)/amd64").unwrap().os_version, "10.0");
        for (bad, why) in [
            ("a/b/c/d", "\"a/b/c/d\": cannot parse platform specifier: invalid argument"),
            (
                "linux/",
                "\"\" is an invalid component of \"linux/\": platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument",
            ),
            ("nope", "\"nope\": unknown operating system or architecture: invalid argument"),
        ] {
            assert_eq!(parse(bad).unwrap_err().to_string(), why);
        }
    }
}
