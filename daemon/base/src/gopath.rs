//! Slash separated paths as text, as Go's packages `path` and `path/filepath`
//! handle them on Unix. Nothing here looks at a file system.

/// `path.Clean`: the shortest equal path. Never empty; `.` stands for nothing.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") => parts.push(part),
                Some(_) => drop(parts.pop()),
                None if rooted => {}
                None => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// `path.Join`: the parts that are not empty, joined and cleaned. Empty when
/// all are.
pub fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean(&parts.join("/")) }
}

/// `path.Base`: the last element. `.` of nothing, `/` of only slashes.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((_, last)) => last,
        None if path.is_empty() => "/",
        None => path,
    }
}

/// `path.Dir`: all but the last element, cleaned.
pub fn dir(path: &str) -> String {
    clean(split(path).0)
}

/// `path.Split`: up to the last slash, and what follows.
pub fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |at| at + 1))
}

/// `path.IsAbs`.
pub fn is_abs(path: &str) -> bool {
    path.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        for (path, want) in [
            ("", "."),
            ("abc", "abc"),
            ("abc/def", "abc/def"),
            (".", "."),
            ("..", ".."),
            ("../..", "../.."),
            ("/", "/"),
            ("//", "/"),
            ("abc/", "abc"),
            ("//abc//def//", "/abc/def"),
            ("abc/./def", "abc/def"),
            ("abc/def/..", "abc"),
            ("abc/..", "."),
            ("abc/../..", ".."),
            ("abc/../../def", "../def"),
            ("/..", "/"),
            ("/../../abc", "/abc"),
            ("abc/../../././../def", "../../def"),
            ("...", "..."),
            ("a/.../b", "a/.../b"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
    }

    #[test]
    fn takes_apart() {
        assert_eq!(join(["", ""]), "");
        assert_eq!(join(["a", "", "../b", "/c/"]), "b/c");
        assert_eq!(join(["/", ".."]), "/");
        for (path, want) in [("", "."), ("/", "/"), ("//", "/"), ("a/b/", "b"), ("a", "a"), ("/a", "a")] {
            assert_eq!(base(path), want, "{path}");
        }
        for (path, want) in [("", "."), ("a", "."), ("/a", "/"), ("a/b/", "a/b"), ("a//b", "a")] {
            assert_eq!(dir(path), want, "{path}");
        }
    }
}
