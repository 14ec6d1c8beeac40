//! Whether a result is for the platforms that were asked for.

use std::collections::BTreeSet;

use base::Platform;

use crate::error::Error;
use crate::platforms::{PLATFORMS, platforms};
use crate::source::Source;

/// What a client should be told when a result is not for the platforms it named:
/// `requested` is the option `platform` of the frontend, or nothing for this machine.
///
/// # Errors
/// A result that does not say which of its trees is for which platform.
pub fn platform_warnings(source: &Source, requested: Option<&str>) -> Result<Vec<String>, Error> {
    if !source.metadata.contains_key(PLATFORMS) {
        if source.is_map() {
            return Err(Error::shape("build result contains multiple refs without platforms mapping"));
        }
        if source.single.is_none() {
            return Ok(Vec::new());
        }
    }
    let results: Vec<Platform> = platforms(&source.metadata)?.into_iter().map(|p| p.platform).collect();

    let Some(requested) = requested else {
        return Ok(compare(&[Platform::host()], &results, source.is_map()));
    };
    let (mut wanted, mut warnings) = (Vec::new(), Vec::new());
    for text in requested.split(',') {
        match text.parse::<Platform>() {
            Ok(platform) => {
                let platform = platform.normalized();
                if wanted.contains(&platform) {
                    warnings.push(format!("Duplicate platform result requested {text:?}"));
                }
                wanted.push(platform);
            }
            Err(e) => warnings.push(format!("Invalid platform result requested {text:?}: {e}")),
        }
    }
    Ok(if warnings.is_empty() { compare(&wanted, &results, source.is_map()) } else { warnings })
}

fn compare(wanted: &[Platform], results: &[Platform], is_map: bool) -> Vec<String> {
    let names = |list: &[Platform]| list.iter().map(Platform::format_all).collect::<BTreeSet<_>>();
    if let ([wanted], [result]) = (wanted, results) {
        // Who asks without a version of the system takes any.
        let version = if wanted.os_version.is_empty() { String::new() } else { result.os_version.clone() };
        let same = *wanted == Platform { os_version: version, ..result.clone() };
        let text = || {
            let (wanted, result) = (wanted.to_string(), result.format_all());
            format!("Requested platform {wanted:?} does not match result platform {result:?}")
        };
        return if same { Vec::new() } else { vec![text()] };
    }
    if !is_map && wanted.len() > 1 {
        return vec!["Multiple platforms requested but result is not multi-platform".to_owned()];
    }
    let (wanted, results) = (names(wanted), names(results));
    if wanted == results {
        return Vec::new();
    }
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(",");
    vec![format!("Requested platforms {} do not match result platforms {}", list(wanted), list(results))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: &[&str], results: &[&str], is_map: bool) -> String {
        let read = |list: &[&str]| {
            list.iter().map(|text| text.parse::<Platform>().unwrap().normalized()).collect::<Vec<_>>()
        };
        compare(&read(wanted), &read(results), is_map).join("; ")
    }

    #[test]
    fn says_what_is_not_as_asked() {
        assert_eq!(check(&["linux/amd64"], &["linux/amd64"], false), "");
        assert_eq!(check(&["linux/amd64", "linux/arm64"], &["linux/arm64", "linux/amd64"], true), "");
        assert_eq!(
            check(&["linux/arm64"], &["linux/amd64"], false),
            "Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\""
        );
        assert_eq!(
            check(&["linux/amd64", "linux/arm64"], &["linux/amd64"], false),
            "Multiple platforms requested but result is not multi-platform"
        );
        assert_eq!(
            check(&["linux/amd64", "linux/arm64"], &["linux/s390x", "linux/amd64"], true),
            "Requested platforms linux/amd64,linux/arm64 do not match result platforms linux/amd64,linux/s390x"
        );
    }

    #[test]
    fn a_version_nobody_asked_for_is_fine() {
        let wanted = [Platform::new("windows", "amd64", "")];
        let result = [Platform { os_version: "10.0.1".into(), ..wanted[0].clone() }];
        assert!(compare(&wanted, &result, false).is_empty());
        assert_eq!(compare(&result, &wanted, false).len(), 1);
    }

    #[test]
    fn refuses_trees_without_platforms() {
        let mut source = Source::default();
        assert!(platform_warnings(&source, Some("linux/arm64")).unwrap().is_empty());
        source.refs.insert("a".into(), None);
        assert!(
            platform_warnings(&source, None).unwrap_err().to_string().contains("without platforms mapping")
        );
        source.metadata.insert(
            PLATFORMS.into(),
            br#"{"Platforms":[{"ID":"a","Platform":{"architecture":"arm64","os":"linux"}}]}"#.to_vec(),
        );
        assert!(platform_warnings(&source, Some("linux/arm64")).unwrap().is_empty());
        for (asked, part) in [("linux/arm64,linux/aarch64", "Duplicate"), ("linux/a/b/c/d", "Invalid")] {
            let warnings = platform_warnings(&source, Some(asked)).unwrap();
            assert!(warnings[0].starts_with(part), "{warnings:?}");
        }
    }
}
