//! Platforms: what they are called, and which run where.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system on a processor, as images and clients name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Windows builds.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Windows features.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Such as `v7` of arm.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The text is not a platform.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text:?} is not a platform: {reason}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
}

impl Platform {
    /// A normalised platform.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
        .normalized()
    }

    /// The platform this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, if architecture == "arm" { "v7" } else { "" })
    }

    /// The one spelling of several: `x86_64` is `amd64`, `arm64/v8` is `arm64`.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "" => "linux".to_owned(),
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let (architecture, variant) =
            (self.architecture.to_ascii_lowercase(), self.variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", if v == "v1" { "" } else { v }),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", v) => {
                ("arm64", if matches!(v, "8" | "v8" | "v8.0") { "" } else { v.trim_start_matches("v8.0") })
            }
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        self.architecture = architecture.to_owned();
        self.variant = variant.to_owned();
        self.os_features.sort();
        self.os_features.dedup();
        self
    }

    /// `os/arch[/variant]`, with version and features of the system, as in
    /// `windows(10.0+win32k)/amd64`, when they are known.
    pub fn format_all(&self) -> String {
        let mut features: Vec<&str> =
            self.os_features.iter().map(String::as_str).filter(|f| !f.is_empty()).collect();
        features.sort_unstable();
        features.dedup();
        if self.os.is_empty() || (self.os_version.is_empty() && features.is_empty()) {
            return self.to_string();
        }
        let plus = features.iter().map(|f| format!("+{f}")).collect::<String>();
        let os = format!("{}({}{plus})", self.os, self.os_version);
        join(&os, &self.architecture, &self.variant)
    }

    /// Whether what is made for `other` runs on this platform without
    /// emulation: the same, or an older variant of the same processor.
    pub fn runs(&self, other: &Self) -> bool {
        self.os == other.os
            && self.has_system_for(other)
            && match (self.architecture.as_str(), other.architecture.as_str()) {
                ("amd64", "386") => true,
                ("arm64", "arm") => true,
                (a, b) if a == b => variant_rank(other) <= variant_rank(self),
                _ => false,
            }
    }

    /// Whether version and features of this system are what `other` needs.
    fn has_system_for(&self, other: &Self) -> bool {
        let windows = self.os == "windows";
        // Every Windows that runs containers has this one, named or not.
        let given = |feature: &String| windows && feature == "win32k";
        let features = other.os_features.iter().all(|f| given(f) || self.os_features.contains(f));
        features && (!windows || windows_runs(&self.os_version, &other.os_version))
    }

    /// How well what is made for `other` suits this platform: zero is best,
    /// `None` not at all. Its own processor comes before one it can also run,
    /// and of those the newest variant first.
    pub fn suits(&self, other: &Self) -> Option<u32> {
        if !self.runs(other) {
            return None;
        }
        let foreign = if self.architecture == other.architecture { 0 } else { 1000 };
        let newest = if foreign == 0 { variant_rank(self) } else { 100 };
        Some(foreign + newest.saturating_sub(variant_rank(other)))
    }
}

/// The builds of Windows Server whose containers later builds run as well, up to
/// and including the next of these.
const WINDOWS_LONG_TERM: [u16; 2] = [20348, 26100];

/// Whether Windows `host` runs containers of Windows `made_for`. Containers share
/// the host's kernel: builds must be the same, since Server 2022 not older than
/// the long-term release before. Versions that are not told exclude nothing.
fn windows_runs(host: &str, made_for: &str) -> bool {
    /// Major, minor and build; zeros for what is no version.
    fn parts(version: &str) -> (u8, u8, u16) {
        let mut parts = version.split('.');
        let mut next = || parts.next().unwrap_or_default();
        let (major, minor, build) = (next(), next(), next());
        match (major.parse(), minor.parse(), build.parse()) {
            (Ok(major), Ok(minor), Ok(build)) => (major, minor, build),
            _ => (0, 0, 0),
        }
    }
    let host = parts(host);
    if host == (0, 0, 0) || made_for.is_empty() {
        return true;
    }
    let made_for = parts(made_for);
    if (host.0, host.1) != (made_for.0, made_for.1) {
        return false;
    }
    let [first, ..] = WINDOWS_LONG_TERM;
    if host.2 < first {
        return host.2 == made_for.2;
    }
    let oldest = WINDOWS_LONG_TERM.into_iter().rev().find(|build| *build < host.2).unwrap_or(first);
    (oldest..=host.2).contains(&made_for.2)
}

/// Variants in order of age; unknown ones run only where they are named.
fn variant_rank(p: &Platform) -> u32 {
    match (p.architecture.as_str(), p.variant.as_str()) {
        ("amd64", "") => 1,
        ("arm64", "") => 8,
        (_, v) => v.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0),
    }
}

fn join(os: &str, architecture: &str, variant: &str) -> String {
    let mut text = os.to_owned();
    for part in [architecture, variant] {
        if !part.is_empty() {
            text.push('/');
            text.push_str(part);
        }
    }
    text
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&join(&self.os, &self.architecture, &self.variant))
    }
}

impl FromStr for Platform {
    type Err = ParseError;

    /// Reads `os/arch/variant`, `os/arch`, `os` or `arch`; normalised.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = |reason| ParseError { text: text.chars().take(160).collect(), reason };
        if text.is_empty() || text.contains('*') {
            return Err(fail("wildcards and empty text are not allowed"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |p: &&str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let (os, os_version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(|| fail("unclosed bracket"))?),
            None => (parts[0], ""),
        };
        let (os_version, features) = os_version.split_once('+').unwrap_or((os_version, ""));
        if !valid(&os) || !parts[1..].iter().all(valid) {
            return Err(fail("only letters, digits, '_', '-' and '.' are allowed between the slashes"));
        }
        let mut platform = match (os, &parts[1..]) {
            (one, []) if is_os(one) => Self::new(one, &Self::host().architecture, ""),
            (one, []) => Self::new("linux", one, ""),
            (os, [architecture]) => Self::new(os, architecture, ""),
            (os, [architecture, variant]) => Self::new(os, architecture, variant),
            _ => return Err(fail("too many slashes")),
        };
        platform.os_version = os_version.to_owned();
        platform.os_features = features.split('+').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        Ok(platform)
    }
}

fn is_os(text: &str) -> bool {
    const KNOWN: [&str; 14] = [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "ios",
        "js",
        "linux",
        "macos",
        "netbsd",
        "openbsd",
        "solaris",
        "windows",
    ];
    KNOWN.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (given, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("Linux/AMD64", "linux/amd64"),
        ] {
            assert_eq!(given.parse::<Platform>().unwrap().to_string(), want);
        }
        for bad in ["", "*", "a/b/c/d", "linux//", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn knows_what_runs() {
        let p = |t: &str| t.parse::<Platform>().unwrap();
        assert!(p("linux/arm64").runs(&p("linux/arm/v7")));
        assert!(p("linux/arm/v7").runs(&p("linux/arm/v6")));
        assert!(!p("linux/arm/v6").runs(&p("linux/arm/v7")));
        assert!(!p("linux/amd64").runs(&p("linux/arm64")));
        let w = |version: &str| p(&format!("windows({version})/amd64"));
        for (host, made_for, runs) in [
            ("1.1.0", "1.1.0", true),
            ("1.1.0", "1.2.3", false),
            ("10.0.17763", "10.0.17763.5329", true),
            ("10.0.17763", "10.0.20348", false),
            ("10.0.20348", "10.0.20348.2227", true),
            ("10.0.20348", "10.0.17763", false),
            ("10.0.26100", "10.0.20348", true),
            ("10.0.26101", "10.0.20348", false),
            ("10.0.26101", "10.0.26100", true),
            ("10.0.20348", "", true),
            ("", "10.0.20348", true),
            ("10.0", "10.0.20348", true),
            ("10.0.20348", "10.0", false),
        ] {
            assert_eq!(w(host).runs(&w(made_for)), runs, "{host} {made_for}");
        }
        assert!(w("10.0.20348").runs(&p("windows(10.0.20348+win32k)/amd64")));
        assert!(!w("10.0.20348").runs(&p("windows(10.0.20348+other)/amd64")));
        assert!(p("windows(+a+b)/amd64").runs(&p("windows(+b)/amd64")));
    }
}
