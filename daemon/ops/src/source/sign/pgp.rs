//! OpenPGP: keys with their certificates, and whether one of them signed.

use base::Timestamp;

use super::packet::{Key, PUBLIC_KEY, PUBLIC_SUBKEY, SIGNATURE, Signature, USER_ID, packets};
use super::{Rejected, armor};

/// Kinds of signatures.
const BINARY: u8 = 0x00;
const SUBKEY_BINDING: u8 = 0x18;
const PRIMARY_BINDING: u8 = 0x19;
const KEY_REVOCATION: u8 = 0x20;
const SUBKEY_REVOCATION: u8 = 0x28;
/// The flag of a key that may sign data.
const MAY_SIGN: u8 = 0x02;
/// A clock may be that much ahead, in seconds.
const SKEW: i64 = 5 * 60;

/// A key, what it says of itself, and its subkeys.
struct Entity {
    primary: Key,
    /// What the primary key says of itself through its newest identity.
    own: Option<Signature>,
    revocation: Option<Signature>,
    /// Those that the primary key vouches for, and how.
    subkeys: Vec<(Key, Signature)>,
}

/// Checks an armored detached signature over `data` with any of the armored `keys`.
/// With `reject_expired` the key has to be good today, otherwise when it signed.
///
/// # Errors
/// Why the signature is not to be trusted.
pub(crate) fn verify(
    data: Vec<u8>,
    signature: &str,
    keys: &str,
    reject_expired: bool,
) -> Result<(), Rejected> {
    let signature = read_signature(signature)?;
    let entities = read_keys(keys)?;
    if signature.kind != BINARY {
        return Err(Rejected::new(format!("signatures of kind {:#04x} are not supported", signature.kind)));
    }
    if !matches!(signature.algorithm, 1 | 3 | 19 | 22) {
        let algorithm = signature.algorithm;
        return Err(Rejected::new(format!("rejecting unsupported pubkey algorithm: {algorithm}")));
    }
    let now = Timestamp::now().secs();
    let made = i64::from(signature.created);
    if made > now + SKEW {
        return Err(Rejected::new("signature creation time is in the future"));
    }
    let at = if reject_expired { now } else { made };
    let by = signature.issuer.as_deref().map(base::digest::hex).unwrap_or_default().to_uppercase();
    let mut reason = Rejected::new("signature made by unknown entity");
    for entity in &entities {
        for (key, certificate) in entity.signers() {
            if !signature.may_be_of(key) {
                continue;
            }
            match entity.check(key, certificate, &signature, data.clone(), at) {
                Ok(()) => return Ok(()),
                Err(rejected) => reason = rejected,
            }
        }
    }
    Err(Rejected::new(format!("signature by {by}: {reason}")))
}

fn read_signature(text: &str) -> Result<Signature, Rejected> {
    let blocks = armor::blocks(text).unwrap_or_default();
    let bytes = blocks.first().map(|(_, bytes)| bytes.as_slice());
    let bytes = bytes.ok_or_else(|| Rejected::new("failed to decode armored signature"))?;
    let found = packets(bytes).ok_or_else(|| Rejected::new("failed to read armored signature body"))?;
    let body = found.into_iter().find(|(tag, _)| *tag == SIGNATURE).map(|(_, body)| body);
    Signature::parse(body.ok_or_else(|| Rejected::new("no signature packet found"))?)
}

fn read_keys(text: &str) -> Result<Vec<Entity>, Rejected> {
    let failed = |why: &str| Rejected::new(format!("failed to read armored public key: {why}"));
    let blocks = armor::blocks(text).ok_or_else(|| failed("malformed armor"))?;
    let mut entities = Vec::new();
    for (name, bytes) in &blocks {
        if name != "PGP PUBLIC KEY BLOCK" {
            return Err(Rejected::new(format!("expected public key block, got: {name}")));
        }
        entities.extend(read_ring(&packets(bytes).ok_or_else(|| failed("malformed packets"))?));
    }
    if entities.is_empty() { Err(failed("no armored data found")) } else { Ok(entities) }
}

/// The keys of a ring. Certificates that are not the key's own, or not valid, are
/// left out; so are keys of kinds that are not known.
fn read_ring(packets: &[(u8, &[u8])]) -> Vec<Entity> {
    let mut entities: Vec<Entity> = Vec::new();
    let (mut identity, mut subkey): (Option<&[u8]>, Option<Key>) = (None, None);
    for &(tag, body) in packets {
        match tag {
            PUBLIC_KEY => {
                (identity, subkey) = (None, None);
                if let Some(primary) = Key::parse(body) {
                    entities.push(Entity { primary, own: None, revocation: None, subkeys: Vec::new() });
                }
            }
            USER_ID => (identity, subkey) = (Some(body), None),
            PUBLIC_SUBKEY => (identity, subkey) = (None, Key::parse(body)),
            SIGNATURE => {
                if let (Some(entity), Ok(signature)) = (entities.last_mut(), Signature::parse(body)) {
                    entity.take(signature, identity, subkey.as_ref());
                }
            }
            // Attributes of users are pictures; nothing after them is an identity's.
            _ => (identity, subkey) = (None, None),
        }
    }
    entities
}

impl Entity {
    /// Keeps what `signature` says, if it is the primary key's own and true.
    fn take(&mut self, signature: Signature, identity: Option<&[u8]>, subkey: Option<&Key>) {
        if !signature.may_be_of(&self.primary) {
            return;
        }
        let mut data = self.primary.framed();
        match (signature.kind, identity, subkey) {
            (0x10..=0x13, Some(identity), _) => {
                let Ok(length) = u32::try_from(identity.len()) else { return };
                data.push(0xb4);
                data.extend_from_slice(&length.to_be_bytes());
                data.extend_from_slice(identity);
                let newer = self.own.as_ref().is_none_or(|own| own.created <= signature.created);
                if newer && self.primary.made(&signature, data).is_ok() {
                    self.own = Some(signature);
                }
            }
            (KEY_REVOCATION, ..) if self.primary.made(&signature, data.clone()).is_ok() => {
                self.revocation = Some(signature);
            }
            (SUBKEY_BINDING | SUBKEY_REVOCATION, _, Some(subkey)) => {
                data.extend_from_slice(&subkey.framed());
                if self.primary.made(&signature, data.clone()).is_err() {
                    return;
                }
                let known = self.subkeys.iter().position(|(key, _)| key.fingerprint == subkey.fingerprint);
                match known.and_then(|at| self.subkeys.get_mut(at)) {
                    // What is revoked stays so.
                    Some((_, old)) if old.kind == SUBKEY_REVOCATION => {}
                    Some((_, old))
                        if old.created <= signature.created || signature.kind == SUBKEY_REVOCATION =>
                    {
                        *old = signature;
                    }
                    Some(_) => {}
                    None => self.subkeys.push((subkey.clone(), signature)),
                }
            }
            _ => {}
        }
    }

    /// Every key, with what the primary key says of it.
    fn signers(&self) -> impl Iterator<Item = (&Key, Option<&Signature>)> {
        let subkeys = self.subkeys.iter().map(|(key, binding)| (key, Some(binding)));
        std::iter::once((&self.primary, None)).chain(subkeys)
    }

    /// Whether `key` signed `data`, and was good for that at `at`.
    fn check(
        &self,
        key: &Key,
        binding: Option<&Signature>,
        signature: &Signature,
        data: Vec<u8>,
        at: i64,
    ) -> Result<(), Rejected> {
        let own = self.own.as_ref().ok_or_else(|| Rejected::new("key without a valid identity"))?;
        if let Some(revocation) = &self.revocation {
            return Err(match revocation.reason.as_str() {
                "" => Rejected::new("key revoked"),
                reason => Rejected::new(format!("key revoked: {reason}")),
            });
        }
        alive(&self.primary, own, at)?;
        if let Some(binding) = binding {
            if binding.kind == SUBKEY_REVOCATION {
                return Err(Rejected::new("signing subkey revoked"));
            }
            alive(key, binding, at)?;
            self.vouches_back(key, binding)?;
        }
        let flags = binding.unwrap_or(own).key_flags;
        if flags.is_some_and(|flags| flags & MAY_SIGN == 0) {
            return Err(Rejected::new("the key may not sign"));
        }
        let end = signature.lifetime.map(|l| i64::from(signature.created) + i64::from(l));
        if end.is_some_and(|end| end <= at) {
            return Err(Rejected::new("signature expired"));
        }
        key.made(signature, data)
    }

    /// A subkey that signs has to say itself that it belongs to this key.
    fn vouches_back(&self, key: &Key, binding: &Signature) -> Result<(), Rejected> {
        let missing = || Rejected::new("signing subkey without a signature of its own");
        let back = binding.embedded.as_deref().filter(|b| b.kind == PRIMARY_BINDING).ok_or_else(missing)?;
        key.made(back, [self.primary.framed(), key.framed()].concat())
    }
}

/// Whether `key` existed at `at` and had not expired, as `certificate` says.
fn alive(key: &Key, certificate: &Signature, at: i64) -> Result<(), Rejected> {
    let from = i64::from(key.created);
    if from > at {
        return Err(Rejected::new("key is younger than the signature"));
    }
    match certificate.key_lifetime {
        Some(lifetime) if from + i64::from(lifetime) <= at => {
            let end = Timestamp::from_secs(from + i64::from(lifetime));
            Err(Rejected::new(format!("key expired at {end}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
