//! Random names.

/// A fresh name of 25 characters out of `0-9a-z`, about 128 bits: the form
/// clients know from records, sessions and build references.
pub fn fresh() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest: u128 = rand::random();
    let mut text = [0u8; 25];
    for slot in text.iter_mut().rev() {
        *slot = DIGITS[(rest % 36) as usize];
        rest /= 36;
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_differ() {
        let (a, b) = (super::fresh(), super::fresh());
        assert_ne!(a, b);
        assert_eq!(a.len(), 25);
    }
}
