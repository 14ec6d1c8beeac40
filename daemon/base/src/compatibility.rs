//! Results as earlier releases made them, for clients that ask for the same bytes again.

use crate::Failure;

/// The compatibility version of a build; the later, the greater. The numbers and what
/// they mean are those of moby/buildkit (`solver/llbsolver/compat`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compatibility {
    /// v0.13 and v0.14: files from git may be written by everybody, layers are never zstd.
    V10,
    /// v0.15 and later: media types of Docker unless others are asked for.
    V20,
    /// This release: media types of OCI.
    #[default]
    V30,
}

impl Compatibility {
    const ALL: [Self; 3] = [Self::V10, Self::V20, Self::V30];

    /// The number clients call it by.
    pub fn number(self) -> u32 {
        match self {
            Self::V10 => 10,
            Self::V20 => 20,
            Self::V30 => 30,
        }
    }

    /// The version a client asks for by `number`; zero asks for none.
    ///
    /// # Errors
    /// When there is no such version, in the words of moby/buildkit.
    pub fn asked(number: i64) -> Result<Self, Failure> {
        let current = Self::default();
        if number == 0 {
            return Ok(current);
        }
        if let Some(version) = Self::ALL.into_iter().find(|version| i64::from(version.number()) == number) {
            return Ok(version);
        }
        let why = if number > current.number().into() {
            format!(": upgrade buildkit (max supported: {})", current.number())
        } else {
            " (supported: [10 20 30])".to_owned()
        };
        Err(Failure::invalid(format!("unsupported compatibility-version {number}{why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known_by_number() {
        assert_eq!(Compatibility::asked(0).unwrap(), Compatibility::V30);
        for version in Compatibility::ALL {
            assert_eq!(Compatibility::asked(version.number().into()).unwrap(), version);
        }
        let refusal = |number| Compatibility::asked(number).unwrap_err().to_string();
        assert_eq!(refusal(11), "unsupported compatibility-version 11 (supported: [10 20 30])");
        assert_eq!(refusal(-1), "unsupported compatibility-version -1 (supported: [10 20 30])");
        assert_eq!(refusal(40), "unsupported compatibility-version 40: upgrade buildkit (max supported: 30)");
    }
}
