//! A real registry on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::process::Service;

/// Debian's `docker-registry` with storage of its own.
pub struct Registry {
    service: Service,
    host: String,
    _dir: TempDir,
}

impl Registry {
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
}

/// A port that nobody listens on right now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
