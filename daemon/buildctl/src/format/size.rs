//! Sizes in bytes, in units of a thousand.

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

fn scaled(bytes: i64) -> (f64, usize) {
    let mut value = bytes as f64;
    let mut unit = 0;
    let mut next: i64 = 1000;
    while bytes.unsigned_abs() >= next.unsigned_abs() && unit + 1 < UNITS.len() {
        unit += 1;
        value = bytes as f64 / next as f64;
        match next.checked_mul(1000) {
            Some(n) => next = n,
            None => break,
        }
    }
    (value, unit)
}

/// With two decimals, `1.23kB`, but whole bytes below a thousand: `999B`.
pub(crate) fn fixed(bytes: i64) -> String {
    match scaled(bytes) {
        (_, 0) => format!("{bytes}B"),
        (value, unit) => format!("{value:.2}{}", UNITS[unit]),
    }
}

/// With as many decimals as it takes, `1.2kB`.
pub(crate) fn shortest(bytes: i64) -> String {
    match scaled(bytes) {
        (_, 0) => format!("{bytes}B"),
        (value, unit) => format!("{value}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_the_reference_prints_them() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1234, "1.23kB"),
            (45_600_000, "45.60MB"),
            (-1234, "-1.23kB"),
            (i64::MAX, "9.22EB"),
        ] {
            assert_eq!(fixed(bytes), text);
        }
        assert_eq!(shortest(1200), "1.2kB");
        assert_eq!(shortest(2_000_000_000), "2GB");
    }
}
