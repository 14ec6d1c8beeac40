//! What a client gets to see.

use base::Failure;

use crate::world::{Act, Gate, House, Plan, leave};

#[tokio::test]
async fn every_vertex_is_seen_to_end() {
    let house = House::new();
    let plan = || {
        let mut plan = Plan::default();
        let a = plan.add("a", &[]);
        let b = plan.add("b", &[&a]);
        let c = plan.add("c", &[&b]);
        (plan.graph(), c)
    };
    let (job, ear) = house.heard("one");
    let (graph, top) = plan();
    job.build(graph, top).await.unwrap();
    leave(job).await;
    let run = |v| [format!("{v} started"), format!("{v} completed")];
    let mut expected: Vec<String> = ["a", "b", "c"].map(|v| format!("{v} planned")).to_vec();
    // Keying a source is work on it.
    expected.extend(["a", "a", "b", "c"].into_iter().flat_map(run));
    assert_eq!(ear.lines(), expected);

    let (job, ear) = house.heard("two");
    let (graph, top) = plan();
    job.build(graph, top).await.unwrap();
    leave(job).await;
    let mut expected: Vec<String> = ["a", "b", "c"].map(|v| format!("{v} planned")).to_vec();
    expected.extend(run("a"));
    expected.extend(["b completed cached", "c started cached", "c completed cached"].map(String::from));
    assert_eq!(ear.lines(), expected);
    house.close().await;
}

#[tokio::test]
async fn failures_are_shown_where_they_are() {
    let house = House::new();
    let mut plan = Plan::default();
    let a = plan.add("a", &[]);
    let b = plan.act("b", &[&a], Act::Fail("no such file"));
    let c = plan.add("c", &[&b]);
    let (job, ear) = house.heard("one");
    job.build(plan.graph(), c).await.err().unwrap();
    leave(job).await;
    let lines = ear.lines();
    assert!(lines.contains(&"b completed: no such file".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|l| l.starts_with("c s")), "{lines:?}");
    house.close().await;
}

#[tokio::test]
async fn what_is_under_way_at_the_end_was_cancelled() {
    let house = House::new();
    let gate = Gate::new();
    let mut plan = Plan::default();
    let a = plan.act("a", &[], Act::Wait(gate.clone()));
    let (job, ear) = house.heard("one");
    let graph = plan.graph();
    let scope = job.scope().clone();
    let (solved, ()) = tokio::join!(job.build(graph, a), async {
        gate.entered().await;
        scope.cancel(Failure::canceled("client gone"));
    });
    assert!(solved.is_err());
    leave(job).await;
    assert_eq!(ear.lines().last().unwrap(), "a completed: context canceled");
    house.close().await;
}

#[tokio::test]
async fn who_comes_late_hears_what_was_said() {
    let house = House::new();
    let gate = Gate::new();
    let plan = || {
        let mut plan = Plan::default();
        let a = plan.act("a", &[], Act::Wait(gate.clone()));
        (plan.graph(), a)
    };
    let ((g1, e1), (g2, e2)) = (plan(), plan());
    let one = house.job("one");
    let (two, ear) = house.heard("two");
    let late = async {
        gate.entered().await;
        let done = two.build(g2, e2);
        tokio::pin!(done);
        while ear.lines().len() < 3 {
            tokio::select! {
                _ = &mut done => panic!("cannot be done"),
                () = tokio::task::yield_now() => {}
            }
        }
        gate.open();
        done.await
    };
    let (first, second) = tokio::join!(one.build(g1, e1), late);
    assert!(first.is_ok() && second.is_ok());
    leave(one).await;
    leave(two).await;
    assert_eq!(ear.lines(), ["a planned", "a started", "a says working", "a completed"]);
    house.close().await;
}
