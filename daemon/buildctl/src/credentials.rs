//! Who one is at registries: the docker client's configuration.
//!
//! The daemon may ask for the secret itself, or for a token that is fetched
//! here so that the secret stays here. In the second case a key pair made from
//! the secret's place of storage tells daemons which builds may share a token.

mod tokens;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use base::{Digest, Failure, Kind, gotext};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use proto::control as wire;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use session::client::{Authority, Credential, Credentials, DockerConfig};
use session::{Token, TokenRequest};

use crate::build::{Reporter, fields};

/// Answers from the docker client's configuration.
pub(crate) struct Docker {
    config: DockerConfig,
    contexts: HashMap<String, TlsContext>,
    reporter: Option<Reporter>,
    /// What was told already.
    shown: Mutex<HashSet<String>>,
    /// Registries' keys, one at a time: they share a file.
    seeds: tokio::sync::Mutex<()>,
}

/// `--registry-auth-tlscontext`: how to speak to a registry's token server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TlsContext {
    authorities: Vec<PathBuf>,
    /// Certificate and key.
    pairs: Vec<(PathBuf, PathBuf)>,
    insecure: bool,
}

/// Where the docker client keeps its configuration.
fn directory() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".docker");
    std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()).map_or_else(home, PathBuf::from)
}

impl Docker {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When a TLS context makes no sense. A configuration that cannot be read
    /// counts as empty, after a word of warning.
    pub(crate) fn load(contexts: &[String]) -> Result<Self, Failure> {
        let directory = directory();
        let config = DockerConfig::load(&directory).unwrap_or_else(|e| {
            tracing::warn!("docker configuration is not used: {}", Failure::from(e));
            DockerConfig::default()
        });
        Ok(Self {
            config,
            contexts: tls_contexts(contexts)?,
            reporter: None,
            shown: Mutex::default(),
            seeds: tokio::sync::Mutex::default(),
        })
    }

    /// Tells of what is shared.
    pub(crate) fn reporting(mut self, reporter: Reporter) -> Self {
        self.reporter = Some(reporter);
        self
    }

    /// Shows once that something was shared.
    async fn tell(&self, name: String) {
        let Some(reporter) = &self.reporter else { return };
        if !self.shown.lock().insert(name.clone()) {
            return;
        }
        let now = base::Timestamp::now();
        let time = prost_types::Timestamp { seconds: now.secs(), nanos: now.subsec_nanos() as i32 };
        let vertex = wire::Vertex {
            digest: Digest::of(base::id::fresh()).to_string(),
            name,
            started: Some(time),
            completed: Some(time),
            ..Default::default()
        };
        reporter.send(wire::StatusResponse { vertexes: vec![vertex], ..Default::default() }).await;
    }
}

#[tonic::async_trait]
impl Credentials for Docker {
    async fn lookup(&self, host: &str) -> Result<Credential, Failure> {
        let credential = self.config.lookup(host).await?;
        if !credential.secret.is_empty() {
            self.tell(format!("[auth] sharing credentials for {host}")).await;
        }
        Ok(credential)
    }

    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Failure> {
        let credential = self.config.lookup(&request.host).await?;
        if !credential.registry_token.is_empty() {
            return Ok(Token {
                token: credential.registry_token,
                expires_in: tokens::DEFAULT_LIFE,
                issued_at: 0,
            });
        }
        if !credential.secret.is_empty() {
            let scopes: Vec<_> =
                request.scopes.iter().map(|s| s.strip_prefix("repository:").unwrap_or(s)).collect();
            self.tell(format!("[auth] {} token for {}", scopes.join(" "), request.host)).await;
        }
        let client = client(self.contexts.get(&request.host))?;
        tokens::fetch(&client, &request, &credential).await
    }

    async fn authority(&self, host: &str, salt: &[u8]) -> Result<Option<Box<dyn Authority>>, Failure> {
        if std::env::var("BUILDKIT_NO_CLIENT_TOKEN").is_ok_and(|v| gotext::parse_bool(&v) == Some(true)) {
            return Ok(None);
        }
        let credential = self.config.lookup(host).await?;
        let seed = {
            let _one = self.seeds.lock().await;
            let (directory, host) = (self.config.directory().to_owned(), host.to_owned());
            base::task::blocking(move || seed(&directory, &host)).await?
        };
        let mut mac = ring::hmac::Context::with_key(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, salt));
        if !credential.secret.is_empty() {
            mac.update(&seed);
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(mac.sign().as_ref())
            .map_err(|_| Failure::internal("no key from this seed"))?;
        Ok(Some(Box::new(Key(pair))))
    }
}

struct Key(Ed25519KeyPair);

impl Authority for Key {
    fn public_key(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.iter_mut().zip(self.0.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        out
    }

    fn sign(&self, payload: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.iter_mut().zip(self.0.sign(payload).as_ref()).for_each(|(to, from)| *to = *from);
        out
    }
}

/// Random bytes of this side, so that no daemon can choose what is signed with.
/// Kept in `.token_seed`, which the docker client knows too.
fn seed(directory: &Path, host: &str) -> Result<Vec<u8>, Failure> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Seed {
        #[serde(rename = "Seed")]
        seed: String,
    }
    let path = directory.join(".token_seed");
    let _lock = std::fs::create_dir_all(directory).and_then(|()| {
        let lock = std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(directory.join(".token_seed.lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(lock)
    });
    let text = std::fs::read(&path).unwrap_or_default();
    // After a crash there may be half a file.
    let mut seeds: BTreeMap<String, Seed> = serde_json::from_slice(&text).unwrap_or_default();
    if let Some(seed) = seeds.get(host).and_then(|s| STANDARD.decode(&s.seed).ok()).filter(|s| !s.is_empty())
    {
        return Ok(seed);
    }
    let mut seed = [0u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed)
        .map_err(|_| Failure::internal("no random numbers"))?;
    seeds.insert(host.to_owned(), Seed { seed: STANDARD.encode(seed) });
    let json = base::gojson::to_vec_indent(&seeds).map_err(|e| Failure::internal(e.to_string()))?;
    if let Err(e) = write_private(&path, &json) {
        // It may be a directory one may only read; then the key lasts as long as this build.
        tracing::debug!("{} is not kept: {e}", path.display());
    }
    Ok(seed.to_vec())
}

fn write_private(path: &Path, data: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(data)
}

fn tls_contexts(list: &[String]) -> Result<HashMap<String, TlsContext>, Failure> {
    const FLAG: &str = "--registry-auth-tlscontext";
    let mut contexts: HashMap<String, TlsContext> = HashMap::new();
    for text in list {
        let mut values = BTreeMap::new();
        for field in fields(text)? {
            let pair =
                field.split_once('=').ok_or_else(|| Failure::invalid(format!("invalid value {field}")))?;
            values.insert(pair.0.to_ascii_lowercase(), pair.1.to_owned());
        }
        let get = |key: &str| values.get(key).cloned().unwrap_or_default();
        let (host, ca, cert, key) = (get("host"), get("ca"), get("cert"), get("key"));
        let insecure = gotext::parse_bool(&get("insecure")).unwrap_or(false);
        if host.is_empty() {
            return Err(Failure::invalid(format!("{FLAG} requires host=<host>")));
        }
        let pair = !cert.is_empty() && !key.is_empty();
        if ca.is_empty() && !insecure && !pair {
            let text = format!("{FLAG} requires ca=<ca> or cert=<cert>,key=<key> or insecure=true");
            return Err(Failure::invalid(text));
        }
        if !ca.is_empty() && cert.is_empty() != key.is_empty() {
            return Err(Failure::invalid(format!("{FLAG} requires cert=<cert>,key=<key>")));
        }
        let context = contexts.entry(host).or_default();
        context.insecure |= insecure;
        if !ca.is_empty() {
            context.authorities.push(ca.into());
        }
        if pair {
            context.pairs.push((cert.into(), key.into()));
        }
    }
    Ok(contexts)
}

/// An HTTP client for a token server.
fn client(context: Option<&TlsContext>) -> Result<reqwest::Client, Failure> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|e| Failure::new(Kind::NotFound, format!("failed to read {}: {e}", path.display())))
    };
    let bad = |e: reqwest::Error| Failure::invalid(format!("TLS of token server: {e}"));
    let mut builder = reqwest::Client::builder().timeout(std::time::Duration::from_secs(60));
    if let Some(context) = context {
        builder = builder.danger_accept_invalid_certs(context.insecure);
        for path in &context.authorities {
            for certificate in reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(bad)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        for (certificate, key) in &context.pairs {
            let pem = [read(certificate)?, b"\n".to_vec(), read(key)?].concat();
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(bad)?);
        }
    }
    builder.build().map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_contexts_are_checked() {
        let parse = |text: &str| tls_contexts(&[text.to_owned()]);
        let all =
            tls_contexts(&["host=h,ca=/c".to_owned(), "host=h,cert=/a,key=/b,insecure=true".to_owned()])
                .unwrap();
        let context = &all["h"];
        assert_eq!((context.authorities.len(), context.pairs.len(), context.insecure), (1, 1, true));
        for (text, why) in [
            ("ca=/c", "requires host=<host>"),
            ("host=h", "requires ca=<ca> or"),
            ("host=h,ca=/c,key=/k", "requires cert=<cert>,key=<key>"),
        ] {
            assert!(parse(text).unwrap_err().to_string().contains(why));
        }
    }

    #[test]
    fn seeds_stay() {
        let dir = tempfile::tempdir().unwrap();
        let one = seed(dir.path(), "a").unwrap();
        assert_eq!(seed(dir.path(), "a").unwrap(), one);
        assert_ne!(seed(dir.path(), "b").unwrap(), one);
        assert_eq!(seed(dir.path(), "a").unwrap(), one);
    }

    #[tokio::test]
    async fn keys_sign() {
        let docker = Docker {
            config: DockerConfig::load(tempfile::tempdir().unwrap().path()).unwrap(),
            contexts: HashMap::new(),
            reporter: None,
            shown: Mutex::default(),
            seeds: tokio::sync::Mutex::default(),
        };
        let key = docker.authority("h", b"salt").await.unwrap().unwrap();
        let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key.public_key());
        public.verify(b"payload", &key.sign(b"payload")).unwrap();
    }
}
