//! What is run, shared, cancelled and reported.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{Detail, Failure, Kind};
use parking_lot::Mutex;

use crate::world::{Act, Gate, House, Plan, leave};

#[tokio::test]
async fn a_known_result_is_not_made_again() {
    let house = House::new();
    for (round, expected) in [(0, 3), (1, 0), (2, 3)] {
        let mut plan = Plan::default();
        let a = plan.add("a", &[]);
        let b = plan.add("b", &[&a]);
        let c = plan.add("c", &[&a, &b]);
        if round == 2 {
            plan = plan.ignoring_cache();
        }
        let (runs, job) = (plan.runs.clone(), house.job("job"));
        let solved = job.build(plan.graph(), c).await.unwrap();
        assert_eq!(&*solved.result, "c<<(a(),b<(a()))");
        assert_eq!(runs.load(Ordering::SeqCst), expected);
        assert_eq!(solved.vertices.len(), 3);
        assert_eq!(solved.keys.nodes.len(), 3);
        leave(job).await;
    }
    house.close().await;
}

#[tokio::test]
async fn a_lost_result_is_made_again() {
    let house = House::new();
    for _ in 0..2 {
        let mut plan = Plan::default();
        let a = plan.add("a", &[]);
        let b = plan.add("b", &[&a]);
        let (runs, job) = (plan.runs.clone(), house.job("job"));
        job.build(plan.graph(), b).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        leave(job).await;
        house.results.lose_all();
    }
    house.close().await;
}

#[tokio::test]
async fn identifiers_are_used_once_at_a_time() {
    let house = House::new();
    let job = house.job("x");
    let failure = house.solver.job("x", base::progress::Sink::none(), Arc::new(())).err().unwrap();
    assert_eq!(failure.to_string(), "job ID x exists");
    leave(job).await;
    leave(house.job("x")).await;
    house.close().await;
}

#[tokio::test]
async fn shared_work_ends_with_the_last_who_wants_it() {
    let house = House::new();
    let gate = Gate::new();
    let plan = || {
        let mut plan = Plan::default();
        let a = plan.act("a", &[], Act::Wait(gate.clone()));
        (plan.graph(), a)
    };
    let (one, two) = (house.job("one"), house.job("two"));
    let ((g1, e1), (g2, e2)) = (plan(), plan());
    let mut first = Box::pin(one.build(g1, e1));
    let mut second = Box::pin(two.build(g2, e2));
    tokio::select! {
        _ = &mut first => panic!("cannot be done"),
        _ = &mut second => panic!("cannot be done"),
        () = gate.entered() => {}
    }
    drop(first);
    one.leave(Failure::canceled("bored")).await;
    assert!(gate.cause.lock().is_none());
    drop(second);
    two.leave(Failure::canceled("client gone")).await;
    gate.entered().await;
    assert!(gate.cause.lock().as_ref().unwrap().is_canceled());
    house.close().await;
}

#[tokio::test]
async fn the_cause_reaches_operation_and_build() {
    let house = House::new();
    let gate = Gate::new();
    let mut plan = Plan::default();
    let a = plan.act("a", &[], Act::Wait(gate.clone()));
    let (job, graph) = (house.job("one"), plan.graph());
    let scope = job.scope().clone();
    let (solved, ()) = tokio::join!(job.build(graph, a), async {
        gate.entered().await;
        scope.cancel(Failure::canceled("client gone"));
    });
    assert_eq!(solved.err().unwrap().to_string(), "client gone");
    gate.entered().await;
    assert_eq!(gate.cause.lock().as_ref().unwrap().to_string(), "client gone");
    leave(job).await;
    house.close().await;
}

#[tokio::test]
async fn equal_vertices_run_once() {
    let house = House::new();
    let gate = Gate::new();
    let plan = |source: &str, gate: &Arc<Gate>| {
        let mut plan = Plan::default();
        // Different sources of the same contents.
        let a = plan.full(source, &format!("{source}:same"), &[], Act::Work, false);
        let b = plan.full("b", "b", &[&a], Act::Wait(gate.clone()), true);
        (plan.runs.clone(), plan.graph(), b)
    };
    let ((r1, g1, e1), (r2, g2, e2)) = (plan("x", &gate), plan("y", &gate));
    let one = house.job("one");
    let (two, ear) = house.heard("two");
    let build = async {
        gate.entered().await;
        let done = two.build(g2, e2);
        tokio::pin!(done);
        // It says what the first one said before.
        while !ear.lines().iter().any(|l| l == "b says working") {
            tokio::select! {
                _ = &mut done => panic!("cannot be done"),
                () = tokio::task::yield_now() => {}
            }
        }
        gate.open();
        done.await
    };
    let (first, second) = tokio::join!(one.build(g1, e1), build);
    // Done by one of them, and good for both.
    assert_eq!(first.unwrap().result, second.unwrap().result);
    assert_eq!(r1.load(Ordering::SeqCst) + r2.load(Ordering::SeqCst), 3);
    assert_eq!(*gate.jobs.lock(), ["one", "two"]);
    leave(one).await;
    leave(two).await;
    house.close().await;
}

#[tokio::test]
async fn errors_name_the_vertex_and_are_forgotten() {
    let house = House::new();
    let cases = [
        (Act::Fail("no"), "no"),
        (Act::FailKey("no"), "failed to load cache key: no"),
        (Act::FailContent("no"), "failed to compute cache key: no"),
        (Act::Panic, "the operation panicked: oh dear"),
    ];
    for (act, text) in cases {
        let mut plan = Plan::default();
        let a = plan.add("a", &[]);
        let b = plan.full("b", "b", &[&a], act, true);
        let c = plan.add("c", &[&b]);
        let (graph, job) = (plan.graph(), house.job("job"));
        for _ in 0..2 {
            let failure = job.build(graph.clone(), c.clone()).await.err().unwrap();
            assert_eq!(failure.to_string(), text);
            assert!(failure.details().contains(&Detail::Vertex(b.vertex.clone())));
        }
        leave(job).await;
    }
    house.close().await;
}

#[tokio::test]
async fn an_operation_may_build() {
    let house = House::new();
    let mut inner = Plan::default();
    let a = inner.add("a", &[]);
    let x = inner.add("x", &[&a]);
    let what = Arc::new(Mutex::new(Some((inner.graph(), x))));
    let mut plan = Plan::default();
    let a = plan.add("a", &[]);
    let b = plan.act("b", &[&a], Act::Build(what));
    let (job, ear) = house.heard("job");
    let solved = job.build(plan.graph(), b).await.unwrap();
    assert_eq!(&*solved.result, "b<(a())[x<(a())]");
    assert!(ear.lines().contains(&"x completed".to_owned()), "{:?}", ear.lines());
    leave(job).await;
    house.close().await;
}

#[tokio::test]
async fn a_build_that_waits_for_itself_fails() {
    let house = House::new();
    let what = Arc::new(Mutex::new(None));
    let mut plan = Plan::default();
    let a = plan.add("a", &[]);
    let b = plan.act("b", &[&a], Act::Build(what.clone()));
    let c = plan.add("c", &[&b]);
    let graph = plan.graph();
    *what.lock() = Some((graph.clone(), c.clone()));
    let job = house.job("job");
    let failure = job.build(graph, c).await.err().unwrap();
    assert_eq!(failure.kind(), Kind::InvalidArgument);
    assert!(failure.to_string().contains("waits for the build that builds it"), "{failure}");
    what.lock().take();
    leave(job).await;
    house.close().await;
}

#[tokio::test]
async fn too_few_results_are_an_error() {
    let house = House::new();
    let mut plan = Plan::default();
    let mut a = plan.add("a", &[]);
    a.output = 2;
    let job = house.job("job");
    let failure = job.build(plan.graph(), a).await.err().unwrap();
    assert_eq!(failure.to_string(), "invalid response from exec need 2 index but 2 results received");
    leave(job).await;
    house.close().await;
}

#[tokio::test]
async fn bad_graphs_are_refused() {
    let mut plan = Plan::default();
    let nowhere = solver::Edge::new(base::Digest::of("nowhere"), 0);
    plan.add("a", &[&nowhere]);
    let failure = plan.check().err().unwrap();
    assert!(failure.to_string().contains("it is an input of"), "{failure}");
    let house = House::new();
    let (mut plan, job) = (Plan::default(), house.job("job"));
    plan.add("a", &[]);
    let failure = job.build(plan.graph(), nowhere).await.err().unwrap();
    assert!(failure.to_string().ends_with("not found"), "{failure}");
    leave(job).await;
    house.close().await;
}

#[tokio::test]
async fn depth_is_no_danger() {
    let house = House::new();
    for _ in 0..2 {
        let mut plan = Plan::default();
        let mut top = plan.add("a", &[]);
        for _ in 0..3_000 {
            top = plan.add("s", &[&top]);
        }
        let job = house.job("job");
        assert!(job.build(plan.graph(), top).await.is_ok());
        leave(job).await;
    }
    house.close().await;
}
