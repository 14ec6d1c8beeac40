//! Base images, written by the harness itself from what Debian installs.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::http;
use crate::places;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What the frontend for tests says it can, in the label `moby.buildkit.frontend.caps`.
pub const FRONTEND_CAPS: &str = "moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts";

/// `sha256:` and the sum.
pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image for this machine with one layer.
pub struct Image {
    /// The layer, compressed.
    pub layer: Vec<u8>,
    /// The config.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
}

impl Image {
    /// An image of one uncompressed layer that runs `command`.
    ///
    /// # Errors
    /// When it cannot be compressed.
    pub fn new(layer: &[u8], command: &[&str]) -> Result<Self> {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Self::configured(layer, json!({"Env": [path], "Cmd": command}))
    }

    /// An image of one uncompressed layer that is run as `config` says.
    ///
    /// # Errors
    /// When it cannot be compressed.
    pub fn configured(layer: &[u8], config: Value) -> Result<Self> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(layer)?;
        let packed = gzip.finish()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "harness"}],
        });
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": digest(&packed), "size": packed.len()}],
        });
        Ok(Self { layer: packed, config, manifest: serde_json::to_vec(&manifest)? })
    }

    /// An image with nothing in it, described with `null` as Go does.
    ///
    /// # Errors
    /// Never, but for bugs.
    pub fn empty() -> Result<Self> {
        let rootfs = json!({"type": "layers", "diff_ids": null});
        let config = json!({"architecture": architecture(), "os": "linux", "config": null, "rootfs": rootfs, "history": null});
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len(), "urls": null},
            "layers": null,
            "annotations": null,
        });
        Ok(Self { layer: Vec::new(), config, manifest: serde_json::to_vec(&manifest)? })
    }

    /// Debian's static busybox with a link for each of its commands.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn busybox() -> Result<Self> {
        let program = places::provided("/bin/busybox")?;
        let list = Command::new(&program).arg("--list").output().context("list of busybox's commands")?;
        let mut tar = Builder::new(Vec::new());
        for (path, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("home", 0o755),
            ("proc", 0o755),
            ("root", 0o700),
            ("sys", 0o755),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("var", 0o755),
        ] {
            entry(&mut tar, path, EntryType::Directory, mode, &[])?;
        }
        entry(&mut tar, "bin/busybox", EntryType::Regular, 0o755, &std::fs::read(&program)?)?;
        for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
        let users = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nuser:x:1000:1000::/home:/bin/sh\n";
        let groups = "root:x:0:\ndaemon:x:1:\nstaff:x:50:user\nuser:x:1000:\n";
        entry(&mut tar, "etc/passwd", EntryType::Regular, 0o644, users.as_bytes())?;
        entry(&mut tar, "etc/group", EntryType::Regular, 0o644, groups.as_bytes())?;
        Self::new(&tar.into_inner()?, &["sh"])
    }

    /// The frontend for tests, with the libraries of this machine that it needs.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn frontend(labels: Value) -> Result<Self> {
        let program = places::program("frontend")?;
        let needs = Command::new("ldd").arg(&program).output().context("list of libraries")?;
        let needs = String::from_utf8_lossy(&needs.stdout).into_owned();
        let libraries = needs.split_ascii_whitespace().filter(|word| word.starts_with('/'));
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, "frontend", EntryType::Regular, 0o755, &std::fs::read(&program)?)?;
        for path in libraries {
            let inside = path.trim_start_matches('/');
            entry(&mut tar, inside, EntryType::Regular, 0o755, &std::fs::read(path)?)?;
        }
        Self::configured(&tar.into_inner()?, json!({"Entrypoint": ["/frontend"], "Labels": labels}))
    }

    /// The small Debian that `setup.sh` made.
    ///
    /// # Errors
    /// When it has not.
    pub fn debian() -> Result<Self> {
        let path = places::provided(places::cache().join("images/debian.tar"))?;
        Self::new(&std::fs::read(path)?, &["bash"])
    }

    /// Pushes it to a registry.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn push(&self, host: &str, name: &str, tag: &str) -> Result<()> {
        for blob in [&self.layer, &self.config] {
            push_blob(host, name, blob)?;
        }
        let path = format!("/v2/{name}/manifests/{tag}");
        http::send(host, "PUT", &path, &[("Content-Type", MANIFEST)], &self.manifest)?.success()?;
        Ok(())
    }

    /// Writes it as an OCI layout.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write_layout(&self, directory: &Path, tag: &str) -> Result<String> {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        for blob in [&self.layer, &self.config, &self.manifest] {
            std::fs::write(blobs.join(digest(blob).trim_start_matches("sha256:")), blob)?;
        }
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let name = digest(&self.manifest);
        let index: Value = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST, "digest": name, "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
                "platform": {"architecture": architecture(), "os": "linux"},
            }],
        });
        std::fs::write(directory.join("index.json"), index.to_string())?;
        Ok(name)
    }
}

/// Pushes one blob to a registry.
///
/// # Errors
/// When the registry does not take it.
pub fn push_blob(host: &str, name: &str, blob: &[u8]) -> Result<()> {
    let begun = http::send(host, "POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[])?.success()?;
    let location = begun.headers.get("location").context("no location")?;
    let path = location.split_once(host).map_or(location.as_str(), |(_, path)| path);
    let join = if path.contains('?') { '&' } else { '?' };
    http::send(host, "PUT", &format!("{path}{join}digest={}", digest(blob)), &[], blob)?.success()?;
    Ok(())
}

/// This machine's architecture as images call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_704_067_200);
    header
}

fn entry(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, data: &[u8]) -> Result<()> {
    tar.append_data(&mut header(kind, mode, data.len() as u64), path, data)?;
    Ok(())
}

/// A tar file with one entry whose path is written as it is.
pub fn raw_entry(path: &str, kind: tar::EntryType, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let name = &mut header.as_old_mut().name;
    let length = path.len().min(name.len());
    name[..length].copy_from_slice(&path.as_bytes()[..length]);
    let target = &mut header.as_old_mut().linkname;
    target[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
