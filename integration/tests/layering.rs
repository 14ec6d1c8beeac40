//! The floors of the house: which crate may use which.
//!
//! A crate uses crates of lower levels only, and of those only what is listed
//! here. Whoever needs another edge changes this table, and says why.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use integration::places;
use toml::{Table, Value};

/// Level, crate, and what it may use. `*` is everything below it.
const HOUSE: &[(u8, &str, &str)] = &[
    (0, "base", ""),
    (0, "proto", ""),
    (1, "sys", "base"),
    (1, "llb", "base proto"),
    (1, "solver", "base"),
    (1, "session", "base proto"),
    (1, "registry", "base"),
    (2, "cni", "base sys"),
    (2, "store", "base sys"),
    (2, "tree", "base proto sys"),
    (2, "proxy", "base"),
    (3, "cni-plugins", "base cni sys"),
    (3, "exec", "base cni proxy sys"),
    (3, "keys", "base solver store"),
    (3, "refs", "base store sys"),
    (4, "ops", "base exec llb proto proxy refs registry session solver store sys tree"),
    (4, "export", "base refs registry session store sys"),
    (4, "frontend", "base llb proto"),
    (5, "remotecache", "base export ops refs registry session solver store"),
    (6, "build", "*"),
    (7, "control", "base build frontend llb proto refs registry session store"),
    (8, "buildkitd", "*"),
    (8, "buildctl", "base llb proto session"),
    (9, "integration", "*"),
];

/// The names of all crates of the workspace, and what each uses of them.
fn edges() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let root = places::workspace();
    let mut manifests = vec![root.join("integration/Cargo.toml")];
    for part in ["daemon", "cni"] {
        for entry in std::fs::read_dir(root.join(part))? {
            manifests.push(entry?.path().join("Cargo.toml"));
        }
    }
    let mut crates = BTreeMap::new();
    for path in manifests.into_iter().filter(|m| m.exists()) {
        let manifest: Table =
            std::fs::read_to_string(&path)?.parse().with_context(|| path.display().to_string())?;
        let name = manifest.get("package").and_then(|p| p.get("name")).and_then(Value::as_str);
        // What only tests use binds nobody.
        let uses = ["dependencies", "build-dependencies"]
            .into_iter()
            .filter_map(|section| manifest.get(section)?.as_table())
            .flat_map(|section| section.keys().cloned())
            .collect();
        crates.insert(name.with_context(|| path.display().to_string())?.to_owned(), uses);
    }
    Ok(crates)
}

#[test]
fn crates_use_only_what_is_below_them() -> Result<()> {
    let crates = edges()?;
    let levels: BTreeMap<&str, u8> = HOUSE.iter().map(|(level, name, _)| (*name, *level)).collect();
    let mut wrong = Vec::new();
    for (name, uses) in &crates {
        let Some((level, _, allowed)) = HOUSE.iter().find(|(_, n, _)| n == name) else {
            wrong.push(format!("{name} has no place in the house"));
            continue;
        };
        for used in uses.iter().filter(|u| crates.contains_key(*u)) {
            let below = levels.get(used.as_str()).is_some_and(|l| l < level);
            let listed = *allowed == "*" || allowed.split(' ').any(|a| a == used);
            if !below || !listed {
                wrong.push(format!("{name} (level {level}) must not use {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_house_has_no_empty_rooms() -> Result<()> {
    let crates = edges()?;
    for (_, name, allowed) in HOUSE {
        let uses = crates.get(*name).with_context(|| format!("{name} does not exist"))?;
        for permitted in allowed.split(' ').filter(|a| !matches!(*a, "" | "*")) {
            assert!(uses.contains(permitted), "{name} may use {permitted} but does not");
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_stays_where_it_is_explained() -> Result<()> {
    // Descriptors that systemd hands over become ours only this way.
    const MAY: [&str; 3] = ["daemon/sys/", "cni/", "daemon/buildkitd/src/listen.rs"];
    let root = places::workspace();
    let lifted = concat!("allow(", "unsafe_code)");
    for path in integration::sources::rust(&root)? {
        let inside = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        if std::fs::read_to_string(&path)?.contains(lifted) {
            assert!(MAY.iter().any(|m| inside.starts_with(m)), "{inside} lifts the ban on unsafe code");
        }
    }
    Ok(())
}
