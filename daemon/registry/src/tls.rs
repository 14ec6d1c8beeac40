//! Certificates: whom we trust, and who we are.
//!
//! The system's authorities, plus those configured for a host. A certificate
//! that is configured as an authority may also be the server's own: self-signed
//! certificates made by hand are usually both, and the WebPKI refuses that.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Failure;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{HostConfig, KeyPair};
use crate::error::Problem;

/// The system's certificate authorities. What cannot be read is left out: a
/// machine without any can still use plain or privately signed registries.
pub(crate) fn system_roots() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "system certificate authorities");
    }
    found.certs
}

/// The TLS settings for one host. Reads files; blocks.
pub(crate) fn client_config(
    system: &[CertificateDer<'static>],
    host: &HostConfig,
) -> Result<ClientConfig, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (authorities, pairs) = files(host)?;
    let mut own = Vec::new();
    for path in &authorities {
        own.extend(certificates(path)?);
    }
    let mut keys = Vec::new();
    for pair in &pairs {
        keys.push(Arc::new(key_pair(&provider, pair)?));
    }
    let verifier: Arc<dyn ServerCertVerifier> = if host.insecure {
        Arc::new(Anybody(provider.clone()))
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system.iter().chain(&own).cloned());
        if roots.is_empty() {
            // The verifier needs an anchor to exist at all; this one anchors nothing.
            Arc::new(Nobody(provider.clone()))
        } else {
            let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| config("certificate authorities", e))?;
            Arc::new(Verifier { usual, own })
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| self::config("TLS versions", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Keys(keys)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The TLS settings for a server that is no registry and speaks `protocol`, by its name in ALPN,
/// with the certificates of `host` beside the system's. Reads them; blocks.
///
/// # Errors
/// When the certificates cannot be made use of.
pub fn client_tls(host: &HostConfig, protocol: &str) -> Result<ClientConfig, Failure> {
    let mut config = client_config(&system_roots(), host).map_err(|problem| Failure::other(&problem))?;
    config.alpn_protocols = vec![protocol.into()];
    Ok(config)
}

fn config(what: impl Into<String>, e: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Problem::Config { what: what.into(), source: Some(Box::new(e)) }
}

/// The configured files and those found in the configured directories.
fn files(host: &HostConfig) -> Result<(Vec<PathBuf>, Vec<KeyPair>), Problem> {
    let (mut authorities, mut pairs) = (host.ca.clone(), host.key_pairs.clone());
    for directory in &host.tls_config_dirs {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(e) => return Err(config(format!("read {}", directory.display()), e)),
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        found.sort();
        for path in found {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") => pairs.push(KeyPair { key: path.with_extension("key"), certificate: path }),
                _ => {}
            }
        }
    }
    Ok((authorities, pairs))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let pem = std::fs::read(path).map_err(|e| config(format!("read {}", path.display()), e))?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| config(format!("certificates in {}", path.display()), e))
}

fn key_pair(provider: &CryptoProvider, pair: &KeyPair) -> Result<CertifiedKey, Problem> {
    let chain = certificates(&pair.certificate)?;
    let what = || format!("key pair {}", pair.certificate.display());
    let pem = std::fs::read(&pair.key).map_err(|e| config(format!("read {}", pair.key.display()), e))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| config(what(), e))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| config(what(), e))
}

/// The client certificates of a host; the first that the server can check is used.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Keys {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|k| k.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The usual rules, and certificates that are trusted by name.
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.usual.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // Expiry is checked before this error arises, so only the question
            // whether the certificate may stand for a server is decided here.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
                if other.to_string() == "CaUsedAsEndEntity"
                    && self.own.iter().any(|c| c.as_ref() == end_entity.as_ref()) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Trusts everybody who holds the key of the certificate shown.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

/// Trusts nobody: for machines without certificate authorities.
#[derive(Debug)]
struct Nobody(Arc<CryptoProvider>);

macro_rules! verifier {
    ($name:ident, $answer:expr) => {
        impl ServerCertVerifier for $name {
            fn verify_server_cert(
                &self,
                _: &CertificateDer<'_>,
                _: &[CertificateDer<'_>],
                _: &ServerName<'_>,
                _: &[u8],
                _: UnixTime,
            ) -> Result<ServerCertVerified, rustls::Error> {
                $answer
            }

            fn verify_tls12_signature(
                &self,
                message: &[u8],
                cert: &CertificateDer<'_>,
                dss: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
            }

            fn verify_tls13_signature(
                &self,
                message: &[u8],
                cert: &CertificateDer<'_>,
                dss: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                self.0.signature_verification_algorithms.supported_schemes()
            }
        }
    };
}

verifier!(Anybody, Ok(ServerCertVerified::assertion()));
verifier!(Nobody, Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)));
