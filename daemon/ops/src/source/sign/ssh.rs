//! Signatures of `ssh-keygen -Y sign`: PROTOCOL.sshsig of OpenSSH.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, SHA512, digest};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::{Cursor, Rejected, armor, padded, trimmed};

const MAGIC: &[u8] = b"SSHSIG";
/// What signatures of commits and tags are for.
const NAMESPACE: &[u8] = b"git";

fn string<'a>(rest: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let length = usize::try_from(rest.u32()?).ok()?;
    rest.take(length)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // What is put here came with a length of four bytes, or is a digest.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Checks an armored signature of git over `data` with the public key that
/// `authorized`, a line of `authorized_keys`, holds.
///
/// # Errors
/// Why the signature is not to be trusted.
pub(crate) fn verify(data: &[u8], signature: &str, authorized: &str) -> Result<(), Rejected> {
    let broken = || Rejected::new("failed to parse ssh signature");
    let blocks = armor::blocks(signature).ok_or_else(broken)?;
    let [(_, bytes)] = blocks.as_slice() else { return Err(broken()) };
    let mut rest = Cursor(bytes);
    if rest.take(MAGIC.len()) != Some(MAGIC) {
        return Err(broken());
    }
    let version = rest.u32().ok_or_else(broken)?;
    if version != 1 {
        return Err(Rejected::new(format!("unsupported SSH signature version: {version}")));
    }
    let mut field = || string(&mut rest).ok_or_else(broken);
    let (key, namespace, reserved, hash, signature) = (field()?, field()?, field()?, field()?, field()?);
    let digest = match hash {
        b"sha256" => digest(&SHA256, data),
        b"sha512" => digest(&SHA512, data),
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(Rejected::new(format!("unsupported SSH signature hash algorithm: {other}")));
        }
    };
    if namespace != NAMESPACE {
        let namespace = String::from_utf8_lossy(namespace);
        return Err(Rejected::new(format!("unexpected SSH signature namespace: {namespace:?}")));
    }
    if public_key(authorized)? != key {
        return Err(Rejected::new("failed to verify ssh signature: public key does not match"));
    }
    let mut signed = MAGIC.to_vec();
    for part in [namespace, reserved, hash, digest.as_ref()] {
        put(&mut signed, part);
    }
    check(key, signature, &signed).ok_or_else(|| Rejected::new("failed to verify ssh signature"))
}

/// The key in the first line that has one, options in front of it or not.
fn public_key(authorized: &str) -> Result<Vec<u8>, Rejected> {
    let lines = authorized.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let keys = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        words.windows(2).find_map(|pair| {
            let &[kind, base64] = pair else { return None };
            let key = STANDARD.decode(base64).ok()?;
            (string(&mut Cursor(&key))? == kind.as_bytes()).then_some(key)
        })
    });
    let mut keys = keys;
    keys.next().ok_or_else(|| Rejected::new("failed to parse ssh public key: no key found"))
}

fn check(key: &[u8], signature: &[u8], signed: &[u8]) -> Option<()> {
    let (mut key, mut signature) = (Cursor(key), Cursor(signature));
    let (kind, how) = (string(&mut key)?, string(&mut signature)?);
    let blob = string(&mut signature)?;
    if !signature.is_empty() {
        return None;
    }
    let outcome = match (kind, how) {
        (b"ssh-ed25519", b"ssh-ed25519") => {
            UnparsedPublicKey::new(&ED25519, string(&mut key)?).verify(signed, blob)
        }
        (b"ssh-rsa", b"rsa-sha2-256" | b"rsa-sha2-512") => {
            let (e, n) = (trimmed(string(&mut key)?), trimmed(string(&mut key)?));
            let parameters = if how == b"rsa-sha2-256" {
                &RSA_PKCS1_2048_8192_SHA256
            } else {
                &RSA_PKCS1_2048_8192_SHA512
            };
            RsaPublicKeyComponents { n, e }.verify(parameters, signed, blob)
        }
        (b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256") => {
            string(&mut key)?;
            let mut numbers = Cursor(blob);
            let both = [padded::<32>(string(&mut numbers)?)?, padded::<32>(string(&mut numbers)?)?].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, string(&mut key)?).verify(signed, &both)
        }
        (b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp384") => {
            string(&mut key)?;
            let mut numbers = Cursor(blob);
            let both = [padded::<48>(string(&mut numbers)?)?, padded::<48>(string(&mut numbers)?)?].concat();
            UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, string(&mut key)?).verify(signed, &both)
        }
        _ => return None,
    };
    outcome.ok()
}

#[cfg(test)]
mod tests;
