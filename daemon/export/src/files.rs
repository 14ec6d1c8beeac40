//! Results as plain files: the directory and the tarball.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base::digest::Hasher;
use base::{Digest, Failure, Timestamp};
use refs::Ref;
use session::fs::{Dir, Stat, Tree, mode};

use crate::Source;
use crate::attest::{self, Attestation, Named};
use crate::epoch::{self, Epoch};
use crate::error::Error;
use crate::options::{Attrs, parse_bool};
use crate::platforms::{PlatformEntry, platforms};
use crate::rawjson;
use crate::tree::{Files, Merged, Mounted};

pub(crate) mod local;
pub(crate) mod tar;

/// Options of both exporters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The outer none: not said.
    epoch: Option<Epoch>,
    attestation_prefix: String,
    split: Option<bool>,
    /// Remove what is at the client and not in the result.
    delete: bool,
}

impl Options {
    /// # Errors
    /// An option that makes no sense.
    fn read(attrs: &Attrs) -> Result<Self, Error> {
        let mut rest = attrs.clone();
        let epoch = epoch::take(&mut rest)?;
        let split = rest
            .remove("platform-split")
            .map(|value| parse_bool(&format!("non-bool value for platform-split: {value}"), &value))
            .transpose()?;
        let given = rest.remove("mode").unwrap_or_default();
        let delete = match given.trim().to_lowercase().as_str() {
            "" | "copy" => false,
            "delete" => true,
            _ => {
                let value = base::gotext::quote(&given);
                return Err(Error::Option { what: "invalid local exporter mode", value });
            }
        };
        let attestation_prefix = rest.remove("attestation-prefix").unwrap_or_default();
        Ok(Self { epoch, attestation_prefix, split, delete })
    }

    /// Whether each platform gets a directory of its own.
    fn splits(&self, is_map: bool) -> bool {
        self.split.unwrap_or(is_map)
    }
}

/// One platform's files.
struct Part {
    id: String,
    tree: Arc<dyn Tree>,
    epoch: Epoch,
}

impl Part {
    /// The directory that holds them, when there are several.
    fn dir(&self) -> Stat {
        let mod_time = self.epoch.as_ref().map_or(0, |time| time.timestamp().nanos());
        let path = self.id.replace('/', "_");
        Stat { path, mode: mode::DIR | 0o755, mod_time, ..Stat::default() }
    }
}

/// The files of each platform.
///
/// # Errors
/// When the result has no such shape, or cannot be mounted.
async fn parts(source: &Source, options: &Options) -> Result<Vec<Part>, Failure> {
    let is_map = source.is_map();
    if is_map && !source.metadata.contains_key("refs.platforms") {
        return Err(Error::shape("unable to export multiple refs, missing platforms mapping").into());
    }
    let list = platforms(&source.metadata)?;
    if !is_map && list.len() > 1 {
        return Err(Error::shape("unable to export multiple platforms without map").into());
    }
    let general = match &options.epoch {
        Some(epoch) => Some(epoch.clone()),
        None => epoch::from_metadata(&source.metadata, None)?.filter(Option::is_some),
    };
    let now = Timestamp::from_secs(Timestamp::now().secs());
    let mut out = Vec::new();
    for platform in list {
        let missing = || Error::shape(format!("failed to find ref for ID {}", platform.id));
        let result = source.find(&platform.id).ok_or_else(missing)?;
        let epoch = match &general {
            Some(epoch) => epoch.clone(),
            None => epoch::from_metadata(&source.metadata, Some(&platform.id))?.flatten(),
        };
        let files = files(result, epoch.as_ref().map(epoch::Time::timestamp)).await?;
        let attestations = source.attestations.get(&platform.id).map(Vec::as_slice).unwrap_or_default();
        let wanted: Vec<_> = attestations.iter().filter(|a| !a.is_inline_only()).cloned().collect();
        let mut trees = vec![files];
        if !wanted.is_empty() {
            let time = epoch.as_ref().map_or(now, epoch::Time::timestamp);
            let named = is_map && !options.splits(is_map);
            let said = statements(&wanted, &trees, options, named.then_some(&platform), time).await?;
            trees.push(Arc::new(said));
        }
        out.push(Part { id: platform.id, tree: Merged::of(trees), epoch });
    }
    Ok(out)
}

/// The files of a tree, all of one time if there is an epoch.
async fn files(result: Option<&Ref>, time: Option<Timestamp>) -> Result<Arc<dyn Tree>, Failure> {
    let Some(result) = result else { return Ok(Arc::new(Files::default())) };
    let mount = result.mount().await?;
    base::task::blocking(move || {
        let mut tree = Dir::open(mount.path())?;
        if let Some(time) = time {
            tree = tree.mapped(Arc::new(move |_, stat| {
                stat.mod_time = time.nanos();
                true
            }));
        }
        Ok(Arc::new(Mounted { tree, _mount: mount }) as Arc<dyn Tree>)
    })
    .await
}

/// What is said about the files, as files.
async fn statements(
    attestations: &[Attestation],
    trees: &[Arc<dyn Tree>],
    options: &Options,
    platform: Option<&PlatformEntry>,
    time: Timestamp,
) -> Result<Files, Failure> {
    let all = attest::unbundle(attestations).await?;
    let Some(tree) = trees.first().cloned() else { return Ok(Files::default()) };
    let subjects = base::task::blocking(move || subjects(tree.as_ref())).await?;
    let mut out = BTreeMap::new();
    for statement in attest::statements(&all, &subjects).await? {
        let path = Path::new(&statement.path);
        let base = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut name = format!("{}{base}", options.attestation_prefix);
        if let Some(platform) = platform {
            let at = name.rfind('.').unwrap_or(name.len());
            let (stem, extension) = name.split_at(at);
            name = format!("{stem}.{}{extension}", platform.id.replace('/', "_"));
        }
        if name.is_empty() || name.contains('/') || matches!(name.as_str(), "." | "..") {
            return Err(Error::Attestation(format!("invalid attestation path name {name}")).into());
        }
        let bytes: Arc<[u8]> = rawjson::indent(&statement.json).into_bytes().into();
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let stat = Stat { path: name.clone(), mode: 0o600, size, mod_time: time.nanos(), ..Stat::default() };
        if out.insert(name.clone(), (stat, bytes)).is_some() {
            return Err(Error::Attestation(format!("duplicate attestation path name {name}")).into());
        }
    }
    Ok(Files(out))
}

/// Every regular file with its digest.
fn subjects(tree: &dyn Tree) -> Result<Vec<Named>, Failure> {
    let mut paths = Vec::new();
    tree.walk(&mut |stat| {
        if stat.is_file() {
            paths.push(stat.path);
        }
        Ok(())
    })?;
    let mut out = Vec::new();
    for path in paths {
        let digest = digest(tree, &path).map_err(|e| sys::Error::new("read", &path, e))?;
        out.push(Named::new(path, [&digest]));
    }
    Ok(out)
}

fn digest(tree: &dyn Tree, path: &str) -> std::io::Result<Digest> {
    let mut file = tree.open(path)?;
    let mut hash = Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finish()),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Options, Error> {
        Options::read(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn reads_options() {
        let options = read(&[("mode", " Delete"), ("platform-split", "0"), ("unknown", "x")]).unwrap();
        assert!(options.delete && !options.splits(true));
        assert!(read(&[]).unwrap().splits(true));
        assert!(!read(&[]).unwrap().splits(false));
        for (pair, want) in [
            (("mode", "move"), "invalid local exporter mode \"move\""),
            (
                ("platform-split", "x"),
                "non-bool value for platform-split: x: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(read(&[pair]).unwrap_err().to_string(), want);
        }
    }

    #[tokio::test]
    async fn statements_become_files() {
        let attestation = Attestation {
            kind: attest::AttestationKind::InToto,
            metadata: BTreeMap::new(),
            predicate: attest::Predicate::Made(Arc::new(b"{}".to_vec())),
            path: "some/provenance.json".into(),
            predicate_type: "https://example.com/p".into(),
            subjects: Vec::new(),
        };
        let stat = Stat { path: "f".into(), size: 1, ..Stat::default() };
        let tree: Arc<dyn Tree> =
            Arc::new(Files(BTreeMap::from([("f".to_owned(), (stat, Arc::from(&b"x"[..])))])));
        let platform = PlatformEntry { id: "linux/arm64".into(), platform: base::Platform::host() };
        let options = read(&[("attestation-prefix", "p-")]).unwrap();
        let files = statements(&[attestation], &[tree], &options, Some(&platform), Timestamp::EPOCH).await;
        let files = files.unwrap().0;
        let (stat, bytes) = &files["p-provenance.linux_arm64.json"];
        let text = std::str::from_utf8(bytes).unwrap();
        assert_eq!((stat.mode, stat.mod_time), (0o600, 0));
        assert!(text.contains(Digest::of("x").hex()) && text.contains("\n  \"predicate\": {}\n}"), "{text}");
    }
}
