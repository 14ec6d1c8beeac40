//! Detached signatures: what `gpg --detach-sign --armor` and `ssh-keygen -Y sign`
//! write, checked with the public keys that a build names.
//!
//! Only what people sign with today: hashes of the SHA-2 family, and keys for
//! which an attack is not known.

mod armor;
mod packet;
pub(crate) mod pgp;
pub(crate) mod ssh;

/// A signature is not to be trusted, or not to be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Rejected(pub(crate) String);

impl Rejected {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl base::Classify for Rejected {
    fn kind(&self) -> base::Kind {
        base::Kind::PermissionDenied
    }
}

/// Bytes that are taken from the front. Nothing is taken that is not there.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_be_bytes(self.take(2)?.try_into().ok()?)))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// A number without zeros in front.
fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// A number in exactly `N` bytes.
fn padded<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let number = trimmed(number);
    let mut out = [0; N];
    out.get_mut(N.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(out)
}
