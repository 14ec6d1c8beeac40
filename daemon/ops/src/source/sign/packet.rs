//! OpenPGP packets, as far as signatures need them: RFC 9580, version 4.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512, digest};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::{Cursor, Rejected, padded, trimmed};

/// Tags of packets.
pub(super) const SIGNATURE: u8 = 2;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;

/// More packets than any ring of keys that is pasted into a build has.
const MAX_PACKETS: usize = 4096;
/// Embedded signatures have none within them.
const MAX_DEPTH: u8 = 1;

/// The packets in `bytes`: tag and body.
pub(super) fn packets(bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut rest = Cursor(bytes);
    let mut found = Vec::new();
    while !rest.is_empty() {
        let head = rest.byte()?;
        if head & 0x80 == 0 || found.len() == MAX_PACKETS {
            return None;
        }
        let (tag, length) = if head & 0x40 != 0 {
            (head & 0x3f, length(&mut rest)?)
        } else {
            let length = match head & 3 {
                0 => usize::from(rest.byte()?),
                1 => rest.u16()?,
                2 => usize::try_from(rest.u32()?).ok()?,
                _ => rest.0.len(),
            };
            ((head >> 2) & 0xf, length)
        };
        found.push((tag, rest.take(length)?));
    }
    Some(found)
}

/// A length in the new format. Partial ones are for data, which is not read here.
fn length(rest: &mut Cursor<'_>) -> Option<usize> {
    match rest.byte()? {
        short @ 0..192 => Some(usize::from(short)),
        first @ 192..224 => Some(((usize::from(first) - 192) << 8) + usize::from(rest.byte()?) + 192),
        255 => usize::try_from(rest.u32()?).ok(),
        _ => None,
    }
}

fn mpi<'a>(rest: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let bits = rest.u16()?;
    rest.take(bits.div_ceil(8))
}

/// What a key can do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    /// Other than sign, or in a way that is not known here.
    Other,
}

/// A public key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    body: Vec<u8>,
    pub(super) created: u32,
    material: Material,
    pub(super) fingerprint: Vec<u8>,
}

const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519_LEGACY: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

impl Key {
    /// Reads the body of a packet.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut rest = Cursor(body);
        if rest.byte()? != 4 {
            return None;
        }
        let created = rest.u32()?;
        let algorithm = rest.byte()?;
        let material = match algorithm {
            1 | 3 => {
                Material::Rsa { n: trimmed(mpi(&mut rest)?).to_vec(), e: trimmed(mpi(&mut rest)?).to_vec() }
            }
            19 | 22 => {
                let size = usize::from(rest.byte()?);
                let curve = rest.take(size)?;
                let point = mpi(&mut rest)?.to_vec();
                match (algorithm, curve) {
                    (19, P256) => Material::P256(point),
                    (19, P384) => Material::P384(point),
                    (22, ED25519_LEGACY) => Material::Ed25519(point.strip_prefix(&[0x40])?.to_vec()),
                    _ => Material::Other,
                }
            }
            _ => Material::Other,
        };
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        context.update(&framed(body)?);
        let fingerprint = context.finish().as_ref().to_vec();
        Some(Self { body: body.to_vec(), created, material, fingerprint })
    }

    /// Its form inside of what certifications sign.
    pub(super) fn framed(&self) -> Vec<u8> {
        framed(&self.body).unwrap_or_default()
    }

    pub(super) fn id(&self) -> &[u8] {
        self.fingerprint.get(12..).unwrap_or_default()
    }

    /// Whether it made `signature` over `data`.
    pub(super) fn made(&self, signature: &Signature, mut data: Vec<u8>) -> Result<(), Rejected> {
        let wrong = || Rejected::new("invalid signature");
        data.extend_from_slice(&signature.trailer);
        let digest = signature.hash.digest(&data);
        if digest.get(..2) != Some(&signature.left) {
            return Err(Rejected::new("hash tag doesn't match"));
        }
        let mut numbers = Cursor(&signature.numbers);
        let mut number = || mpi(&mut numbers).ok_or_else(wrong);
        let outcome = match (&self.material, signature.algorithm, signature.hash) {
            (Material::Rsa { n, e }, 1 | 3, hash) => {
                // Numbers are written without zeros in front; RSA wants them.
                let s = trimmed(number()?);
                let s = [vec![0; n.len().saturating_sub(s.len())], s.to_vec()].concat();
                let how = match hash {
                    Hash::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }.verify(how, &data, &s)
            }
            (Material::P256(point), 19, Hash::Sha256) => {
                let (r, s) = (number()?, number()?);
                let both = padded::<32>(r).zip(padded::<32>(s)).ok_or_else(wrong)?;
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(&data, &[both.0, both.1].concat())
            }
            (Material::P384(point), 19, Hash::Sha384) => {
                let (r, s) = (number()?, number()?);
                let both = padded::<48>(r).zip(padded::<48>(s)).ok_or_else(wrong)?;
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                    .verify(&data, &[both.0, both.1].concat())
            }
            (Material::Ed25519(point), 22, _) => {
                let (r, s) = (number()?, number()?);
                let both = padded::<32>(r).zip(padded::<32>(s)).ok_or_else(wrong)?;
                UnparsedPublicKey::new(&ED25519, point).verify(&digest, &[both.0, both.1].concat())
            }
            _ => {
                return Err(Rejected::new("the key and the signature are of different or unsupported kinds"));
            }
        };
        outcome.map_err(|_| wrong())
    }
}

fn framed(body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(body.len()).ok()?.to_be_bytes();
    Some([&[0x99], length.as_slice(), body].concat())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn digest(self, data: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        };
        digest(algorithm, data).as_ref().to_vec()
    }
}

/// What a key says of something.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    pub(super) kind: u8,
    pub(super) algorithm: u8,
    pub(super) hash: Hash,
    pub(super) created: u32,
    /// Seconds after its making, for which it holds.
    pub(super) lifetime: Option<u32>,
    /// Seconds after the key's making, for which the key is good.
    pub(super) key_lifetime: Option<u32>,
    pub(super) key_flags: Option<u8>,
    pub(super) issuer: Option<Vec<u8>>,
    pub(super) reason: String,
    /// By a subkey that wants to sign, of the key above it.
    pub(super) embedded: Option<Box<Signature>>,
    /// What is hashed after the data.
    trailer: Vec<u8>,
    left: [u8; 2],
    numbers: Vec<u8>,
}

impl Signature {
    /// Reads the body of a packet.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Rejected> {
        Self::parse_within(body, 0)
    }

    fn parse_within(body: &[u8], depth: u8) -> Result<Self, Rejected> {
        let broken = || Rejected::new("malformed signature packet");
        let mut rest = Cursor(body);
        let version = rest.byte().ok_or_else(broken)?;
        if version != 4 {
            return Err(Rejected::new(format!("signature packets of version {version} are not supported")));
        }
        let head = rest.take(3).ok_or_else(broken)?;
        let &[kind, algorithm, hash] = head else { return Err(broken()) };
        let hash = match hash {
            8 => Hash::Sha256,
            9 => Hash::Sha384,
            10 => Hash::Sha512,
            other => return Err(Rejected::new(format!("rejecting weak/unknown hash: {other}"))),
        };
        let size = rest.u16().ok_or_else(broken)?;
        let hashed = rest.take(size).ok_or_else(broken)?;
        let signed = body.get(..6 + size).ok_or_else(broken)?;
        let count = u32::try_from(signed.len()).map_err(|_| broken())?.to_be_bytes();
        let trailer = [signed, &[4, 0xff], &count].concat();
        let size = rest.u16().ok_or_else(broken)?;
        let unhashed = rest.take(size).ok_or_else(broken)?;
        let left = rest.take(2).and_then(|left| left.try_into().ok()).ok_or_else(broken)?;
        let mut signature = Self {
            kind,
            algorithm,
            hash,
            created: 0,
            lifetime: None,
            key_lifetime: None,
            key_flags: None,
            issuer: None,
            reason: String::new(),
            embedded: None,
            trailer,
            left,
            numbers: rest.0.to_vec(),
        };
        signature.subpackets(hashed, true, depth)?;
        signature.subpackets(unhashed, false, depth)?;
        Ok(signature)
    }

    /// What is said in passing. Only hashed parts are the signer's word; the others
    /// may help to find the key, and carry signatures of their own.
    fn subpackets(&mut self, bytes: &[u8], hashed: bool, depth: u8) -> Result<(), Rejected> {
        let broken = || Rejected::new("malformed signature subpacket");
        let mut rest = Cursor(bytes);
        while !rest.is_empty() {
            let size = rest.byte().ok_or_else(broken)?;
            let size = match size {
                0..192 => usize::from(size),
                192..255 => {
                    let second = rest.byte().ok_or_else(broken)?;
                    ((usize::from(size) - 192) << 8) + usize::from(second) + 192
                }
                255 => usize::try_from(rest.u32().ok_or_else(broken)?).map_err(|_| broken())?,
            };
            let mut part = Cursor(rest.take(size).ok_or_else(broken)?);
            let kind = part.byte().ok_or_else(broken)?;
            let body = part.0;
            let number = || Cursor(body).u32().ok_or_else(broken);
            match (kind & 0x7f, hashed) {
                (2, true) => self.created = number()?,
                (3, true) => self.lifetime = Some(number()?).filter(|n| *n > 0),
                (9, true) => self.key_lifetime = Some(number()?).filter(|n| *n > 0),
                (27, true) => self.key_flags = Some(body.first().copied().unwrap_or(0)),
                (29, true) => {
                    self.reason = String::from_utf8_lossy(body.get(1..).unwrap_or_default()).into_owned();
                }
                (16, _) => self.issuer = self.issuer.take().or_else(|| Some(body.to_vec())),
                // The fingerprint says more than the id at its end.
                (33, _) => self.issuer = body.get(1..).map(<[u8]>::to_vec),
                (32, _) if depth < MAX_DEPTH => {
                    self.embedded = Some(Box::new(Self::parse_within(body, depth + 1)?));
                }
                // Known, and of no concern here.
                (2..=7 | 9..=12 | 20..=35 | 39, _) => {}
                (other, true) if kind & 0x80 != 0 => {
                    return Err(Rejected::new(format!("unknown critical signature subpacket {other}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether `key` may have made it.
    pub(super) fn may_be_of(&self, key: &Key) -> bool {
        match self.issuer.as_deref() {
            None => true,
            Some(issuer) => issuer == key.fingerprint || issuer == key.id(),
        }
    }
}
