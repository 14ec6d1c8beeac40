//! Slash-separated paths as Go's `path` treats them: digests depend on it.

/// The shortest path that means the same; `.` for the empty one.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => _ = parts.pop(),
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let text = parts.join("/");
    match (rooted, text.is_empty()) {
        (true, _) => format!("/{text}"),
        (false, true) => ".".to_owned(),
        (false, false) => text,
    }
}

/// The parts joined with slashes and cleaned; empty parts do not count.
pub fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean(&parts.join("/")) }
}

/// The last part; `.` of nothing and `/` of the root.
pub fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("") => "/".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// All but the last part, cleaned.
pub fn dir(path: &str) -> String {
    match path.rfind('/') {
        Some(at) => clean(&path[..=at]),
        None => ".".to_owned(),
    }
}

/// Whether it begins at the root.
pub fn is_abs(path: &str) -> bool {
    path.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_like_go() {
        for (path, want) in [
            ("", "."),
            (".", "."),
            ("./a/../b//c/", "b/c"),
            ("../a", "../a"),
            ("/../a", "/a"),
            ("/", "/"),
            ("a/../..", ".."),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
        assert_eq!(join(&["/a", "", "../b"]), "/b");
        assert_eq!(join(&["", ""]), "");
        assert_eq!((base("/a/b/"), base("/"), base("")), ("b".into(), "/".into(), ".".into()));
        assert_eq!((dir("/a/b"), dir("a"), dir("a/b/")), ("/a".into(), ".".into(), "a/b".into()));
    }
}
