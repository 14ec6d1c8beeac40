//! The authority whose certificates a step is shown.
//!
//! There is one for each step. Its key never leaves this memory and is gone with
//! the step, so that a result which kept the certificate trusts nobody. Keys are
//! on an elliptic curve: made in no time, and a certificate is signed for each
//! connection, which costs less than its handshake. Nothing is remembered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Error;

/// Clocks in emulated or frozen sandboxes may be behind.
const SLACK: Duration = Duration::from_secs(60 * 60);
/// No step takes longer.
const LIFETIME: Duration = Duration::from_secs(60 * 60 * 24 * 90);
/// Octets of a serial number; the standard allows twenty.
const SERIAL: usize = 16;
/// Longest common name that the standard allows.
const COMMON_NAME: usize = 64;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Of all servers this one stands for.
    key: KeyPair,
}

impl Authority {
    /// A new one, that nobody trusts yet.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut params = params(Vec::new(), "BuildKit exec proxy")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            key: KeyPair::generate()?,
        })
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// What a server called `host`, a name or an address, needs for TLS.
    pub(crate) fn server(&self, host: &str) -> Result<Arc<ServerConfig>, Error> {
        let mut params = params(vec![host.to_owned()], host)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn params(names: Vec<String>, name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(names)?;
    let now = SystemTime::now();
    params.not_before = (now - SLACK).into();
    params.not_after = (now + LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    if name.len() <= COMMON_NAME {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    // Libraries refuse two certificates of one authority with one number.
    let random = base::id::fresh();
    params.serial_number =
        Some(SerialNumber::from_slice(random.as_bytes().get(..SERIAL).unwrap_or_default()));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_for_names_and_addresses() {
        let authority = Authority::new().unwrap();
        assert!(authority.pem().starts_with("-----BEGIN CERTIFICATE-----"));
        for host in ["example.com", "127.0.0.1", "::1", &"a.".repeat(100)] {
            authority.server(host).unwrap();
        }
        assert!(authority.server("ex\u{e4}mple").is_err());
    }
}
