//! The docker client's configuration: who one is at which registry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base::{Failure, Kind, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::Credential;
use crate::Error;

/// Docker Hub, as builds call it and as the file calls it.
const HUB: (&str, &str) = ("registry-1.docker.io", "https://index.docker.io/v1/");

/// `config.json`, as far as it is about registries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    auths: HashMap<String, Entry>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
    #[serde(skip)]
    directory: PathBuf,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// What a credential helper prints.
#[derive(Deserialize)]
struct Helped {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

impl DockerConfig {
    /// Reads `config.json` in `directory`. None there is an empty one.
    ///
    /// # Errors
    /// When it cannot be read or is not JSON.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("config.json");
        let fail = |e| Error::io("read", path.display().to_string(), e);
        let config = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| fail(e.into()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(e) => return Err(fail(e)),
        };
        Ok(Self { directory: directory.to_owned(), ..config })
    }

    /// Where it was looked for.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What there is for `host`: from a helper if one is configured for it,
    /// else from the file.
    ///
    /// # Errors
    /// When a helper fails.
    pub async fn lookup(&self, host: &str) -> Result<Credential, Failure> {
        let key = if host == HUB.0 { HUB.1 } else { host };
        let helper = self.cred_helpers.get(key).map_or(self.creds_store.as_str(), String::as_str);
        if helper.is_empty() {
            return Ok(self.entry(key).map(Entry::credential).unwrap_or_default());
        }
        ask_helper(helper, key).await
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        // Old files have addresses where new ones have names.
        self.auths.get(key).or_else(|| self.auths.iter().find(|(k, _)| host_of(k) == key).map(|(_, e)| e))
    }
}

fn host_of(address: &str) -> &str {
    let rest =
        address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    rest.split('/').next().unwrap_or(rest)
}

impl Entry {
    fn credential(&self) -> Credential {
        let (mut username, mut password) = (self.username.clone(), self.password.clone());
        let decoded = STANDARD.decode(self.auth.as_bytes()).ok().and_then(|b| String::from_utf8(b).ok());
        if let Some((user, secret)) = decoded.as_deref().and_then(|d| d.split_once(':')) {
            username = user.to_owned();
            password = secret.trim_matches('\0').to_owned();
        }
        if !self.identitytoken.is_empty() {
            (username, password) = (String::new(), self.identitytoken.clone());
        }
        Credential {
            username,
            secret: Secret::new(password),
            registry_token: Secret::new(self.registrytoken.clone()),
        }
    }
}

/// Runs `docker-credential-<helper> get`.
async fn ask_helper(helper: &str, key: &str) -> Result<Credential, Failure> {
    let program = format!("docker-credential-{helper}");
    let fail = |e: std::io::Error| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Unknown };
        Failure::new(kind, format!("run {program}: {e}"))
    };
    if helper.contains('/') {
        return Err(Failure::invalid(format!("credential helper {helper:?} is no name")));
    }
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(key.as_bytes()).await.map_err(fail)?;
    }
    let output = child.wait_with_output().await.map_err(fail)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        // This is how helpers say that they have nothing.
        if text.contains("credentials not found") {
            return Ok(Credential::default());
        }
        let text = text.trim().chars().take(500).collect::<String>();
        return Err(Failure::new(Kind::Unknown, format!("{program} failed: {text}")));
    }
    let helped: Helped = serde_json::from_slice(&output.stdout)
        .map_err(|e| Failure::new(Kind::Unknown, format!("{program} printed no credentials: {e}")))?;
    // An identity token has this for a user.
    let username = if helped.username == "<token>" { String::new() } else { helped.username };
    Ok(Credential { username, secret: Secret::new(helped.secret), registry_token: Secret::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_what_docker_writes() {
        let dir = tempfile::tempdir().unwrap();
        let none = DockerConfig::load(dir.path()).unwrap();
        assert_eq!(none.lookup("x").await.unwrap(), Credential::default());
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "https://old.example/v1/": {"username": "a", "password": "b"},
            "tok.example": {"auth": "dTpw", "identitytoken": "id"},
            "reg.example": {"registrytoken": "bearer"}
        }, "other": 1}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let config = DockerConfig::load(dir.path()).unwrap();
        let get = async |host: &str| {
            let c = config.lookup(host).await.unwrap();
            (c.username, c.secret.expose().to_owned(), c.registry_token.expose().to_owned())
        };
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(get("registry-1.docker.io").await, text("u", "p", ""));
        assert_eq!(get("old.example").await, text("a", "b", ""));
        assert_eq!(get("tok.example").await, text("", "id", ""));
        assert_eq!(get("reg.example").await, text("", "", "bearer"));
        assert_eq!(get("none.example").await, text("", "", ""));
    }
}
