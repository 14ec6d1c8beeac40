//! Against what ssh-keygen of OpenSSH 9.2 wrote.

use super::verify;

const DATA: &[u8] = include_bytes!("../vectors/data");

macro_rules! vector {
    ($name:literal) => {
        (
            include_str!(concat!("../vectors/ssh-", $name, ".sig")),
            include_str!(concat!("../vectors/ssh-", $name, ".pub")),
        )
    };
}

#[test]
fn believes_the_key_that_signed() {
    for (signature, key) in
        [vector!("ed25519"), vector!("rsa-b2048"), vector!("ecdsa-b256"), vector!("ecdsa-b384")]
    {
        assert_eq!(verify(DATA, signature, key), Ok(()), "{key}");
        let with_options = format!("# a comment\nrestrict,command=\"x\" {key}");
        assert_eq!(verify(DATA, signature, &with_options), Ok(()), "{key}");
        assert!(verify(b"other data", signature, key).is_err(), "{key}");
    }
}

#[test]
fn believes_nobody_else() {
    let ((signature, _), (_, key)) = (vector!("ed25519"), vector!("rsa-b2048"));
    assert!(verify(DATA, signature, key).unwrap_err().to_string().contains("does not match"));
    let error = verify(DATA, signature, "-----BEGIN PGP PUBLIC KEY BLOCK-----").unwrap_err();
    assert!(error.to_string().contains("failed to parse ssh public key"));
    let other = include_str!("../vectors/ssh-other.sig");
    let error = verify(DATA, other, vector!("ed25519").1).unwrap_err();
    assert!(error.to_string().contains("unexpected SSH signature namespace"));
    for rubbish in ["", "-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----"] {
        assert!(verify(DATA, rubbish, vector!("ed25519").1).is_err());
    }
}
