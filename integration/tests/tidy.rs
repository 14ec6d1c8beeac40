//! Small things that otherwise grow: file sizes, missing introductions, paths
//! of somebody's machine.

use std::path::Path;

use anyhow::Result;
use integration::places;
use integration::sources;

const MAX_LINES: usize = 1000;

fn inside<'a>(root: &Path, path: &'a Path) -> std::borrow::Cow<'a, str> {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy()
}

/// Generated code is as long as it is.
fn generated(path: &str) -> bool {
    path.contains("/gen/")
}

#[test]
fn no_file_is_too_long_to_read() -> Result<()> {
    let root = places::workspace();
    for path in sources::rust(&root)? {
        let name = inside(&root, &path);
        let lines = std::fs::read_to_string(&path)?.lines().count();
        assert!(
            generated(&name) || lines <= MAX_LINES,
            "{name} has {lines} lines, {MAX_LINES} are the limit"
        );
    }
    Ok(())
}

#[test]
fn every_module_says_what_it_is_for() -> Result<()> {
    let root = places::workspace();
    let silent: Vec<String> = sources::rust(&root)?
        .into_iter()
        .filter(|path| !generated(&inside(&root, path)))
        // What tests are about is said by the module they belong to.
        .filter(|path| path.file_name().is_none_or(|name| name != "tests.rs"))
        .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| !text.starts_with("//! ")))
        .map(|path| inside(&root, &path).into_owned())
        .collect();
    assert!(silent.is_empty(), "without an introduction: {silent:#?}");
    Ok(())
}

#[test]
fn nothing_knows_the_machine_it_was_written_on() -> Result<()> {
    let root = places::workspace();
    let paths = [
        concat!("/wo", "rk/main"),
        concat!("/wo", "rk/shared"),
        concat!("/wo", "rk/."),
        concat!("/opt/", "ref"),
        concat!("/.", "ref/"),
        concat!("CARGO_TARGET_DIR=", "/"),
    ];
    for path in sources::text(&root)? {
        let name = inside(&root, &path);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let found = paths.iter().find(|p| line.contains(**p));
            assert!(found.is_none(), "{name}:{}: {found:?}", number + 1);
        }
    }
    Ok(())
}

#[test]
fn lines_end_where_their_text_ends() -> Result<()> {
    let root = places::workspace();
    for path in sources::text(&root)? {
        let name = inside(&root, &path);
        if generated(&name) || name.contains("testdata") || name.contains("snapshots") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let trailing = text.lines().position(|l| l.ends_with([' ', '\t']));
        assert!(
            trailing.is_none() || name.ends_with(".md"),
            "{name}:{} ends in white space",
            trailing.unwrap_or(0) + 1
        );
    }
    Ok(())
}
