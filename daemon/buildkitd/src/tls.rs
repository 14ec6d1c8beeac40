//! TLS of TCP listeners: certificates, who must show one, and how they are
//! replaced while the daemon runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Certificates for TCP listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// Clients must show a certificate signed by this one.
    pub(crate) ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads them. `None` when none is configured.
    ///
    /// # Errors
    /// When one is missing or cannot be used, by its path.
    pub(crate) fn load(&self) -> Result<Option<Arc<ServerConfig>>> {
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if self.ca.is_none() => return Ok(None),
            _ => bail!("TLS needs a certificate and its key: give --tlscert and --tlskey together"),
        };
        let chain = certificates(cert)?;
        let key =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("read key from {}", key.display()))?;
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let config = match &self.ca {
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for cert in certificates(ca)? {
                    roots.add(cert).with_context(|| format!("use CA {}", ca.display()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                config.with_client_cert_verifier(verifier)
            }
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_single_cert(chain, key).context("use TLS certificate and key")?;
        // Clients that dial TLS themselves negotiate nothing; they are served HTTP/2 all the same.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let context = || format!("read certificates from {}", path.display());
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(context)?
        .collect::<Result<_, _>>()
        .with_context(context)?;
    if certs.is_empty() { Err(anyhow!("{} holds no certificate", path.display())) } else { Ok(certs) }
}

/// What listeners use for the next connection.
#[derive(Clone)]
pub(crate) struct Acceptor(watch::Receiver<Arc<ServerConfig>>);

impl Acceptor {
    /// For one connection.
    pub(crate) fn now(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.borrow().clone())
    }
}

/// How TCP listeners tell who may come in.
pub(crate) struct Guard {
    current: Option<watch::Sender<Arc<ServerConfig>>>,
    authenticates: bool,
    anybody: bool,
}

impl Guard {
    /// With these certificates. `anybody`: clients need not show who they are.
    ///
    /// # Errors
    /// As for [`TlsFiles::load`].
    pub(crate) fn new(files: &TlsFiles, anybody: bool) -> Result<Self> {
        let current = files.load()?.map(watch::Sender::new);
        Ok(Self { current, authenticates: files.ca.is_some(), anybody })
    }

    /// For a listener on TCP.
    ///
    /// # Errors
    /// When everybody could come in and nobody said that they may.
    pub(crate) fn acceptor(&self, address: &str) -> Result<Option<Acceptor>> {
        if !self.authenticates {
            if !self.anybody {
                bail!(
                    "listen on {address}: everybody who reaches this port would be root here; give --tlscert, \
                     --tlskey and --tlscacert, or say --allow-unauthenticated-tcp"
                );
            }
            tracing::warn!(
                address,
                "clients are not authenticated: anybody who reaches this port is root here"
            );
        }
        Ok(self.current.as_ref().map(|current| Acceptor(current.subscribe())))
    }

    /// Uses `config` for connections from now on. Nothing happens where TLS is not in use.
    pub(crate) fn replace(&self, config: Option<Arc<ServerConfig>>) {
        if let (Some(current), Some(config)) = (&self.current, config) {
            _ = current.send_replace(config);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_is_refused() {
        let files = TlsFiles { cert: Some("/x".into()), ..TlsFiles::default() };
        assert!(files.load().unwrap_err().to_string().contains("--tlskey"));
        assert!(TlsFiles::default().load().unwrap().is_none());
    }

    #[test]
    fn nobody_comes_in_unseen_unless_somebody_said_so() {
        let closed = Guard::new(&TlsFiles::default(), false).unwrap();
        let error = closed.acceptor("tcp://0.0.0.0:1234").err().unwrap().to_string();
        assert!(error.contains("--allow-unauthenticated-tcp"), "{error}");
        assert!(Guard::new(&TlsFiles::default(), true).unwrap().acceptor("tcp://x:1").unwrap().is_none());
    }
}
