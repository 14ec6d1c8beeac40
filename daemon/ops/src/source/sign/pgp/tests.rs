//! Against what gpg 2.2 wrote.

use super::verify;

const DATA: &[u8] = include_bytes!("../vectors/data");

macro_rules! vector {
    ($name:literal) => {
        (
            include_str!(concat!("../vectors/", $name, ".asc")),
            include_str!(concat!("../vectors/", $name, ".key")),
        )
    };
}

fn check(data: &[u8], signature: &str, keys: &str, reject_expired: bool) -> Result<(), String> {
    verify(data.to_vec(), signature, keys, reject_expired).map_err(|e| e.to_string())
}

#[test]
fn believes_the_key_that_signed() {
    for (name, (signature, key)) in
        [("rsa", vector!("rsa")), ("ed", vector!("ed")), ("p256", vector!("p256")), ("sub", vector!("sub"))]
    {
        assert_eq!(check(DATA, signature, key, false), Ok(()), "{name}");
        let error = check(b"other data", signature, key, false).unwrap_err();
        assert!(error.contains("hash tag") || error.contains("invalid signature"), "{name}: {error}");
    }
    // One of several keys is enough.
    let keys = format!("{}{}", vector!("rsa").1, vector!("ed").1);
    assert_eq!(check(DATA, vector!("ed").0, &keys, false), Ok(()));
    assert_eq!(check(DATA, vector!("sub").0, vector!("sub").1, true), Ok(()));
}

#[test]
fn believes_nobody_else() {
    let error = check(DATA, vector!("rsa").0, vector!("ed").1, false).unwrap_err();
    assert!(error.contains("unknown entity"), "{error}");
    let (signature, key) = vector!("rev");
    assert!(check(DATA, signature, key, false).unwrap_err().contains("key revoked"));
    let (signature, key) = vector!("old");
    assert_eq!(check(DATA, signature, key, false), Ok(()));
    assert!(check(DATA, signature, key, true).unwrap_err().contains("key expired at 2020-01-31"));
}

#[test]
fn survives_rubbish() {
    let (signature, key) = vector!("sub");
    assert!(check(DATA, "", key, false).unwrap_err().contains("failed to decode armored signature"));
    for keys in ["", "ssh-ed25519 AAAA", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"] {
        assert!(
            check(DATA, signature, keys, false).unwrap_err().contains("failed to read armored public key")
        );
    }
    // Every byte of both in turn: never more than a refusal.
    for text in [signature, key] {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, l)| l.len() > 8 && !l.starts_with('-')) {
            for column in [0, line.len() / 2, line.len() - 1] {
                let mut changed = line.to_string();
                let old = changed.as_bytes()[column];
                changed.replace_range(column..=column, if old == b'A' { "B" } else { "A" });
                let mut all: Vec<&str> = lines.clone();
                all[at] = &changed;
                let all = all.join("\n");
                let (s, k) = if std::ptr::eq(text, signature) {
                    (all.as_str(), key)
                } else {
                    (signature, all.as_str())
                };
                _ = check(DATA, s, k, false);
            }
        }
    }
}
