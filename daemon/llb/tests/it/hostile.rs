//! Definitions nobody should send.

use base::Digest;
use llb::build::{Defaults, FileAction, Options, Run, State};
use llb::{Error, Graph, graph};
use prost::Message;
use proto::pb;
use proto::pb::op::Op;

fn input(bytes: &[u8], index: i64) -> pb::Input {
    pb::Input { digest: Digest::of(bytes).as_str().to_owned(), index }
}

fn op(inputs: Vec<pb::Input>, op: Option<Op>) -> Vec<u8> {
    llb::encode(pb::Op { inputs, op, ..pb::Op::default() })
}

fn source(id: &str) -> Vec<u8> {
    op(Vec::new(), Some(Op::Source(pb::SourceOp { identifier: id.to_owned(), ..pb::SourceOp::default() })))
}

fn definition(mut def: Vec<Vec<u8>>) -> pb::Definition {
    let last = def.last().map(|l| vec![input(l, 0)]).unwrap_or_default();
    def.push(op(last, None));
    pb::Definition { def, ..pb::Definition::default() }
}

fn fails(def: Vec<Vec<u8>>) -> String {
    Graph::load(&definition(def)).unwrap_err().to_string()
}

fn exec(change: impl FnOnce(&mut pb::ExecOp)) -> Vec<Vec<u8>> {
    let root = pb::Mount { dest: "/".into(), ..pb::Mount::default() };
    let meta = pb::Meta { args: vec!["x".into()], ..pb::Meta::default() };
    let mut exec = pb::ExecOp { meta: Some(meta), mounts: vec![root], ..pb::ExecOp::default() };
    change(&mut exec);
    let image = source("docker-image://a");
    vec![image.clone(), op(vec![input(&image, 0)], Some(Op::Exec(exec)))]
}

fn file(actions: Vec<(i64, i64, i64)>) -> Vec<Vec<u8>> {
    let action = |(input, secondary_input, output)| pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(pb::file_action::Action::Copy(pb::FileActionCopy::default())),
    };
    let file = pb::FileOp { actions: actions.into_iter().map(action).collect() };
    let image = source("docker-image://a");
    vec![image.clone(), op(vec![input(&image, 0)], Some(Op::File(file)))]
}

#[test]
fn refuses_definitions_that_are_none() {
    let empty = pb::Definition::default();
    assert_eq!(Graph::load(&empty).unwrap_err(), Error::Empty);
    let one = pb::Definition { def: vec![source("a")], ..pb::Definition::default() };
    assert_eq!(Graph::load(&one).unwrap_err().to_string(), "invalid LLB with 1 vertexes");
    let no_result = pb::Definition { def: vec![source("a"), source("b")], ..pb::Definition::default() };
    assert_eq!(Graph::load(&no_result).unwrap_err(), Error::NoResult);
    let garbage = pb::Definition { def: vec![vec![0xff], source("b")], ..pb::Definition::default() };
    assert!(matches!(Graph::load(&garbage).unwrap_err(), Error::Decode(_)));
    let unknown = op(Vec::new(), None);
    assert!(matches!(Graph::load(&definition(vec![unknown])).unwrap_err(), Error::UnknownOp(_)));
}

#[test]
fn refuses_bad_inputs() {
    let image = source("a");
    let merge = |inputs: Vec<pb::Input>, indices: &[i64]| {
        let inputs_of = indices.iter().map(|&input| pb::MergeInput { input }).collect();
        op(inputs, Some(Op::Merge(pb::MergeOp { inputs: inputs_of })))
    };
    let missing = merge(vec![input(b"nowhere", 0)], &[0]);
    assert!(fails(vec![missing]).starts_with("invalid missing input digest sha256:"));
    let negative = merge(vec![input(&image, -1)], &[0]);
    assert_eq!(fails(vec![image.clone(), negative]), "invalid input 0 output index -1");
    let beyond = merge(vec![input(&image, 1)], &[0]);
    assert!(fails(vec![image.clone(), beyond]).contains("has 1 outputs, not output 1"));
    let index = merge(vec![input(&image, 0)], &[7]);
    assert_eq!(fails(vec![image.clone(), index]), "invalid merge input index 7");
    let count = merge(vec![input(&image, 0)], &[0, 0]);
    assert_eq!(fails(vec![image, count]), "invalid merge op of 2 with 1 inputs");
}

#[test]
fn refuses_bad_processes() {
    assert!(Graph::load(&definition(exec(|_| {}))).is_ok());
    for (change, want) in [
        (
            Box::new(|e: &mut pb::ExecOp| e.meta = None) as Box<dyn FnOnce(&mut pb::ExecOp)>,
            "invalid exec op with no meta",
        ),
        (Box::new(|e| e.meta = Some(pb::Meta::default())), "invalid exec op with no args"),
        (Box::new(|e| e.mounts.clear()), "invalid exec op with no mounts"),
        (Box::new(|e| e.mounts[0].dest = "/x".into()), "invalid exec op with no rootfs"),
        (Box::new(|e| e.security = 7), "invalid security mode 7"),
        (Box::new(|e| e.network = 9), "invalid network mode 9"),
        (Box::new(|e| e.mounts[0].mount_type = 42), "invalid mount type 42 of mount \"/\""),
        (Box::new(|e| e.mounts[0].input = 5), "invalid input index 5 of mount \"/\", 1 provided"),
        (Box::new(|e| e.mounts[0].output = -2), "invalid output index -2 of mount \"/\""),
    ] {
        assert_eq!(fails(exec(change)), want);
    }
}

#[test]
fn refuses_bad_file_actions() {
    assert!(Graph::load(&definition(file(vec![(0, -1, -1), (1, 0, 0)]))).is_ok());
    for (actions, want) in [
        (vec![], "invalid file op with no actions"),
        (vec![(9, -1, 0)], "invalid input index 9, 2 provided"),
        (vec![(0, -7, 0)], "invalid secondary input index -7, 2 provided"),
        (vec![(0, -1, -1)], "no outputs specified"),
        (vec![(0, -1, 1)], "missing output index 0"),
        (vec![(0, -1, 0), (0, -1, 0)], "duplicate output 0"),
        (vec![(2, -1, 0), (1, -1, -1)], "loop from index 1"),
        (vec![(1, -1, 0)], "loop from index 1"),
    ] {
        assert_eq!(fails(file(actions)), want);
    }
}

#[test]
fn refuses_what_it_cannot_do() {
    let image = source("a");
    let mut definition = definition(vec![image.clone()]);
    let mut meta = pb::OpMetadata::default();
    meta.caps.insert("brand.new".into(), true);
    definition.metadata.insert(Digest::of(&image).as_str().to_owned(), meta);
    assert_eq!(Graph::load(&definition).unwrap_err().to_string(), "unknown API capability brand.new");
}

#[test]
fn survives_depth_and_width() {
    // Deep enough to overflow any stack that recursed.
    let mut state = State::source("docker-image://a", Default::default(), Options::new());
    for at in 0..20_000 {
        let mkdir =
            FileAction::Mkdir { path: format!("/{at}"), mode: 0, parents: false, owner: None, created: None };
        state = state.file(vec![mkdir], Options::new());
    }
    let definition = state.marshal(&Defaults::default()).unwrap();
    let graph = Graph::load(&definition).unwrap();
    assert_eq!(graph.vertices().len(), 20_001);
    drop(State::from_definition(&definition).unwrap());

    // Names of merges would double with every step.
    let mut state = State::source("docker-image://a", Default::default(), Options::new());
    for _ in 0..64 {
        let run = Run { args: Some(vec!["x".into()]), ..Run::default() };
        state = State::merge(&[state.clone(), state.clone(), state.run(run).root().clone()], Options::new());
    }
    let graph = Graph::load(&state.marshal(&Defaults::default()).unwrap()).unwrap();
    assert!(graph.vertices().iter().all(|v| v.name().len() < 20_000));
}

#[test]
fn changes_travel_up_and_keep_what_is_unknown() {
    let image = source("docker-image://a");
    let mut exec = exec(|_| {});
    // A field of the future.
    exec[1].extend([0xfa, 0x3e, 0x01, b'!']);
    let definition = definition(exec);
    let graph = Graph::load(&definition).unwrap();
    let unchanged = graph.changed(|_, _| graph::Change::default()).unwrap();
    assert_eq!(unchanged.vertices()[1].digest, graph.vertices()[1].digest);

    let other = pb::SourceOp { identifier: "docker-image://b".into(), ..pb::SourceOp::default() };
    let changed = graph
        .changed(|_, vertex| graph::Change {
            source: (vertex.digest == Digest::of(&image)).then(|| other.clone()),
            salt: None,
        })
        .unwrap();
    let [first, second] = changed.vertices() else { panic!("two vertices") };
    assert_eq!(
        (first.digest.clone(), first.name()),
        (Digest::of(source("docker-image://b")), "docker-image://b")
    );
    assert_eq!(second.digest, Digest::of(&second.bytes));
    assert_ne!(second.digest, graph.vertices()[1].digest);
    assert_eq!(second.received, graph.vertices()[1].digest);
    assert!(second.bytes.ends_with(&[0xfa, 0x3e, 0x01, b'!']));
    let wire = pb::Op::decode(&*second.bytes).unwrap();
    assert_eq!(wire.inputs[0].digest, first.digest.as_str());

    let salted = graph.changed(|_, _| graph::Change { source: None, salt: Some(b"\0x") }).unwrap();
    assert_ne!(salted.vertices()[0].digest, graph.vertices()[0].digest);
    assert_eq!(salted.vertices()[0].bytes, graph.vertices()[0].bytes);
}
