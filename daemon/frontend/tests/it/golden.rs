//! What the reference answers, for many Dockerfiles.

use std::sync::Arc;

use base::failure::Detail;
use frontend::gateway::Refs;

use crate::gateway::{Asked, Cases, Fake};

const CASES: &str = include_str!("../data/cases.json");
const GOLDEN: &str = include_str!("../data/golden.json");

async fn run(fake: Fake) -> Asked {
    let fake = Arc::new(fake);
    let result = frontend::build(fake.clone()).await;
    let mut asked = fake.asked.lock().unwrap().clone();
    match result {
        Err(error) => {
            asked.error = error.to_string();
            for detail in error.details() {
                if let Detail::Source(source) = detail {
                    let lines: Vec<String> = source.ranges.iter().map(|r| r.start.line.to_string()).collect();
                    asked.places.push(format!("{}:{}", source.filename, lines.join(",")));
                }
            }
        }
        Ok(result) => {
            let text = |b: &Vec<u8>| String::from_utf8_lossy(b).into_owned();
            asked.result = result.metadata.iter().map(|(k, v)| (k.clone(), text(v))).collect();
            asked.refs = match &result.refs {
                Refs::Single(Some(_)) => vec!["single".to_owned()],
                Refs::Single(None) => Vec::new(),
                Refs::ByPlatform(refs) => refs.keys().cloned().collect(),
            };
            for (id, attestations) in &result.attestations {
                for a in attestations {
                    let reason = text(&a.metadata["reason"]);
                    asked.refs.push(format!("attestation {id} {} {reason}", a.predicate_type));
                }
            }
        }
    }
    asked.resolves.sort();
    asked.warnings.sort();
    asked
}

/// A build may be spawned.
#[test]
fn builds_can_move_between_threads() {
    fn can_move(_: impl Send) {}
    let images = Arc::default();
    let Cases { cases, .. } = serde_json::from_str(CASES).unwrap();
    can_move(frontend::build(Arc::new(Fake::new(cases.into_iter().next().unwrap(), images))));
}

/// Values that double with every line must not fill memory.
#[tokio::test]
async fn bounds_what_variables_become() {
    let Cases { cases, images } = serde_json::from_str(CASES).unwrap();
    let mut case = cases.into_iter().next().unwrap();
    let mut text = String::from("FROM scratch\nENV A=0123456789abcdef\n");
    for _ in 0..64 {
        text.push_str("ENV A=$A$A\n");
    }
    case.files.get_mut("local://dockerfile").unwrap().insert("Dockerfile".into(), text);
    let error = run(Fake::new(case, Arc::new(images))).await.error;
    assert!(error.contains("longer than") || error.contains("expand to more than"), "{error}");
}

#[tokio::test]
async fn answers_like_the_reference() {
    let Cases { images, cases } = serde_json::from_str(CASES).unwrap();
    let images = Arc::new(images);
    let mut golden: Vec<Asked> = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(cases.len(), golden.len());
    let mut wrong = Vec::new();
    for (case, want) in cases.into_iter().zip(&mut golden) {
        let ignore_caps = case.ignore_caps;
        let mut got = run(Fake::new(case, images.clone())).await;
        if ignore_caps {
            without_caps(&mut got);
            without_caps(want);
        }
        got.solves.sort();
        want.solves.sort();
        if got != *want {
            wrong.push(difference(&got, want));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn without_caps(asked: &mut Asked) {
    for text in asked.solves.iter_mut().flat_map(|s| &mut s.ops) {
        let end = text.find(" caps=").unwrap_or(text.len());
        text.truncate(end);
    }
}

fn difference(got: &Asked, want: &Asked) -> String {
    let mut text = format!("== {}\n", want.name);
    let lines = |asked: &Asked| {
        let json = serde_json::to_string_pretty(asked).unwrap();
        json.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (got, want) = (lines(got), lines(want));
    for line in want.iter().filter(|l| !got.contains(l)) {
        text.push_str(&format!("  want {}\n", line.trim()));
    }
    for line in got.iter().filter(|l| !want.contains(l)) {
        text.push_str(&format!("   got {}\n", line.trim()));
    }
    text
}
