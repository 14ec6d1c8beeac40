//! "Did you mean …?"

use std::fmt;

/// What was probably meant. Prints ` (did you mean X?)`, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suggestion(Option<String>);

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(meant) => write!(f, " (did you mean {meant}?)"),
            None => Ok(()),
        }
    }
}

/// The option that is one or two edits away from `given`; the nearest, and of
/// those the first. None when `given` is itself an option: then something else
/// is wrong.
pub fn search<'a>(
    given: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |s: &str| if case_sensitive { s.to_owned() } else { s.to_lowercase() };
    let wanted = fold(given);
    let (mut best, mut nearest) = (None, 3);
    for option in options {
        let option = fold(option);
        if option == wanted {
            return None;
        }
        let distance = distance(&wanted, &option, nearest);
        if distance < nearest {
            nearest = distance;
            best = Some(option);
        }
    }
    let best = best?;
    Some(match case_sensitive {
        false if given == given.to_lowercase() => best.to_lowercase(),
        false if given == given.to_uppercase() => best.to_uppercase(),
        _ => best,
    })
}

/// [`search`], for the end of an error's text.
pub fn suggest<'a>(
    given: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Suggestion {
    Suggestion(search(given, options, case_sensitive).filter(|s| !s.is_empty()))
}

/// Levenshtein distance, or `limit` when it is not below that. Takes time for
/// `limit` times the length: names may be long.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= limit {
        return limit;
    }
    // Further from the diagonal than this, it is too much already.
    let near = |i: usize| i.saturating_sub(limit)..(i + limit + 1).min(b.len() + 1);
    let mut row: Vec<usize> = (0..=b.len()).map(|j| j.min(limit)).collect();
    for (i, x) in a.iter().enumerate() {
        let band = near(i + 1);
        let mut diagonal =
            if band.start == 0 { i } else { row.get(band.start - 1).copied().unwrap_or(limit) };
        let mut left = limit;
        for j in band {
            let Some(cell) = row.get_mut(j) else { break };
            let same = j.checked_sub(1).and_then(|before| b.get(before)) == Some(x);
            let here =
                if j == 0 { i + 1 } else { (diagonal + usize::from(!same)).min(left + 1).min(*cell + 1) };
            diagonal = *cell;
            *cell = here.min(limit);
            left = here;
        }
    }
    row.last().copied().unwrap_or(limit).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures() {
        for (a, b, want) in [
            ("", "", 0),
            ("", "ab", 2),
            ("abc", "abc", 0),
            ("abc", "acb", 2),
            ("kitten", "sitting", 3),
            ("abcdef", "bcdefg", 2),
            ("flaw", "lawn", 2),
            ("abcd", "badc", 3),
            ("xabcx", "abc", 2),
        ] {
            assert_eq!((distance(a, b, 3), distance(b, a, 3)), (want, want), "{a} {b}");
        }
    }

    #[test]
    fn finds_the_nearest() {
        assert_eq!(search("FORM", ["ADD", "FROM"], false).as_deref(), Some("FROM"));
        assert_eq!(search("Form", ["FROM"], false).as_deref(), Some("from"));
        assert_eq!(search("frm", ["from", "arm"], true).as_deref(), Some("from"));
        assert_eq!(search("from", ["arm", "from"], true), None);
        assert_eq!(search("xyz", ["from"], true), None);
        assert_eq!(search("ab", ["abcd"], true).as_deref(), Some("abcd"));
        assert_eq!(search("ab", ["abcde"], true), None);
        let long = "a".repeat(100_000);
        assert_eq!(search(&long, [format!("{long}b").as_str()], true), Some(format!("{long}b")));
        assert_eq!(suggest("platfrom", ["platform"], true).to_string(), " (did you mean platform?)");
        assert_eq!(suggest("q", ["platform"], true).to_string(), "");
    }
}
