use super::*;

fn matches(pattern: &str, path: &str) -> bool {
    let matcher = Matcher::new([pattern]).unwrap();
    let whole = matcher.matches_or_parent(path).unwrap();
    let (alone, _) = matcher.matches_with_parent(path, &MatchInfo::default()).unwrap();
    assert_eq!(whole, alone, "{pattern} {path}");
    // A walk from the top has to find the same.
    let mut info = MatchInfo::default();
    let mut walked = false;
    for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
        (walked, info) = matcher.matches_with_parent(&path[..end], &info).unwrap();
    }
    assert_eq!(whole, walked, "walk {pattern} {path}");
    whole
}
