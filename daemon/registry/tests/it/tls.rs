//! Certificates we trust, those we do not, and no TLS where there should be.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as Key};
use registry::{Access, Config, HostConfig, KeyPair, Registries};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::mock::{Mock, answer, blob, config};

struct Secure {
    host: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers everything with the byte `x`, over TLS.
async fn serve(cert: CertificateDer<'static>, key: &Key, clients: Option<CertificateDer<'static>>) -> Secure {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![cert], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                _ = tls.read(&mut [0; 4096]).await;
                _ = tls
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
                    .await;
                _ = tls.shutdown().await;
            });
        }
    });
    Secure { host, task }
}

struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, Key>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, Key::generate().unwrap()).unwrap();
        let authority = Self { dir: TempDir::new().unwrap(), issuer };
        authority.write("ca.crt", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn sign(&self) -> (rcgen::Certificate, Key) {
        let key = Key::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }
}

async fn fetch(host: &str, own: HostConfig) -> Result<(), String> {
    let mut config: Config = config();
    config.hosts.insert(host.to_owned(), HostConfig { http: own.http.or(Some(false)), ..own });
    let reference = format!("{host}/a").parse().unwrap();
    let registries = Registries::new(config);
    let text = |e: registry::Error| base::Failure::from(e).to_string();
    let repository = registries.repository(&reference, &Access::anonymous()).await.map_err(text)?;
    repository.fetch(&blob(b"x")).await.map(|_| ()).map_err(text)
}

#[tokio::test]
async fn only_known_authorities_are_trusted() {
    let authority = Authority::new();
    let (cert, key) = authority.sign();
    let secure = serve(cert.der().clone(), &key, None).await;
    fetch(&secure.host, HostConfig { ca: vec![authority.ca()], ..HostConfig::default() }).await.unwrap();
    let dirs = vec![Path::new("/does/not/exist").to_owned(), authority.dir.path().to_owned()];
    fetch(&secure.host, HostConfig { tls_config_dirs: dirs, ..HostConfig::default() }).await.unwrap();
    fetch(&secure.host, HostConfig { insecure: true, ..HostConfig::default() }).await.unwrap();
    let error = fetch(&secure.host, HostConfig::default()).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let error =
        fetch(&secure.host, HostConfig { ca: vec!["/no/such".into()], ..HostConfig::default() }).await;
    assert!(error.unwrap_err().contains("read /no/such"));
}

#[tokio::test]
async fn a_certificate_may_be_its_own_authority() {
    let authority = Authority::new();
    let secure = serve(authority.issuer.der().clone(), authority.issuer.key(), None).await;
    fetch(&secure.host, HostConfig { ca: vec![authority.ca()], ..HostConfig::default() }).await.unwrap();
    fetch(&secure.host, HostConfig::default()).await.unwrap_err();
    let by_name = secure.host.replace("127.0.0.1", "localhost");
    let error =
        fetch(&by_name, HostConfig { ca: vec![authority.ca()], ..HostConfig::default() }).await.unwrap_err();
    assert!(error.contains("not valid for"), "{error}");
}

#[tokio::test]
async fn we_show_our_own_certificate() {
    let authority = Authority::new();
    let (cert, key) = authority.sign();
    let secure = serve(cert.der().clone(), &key, Some(authority.issuer.der().clone())).await;
    let ca = vec![authority.ca()];
    fetch(&secure.host, HostConfig { ca: ca.clone(), ..HostConfig::default() }).await.unwrap_err();
    let (cert, key) = authority.sign();
    let certificate = authority.write("client.cert", &cert.pem());
    let key = authority.write("client.key", &key.serialize_pem());
    let key_pairs = vec![KeyPair { certificate, key }];
    fetch(&secure.host, HostConfig { ca, key_pairs, ..HostConfig::default() }).await.unwrap();
    let tls_config_dirs = vec![authority.dir.path().to_owned()];
    fetch(&secure.host, HostConfig { tls_config_dirs, ..HostConfig::default() }).await.unwrap();
}

#[tokio::test]
async fn insecure_registries_may_turn_out_to_speak_http() {
    let mock = Mock::start(|_| async { answer(200, &[], "x") }).await;
    let both = HostConfig { insecure: true, http: Some(true), ..HostConfig::default() };
    fetch(&mock.host, both).await.unwrap();
    fetch(&mock.host, HostConfig { insecure: true, ..HostConfig::default() }).await.unwrap_err();
    fetch(&mock.host, HostConfig::default()).await.unwrap_err();
    let reference = format!("{}/a", mock.host).parse().unwrap();
    let access = Access::anonymous().insecure(true);
    let repository = Registries::new(config()).repository(&reference, &access).await.unwrap();
    repository.fetch(&blob(b"x")).await.unwrap();
}
