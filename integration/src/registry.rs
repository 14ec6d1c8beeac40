//! A real registry on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::image::Image;
use crate::process::Service;

/// Debian's `docker-registry` with storage of its own.
pub struct Registry {
    service: Service,
    host: String,
    _dir: TempDir,
}

impl Registry {
    /// Starts one that has `busybox`, as `docker.io` has it.
    ///
    /// # Errors
    /// When it does not come up or take the image.
    pub fn with_busybox() -> Result<Self> {
        let registry = Self::start()?;
        Image::busybox()?.push(registry.host(), "library/busybox", "latest")?;
        Ok(registry)
    }

    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("bk-registry-")?;
        let host = format!("127.0.0.1:{}", free_port()?);
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
             enabled: true\nhttp:\n  addr: {host}\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config)?;
        let args = ["serve".as_ref(), file.as_os_str()];
        let log = dir.path().join("log");
        let mut service = Service::start("docker-registry", Path::new("docker-registry"), args, &[], log)?;
        service.wait_until(Duration::from_secs(20), || TcpStream::connect(&host).ok())?;
        Ok(Self { service, host, _dir: dir })
    }

    /// Its host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn manifest(&self, name: &str, reference: &str) -> Result<(Answer, Value)> {
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
            application/vnd.docker.distribution.manifest.v2+json, \
            application/vnd.docker.distribution.manifest.list.v2+json";
        let path = format!("/v2/{name}/manifests/{reference}");
        let answer = http::send(&self.host, "GET", &path, &[("Accept", accept)], &[])?.success()?;
        let value = serde_json::from_slice(&answer.body).context("manifest")?;
        Ok((answer, value))
    }

    /// A blob.
    ///
    /// # Errors
    /// When it is not there.
    pub fn blob(&self, name: &str, digest: &str) -> Result<Vec<u8>> {
        let path = format!("/v2/{name}/blobs/{digest}");
        Ok(http::send(&self.host, "GET", &path, &[], &[])?.success()?.body)
    }

    /// The manifest of the image for this machine, index or not, and its config.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self, name: &str, reference: &str) -> Result<(Value, Value)> {
        let (_, mut manifest) = self.manifest(name, reference)?;
        if let Some(first) = manifest["manifests"][0]["digest"].as_str() {
            manifest = self.manifest(name, first)?.1;
        }
        let config = manifest["config"]["digest"].as_str().context("config digest")?;
        let config = serde_json::from_slice(&self.blob(name, config)?)?;
        Ok((manifest, config))
    }

    /// What an attestation of `kind`, a predicate's type, says about the image for this
    /// machine.
    ///
    /// # Errors
    /// When there is none, or one of the image's attestations is not about the image.
    pub fn statement(&self, name: &str, reference: &str, kind: &str) -> Result<Value> {
        let index = self.manifest(name, reference)?.1;
        let manifests = index["manifests"].as_array().with_context(|| format!("no index: {index}"))?;
        let image = manifests[0]["digest"].as_str().context("image")?;
        let about = &manifests[1];
        ensure!(about["annotations"]["vnd.docker.reference.digest"] == image, "{index}");
        ensure!(about["platform"]["os"] == "unknown", "{index}");
        let manifest = self.manifest(name, about["digest"].as_str().context("digest")?)?.1;
        let mut found = None;
        for layer in manifest["layers"].as_array().context("statements")? {
            let blob = self.blob(name, layer["digest"].as_str().context("digest")?)?;
            let statement: Value = serde_json::from_slice(&blob)?;
            let said = layer["annotations"]["in-toto.io/predicate-type"].as_str().context("type")?;
            ensure!(statement["predicateType"] == said, "{statement}");
            let subject = &statement["subject"][0]["digest"]["sha256"];
            ensure!(subject.as_str().is_some_and(|hex| image.ends_with(hex)), "{statement}");
            if said == kind {
                found = Some(statement["predicate"].clone());
            }
        }
        found.with_context(|| format!("nothing of {kind} in {manifest}"))
    }
}

/// A port that nobody listens on right now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
