//! Certificates: an authority, and what it signs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::process;

/// An authority of the test's own.
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Not valid any more.
pub const EXPIRED: &[&str] = &["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];
/// Valid from now on for a day.
pub const VALID: &[&str] = &["-days", "1"];

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When `openssl` does not work.
    pub fn new() -> Result<Self> {
        let authority = Self { dir: TempDir::with_prefix("bk-ca-")? };
        let (key, cert) = (authority.path("ca.key"), authority.path("ca.pem"));
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &text(&key)])?;
        let args = ["req", "-x509", "-days", "1", "-subj", "/CN=authority", "-key", &text(&key), "-out"];
        openssl(&[&args[..], &[&text(&cert)]].concat())?;
        // What the command `ca` wants to keep books in.
        std::fs::write(authority.path("index.txt"), "")?;
        let config = format!(
            "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nnew_certs_dir={}\ndefault_md=sha256\npolicy=p\nrand_serial=yes\n\
             unique_subject=no\ncopy_extensions=copy\n[p]\ncommonName=supplied\n",
            text(&authority.path("index.txt")),
            text(authority.dir.path()),
        );
        std::fs::write(authority.path("ca.cnf"), config)?;
        Ok(authority)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its own certificate.
    pub fn cert(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Signs a certificate for `name`, which is valid for these alternative names
    /// (`DNS:localhost,IP:127.0.0.1`) and as long as `validity` says.
    ///
    /// # Errors
    /// When `openssl` does not work.
    pub fn sign(&self, name: &str, alternatives: &str, validity: &[&str]) -> Result<Pair> {
        let pair = Pair { cert: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) };
        let (key, request) = (text(&pair.key), text(&self.path("request")));
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?;
        let (subject, names) = (format!("/CN={name}"), format!("subjectAltName={alternatives}"));
        openssl(&["req", "-new", "-subj", &subject, "-addext", &names, "-key", &key, "-out", &request])?;
        let (config, ca) = (text(&self.path("ca.cnf")), (text(&self.cert()), text(&self.path("ca.key"))));
        let cert = text(&pair.cert);
        let args = ["ca", "-batch", "-notext", "-config", &config, "-cert", &ca.0, "-keyfile", &ca.1];
        openssl(&[&args[..], &["-in", &request, "-out", &cert], validity].concat())?;
        Ok(pair)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn openssl(args: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(args);
    process::run(command)?.ok().map(drop)
}
