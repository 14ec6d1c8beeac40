use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(name)
}

fn link(from: ItemId) -> Link {
    Link { from, selector: String::new() }
}

fn stored(chains: &mut Chains, created: i64, layers: &[&str]) -> Vec<Stored> {
    let layer = |name: &&str| Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", digest(name), 1);
    let layers = layers.iter().map(layer).map(|d| chains.blob(d)).collect();
    vec![Stored { created: Timestamp::from_secs(created), layers }]
}

fn example() -> Chains {
    let mut chains = Chains::default();
    let foo = chains.add(&digest("foo"), &[], Vec::new());
    let bar = chains.add(&digest("bar"), &[], Vec::new());
    let results = stored(&mut chains, 1, &["a", "b"]);
    let baz = chains.add(&digest("baz"), &[vec![link(foo)], vec![link(bar)]], results);
    let results = stored(&mut chains, 2, &["a", "b", "c"]);
    let part = Link { from: baz, selector: "sel".to_owned() };
    chains.add(&digest("top"), &[vec![part]], results);
    chains
}

fn blobs(chains: &Chains) -> HashMap<Digest, Descriptor> {
    chains.blobs().iter().map(|d| (d.digest.clone(), d.clone())).collect()
}

#[test]
fn what_is_written_is_read_and_written_the_same() {
    let chains = example();
    let config = chains.config(&HashSet::new());
    assert_eq!((config.layers.len(), config.records.len()), (3, 4));
    let json = config.json().unwrap();
    let mut again = Chains::default();
    again.read(&Config::parse(&json).unwrap(), &blobs(&chains)).unwrap();
    assert_eq!(again.config(&HashSet::new()).json().unwrap(), json);
}

#[test]
fn reading_twice_adds_nothing() {
    let mut chains = example();
    let config = chains.config(&HashSet::new());
    let known = blobs(&chains);
    chains.read(&config, &known).unwrap();
    assert_eq!(chains.config(&HashSet::new()), config);
}

#[test]
fn two_ways_to_one_record_are_joined() {
    let mut chains = Chains::default();
    let a = chains.add(&digest("a"), &[], Vec::new());
    let b = chains.add(&digest("b"), &[], Vec::new());
    let from_a = chains.add(&digest("op"), &[vec![link(a)]], Vec::new());
    let from_b = chains.add(&digest("op"), &[vec![link(b)]], Vec::new());
    let results = stored(&mut chains, 1, &["x"]);
    chains.add(&digest("next"), &[vec![link(from_b)]], results);
    assert_ne!(from_a, from_b);
    let both = chains.add(&digest("op"), &[vec![link(a), link(b)]], Vec::new());
    let config = chains.config(&HashSet::new());
    assert_eq!(config.records.len(), 4, "{config:?}");
    let op = config.records.iter().find(|r| r.digest == Some(digest("op"))).unwrap();
    assert_eq!(op.inputs[0].len(), 2);
    assert!(both == from_a || both == from_b);
}

#[test]
fn nothing_follows_from_itself() {
    let mut chains = Chains::default();
    let a = chains.add(&digest("a"), &[], Vec::new());
    let b = chains.add(&digest("b"), &[vec![link(a)]], Vec::new());
    let c = chains.add(&digest("c"), &[vec![link(b)]], Vec::new());
    // The same as b, said to follow from c too.
    assert_eq!(chains.add(&digest("b"), &[vec![link(a), link(c)]], Vec::new()), b);
    assert_eq!(chains.config(&HashSet::new()).order().unwrap().len(), 3);
}

#[test]
fn what_cannot_be_had_is_left_out() {
    let chains = example();
    let config = chains.config(&HashSet::new());
    let mut some = blobs(&chains);
    some.remove(&digest("c"));
    let mut again = Chains::default();
    again.read(&config, &some).unwrap();
    let config = again.config(&HashSet::new());
    assert_eq!((config.layers.len(), config.records.len()), (2, 4));
}

#[test]
fn hostile_configs_are_refused() {
    let known = blobs(&example());
    let (d, a) = (digest("d"), digest("a"));
    for (json, what) in [
        (
            format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":0}}]]}}]}}"#),
            "invalid looping record",
        ),
        (
            format!(
                r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":1}}]]}},{{"digest":"{d}","inputs":[[{{"link":0}}]]}}]}}"#
            ),
            "invalid looping record",
        ),
        (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":7}}]]}}]}}"#), "invalid record ID: 7"),
        (
            format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":-1}}]]}}]}}"#),
            "invalid record ID: -1",
        ),
        (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[]]}}]}}"#), "invalid empty input for record 0"),
        (format!(r#"{{"records":[{{"digest":"{d}","layers":[{{"layer":3}}]}}]}}"#), "invalid layer index 3"),
        (
            format!(
                r#"{{"layers":[{{"blob":"{a}"}}],"records":[{{"digest":"{d}","layers":[{{"layer":0}}]}}]}}"#
            ),
            "invalid looping layer",
        ),
        (
            format!(r#"{{"records":[{{"digest":"{d}","chains":[{{"layers":[9]}}]}}]}}"#),
            "invalid layer index 9",
        ),
        (r#"{"records":[{}]}"#.to_owned(), "record without digest"),
        (r#"{"records":[{"digest":"random:x"}]}"#.to_owned(), "invalid digest"),
        ("[]".to_owned(), "invalid"),
    ] {
        let read = Config::parse(json.as_bytes()).and_then(|config| Chains::default().read(&config, &known));
        let error = read.expect_err(&json).to_string();
        assert!(error.contains(what), "{json}: {error}");
    }
}

#[test]
fn the_document_is_that_of_others() {
    // As written by others: the first layer's parent and empty parts are not said.
    let (a, b, d, e) = (digest("a"), digest("b"), digest("d"), digest("e"));
    let json = format!(
        "{{\"layers\":[{{\"blob\":\"{a}\",\"parent\":-1}},{{\"blob\":\"{b}\"}}],\"records\":[{{\"digest\":\"{d}\"}},\
         {{\"layers\":[{{\"layer\":1,\"createdAt\":\"2024-01-02T03:04:05.6Z\"}}],\"digest\":\"{e}\",\
         \"inputs\":[[{{\"selector\":\"{d}\",\"link\":0}}]]}}]}}"
    );
    let config = Config::parse(json.as_bytes()).unwrap();
    assert_eq!(config.layers[1].parent, 0);
    assert_eq!(String::from_utf8(config.json().unwrap()).unwrap(), json);
}

/// A cache written by moby/buildkit v0.32.2 of a Dockerfile with two stages.
const GOLDEN: &str = include_str!("golden.json");

#[test]
fn what_others_wrote_is_written_the_same() {
    let config = Config::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(config.json().unwrap()).unwrap(), GOLDEN);
    let descriptor = |layer: &config::Layer| Descriptor::new("", layer.blob.clone(), 1);
    let known = config.layers.iter().map(|layer| (layer.blob.clone(), descriptor(layer))).collect();
    let mut chains = Chains::default();
    chains.read(&config, &known).unwrap();
    assert_eq!(String::from_utf8(chains.config(&HashSet::new()).json().unwrap()).unwrap(), GOLDEN);
}
