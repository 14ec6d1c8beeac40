//! Text around bytes: `-----BEGIN …-----`, base64, `-----END …-----`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The blocks in `text` and their names; what stands between them does not count.
/// `None` when one of them is broken.
pub(super) fn blocks(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {name}-----");
        let mut base64 = String::new();
        let mut ended = false;
        for line in lines.by_ref() {
            if line == end {
                ended = true;
                break;
            }
            // Headers, and the checksum, which guards against accidents only.
            if !line.contains(": ") && !line.starts_with('=') {
                base64.push_str(line);
            }
        }
        if !ended {
            return None;
        }
        found.push((name.to_owned(), STANDARD.decode(base64).ok()?));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn reads_what_is_there() {
        let text = "x\n-----BEGIN A B-----\nVersion: 1\n\naGVs\nbG8=\n=abcd\n-----END A B-----\ny\n\
                    -----BEGIN C-----\nIQ==\n-----END C-----";
        let found = blocks(text).unwrap();
        assert_eq!(found, [("A B".to_owned(), b"hello".to_vec()), ("C".to_owned(), b"!".to_vec())]);
        assert_eq!(blocks("nothing"), Some(vec![]));
        assert_eq!(blocks("-----BEGIN A-----\naGVsbG8=\n"), None);
        assert_eq!(blocks("-----BEGIN A-----\n%%%\n-----END A-----"), None);
    }
}
