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

/// Levenshtein distance, or `limit` when it is not below that.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= limit {
        return limit;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(limit).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest() {
        assert_eq!(search("FORM", ["ADD", "FROM"], false).as_deref(), Some("FROM"));
        assert_eq!(search("Form", ["FROM"], false).as_deref(), Some("from"));
        assert_eq!(search("frm", ["from", "arm"], true).as_deref(), Some("from"));
        assert_eq!(search("from", ["arm", "from"], true), None);
        assert_eq!(search("xyz", ["from"], true), None);
        assert_eq!(search("ab", ["abcd"], true).as_deref(), Some("abcd"));
        assert_eq!(search("ab", ["abcde"], true), None);
        assert_eq!(suggest("platfrom", ["platform"], true).to_string(), " (did you mean platform?)");
        assert_eq!(suggest("q", ["platform"], true).to_string(), "");
    }
}
