//! What must be true of the core after every event.

use super::Core;
use super::act::needs_run;
use super::types::{At, Content, Run, Task, Want};

impl Core {
    /// Panics when something is not as it must be.
    pub(super) fn check(&self) {
        assert!(self.dirty.is_empty(), "unfinished business");
        for (id, node) in &self.nodes {
            let wanted = !node.jobs.is_empty() || !node.joined.is_empty() || self.touched.contains(id);
            assert!(wanted, "node {id} is wanted by nobody");
            for output in node.edges.keys() {
                self.check_waiting(At { node: *id, output: *output });
            }
            if let Run::Joined(host) = node.run {
                let host = self.nodes.get(&host).expect("host");
                assert!(host.joined.contains(id));
                assert!(matches!(host.run, Run::Underway(work) if !work.is_dying()), "waits for nothing");
            }
            for joined in &node.joined {
                assert!(matches!(self.nodes[joined].run, Run::Joined(host) if host == *id));
            }
        }
        if self.probing.is_empty() {
            assert!(self.touched.is_empty());
            self.check_interest();
        }
        for (build, (job, at)) in &self.builds {
            assert!(self.jobs[job].builds.contains(build));
            assert!(self.edge(*at).expect("edge").builds.contains(build));
        }
        for result in self.results.values() {
            assert!(*result > 0);
        }
    }

    /// No waiter without a live task.
    fn check_waiting(&self, at: At) {
        let edge = self.edge(at).expect("edge");
        let node = &self.nodes[&at.node];
        for consumer in edge.consumers.keys() {
            assert!(self.edge(*consumer).is_some_and(|c| c.want() > Want::Nothing), "wanted by the unwanted");
        }
        let satisfied = match edge.want() {
            Want::Nothing => true,
            Want::Fast => edge.level >= super::types::Level::Fast,
            Want::Slow => edge.level >= super::types::Level::Slow,
            Want::Result => edge.result.is_some(),
        };
        if satisfied {
            return;
        }
        let probing = self.probing.values().any(|asking| *asking == at);
        let works = edge.load.is_some() || edge.save.is_some() || (edge.needs.map && node.map_work.is_some());
        let content = node.content.iter().enumerate();
        let content = content
            .filter(|(i, _)| edge.needs.content.contains(i))
            .any(|(_, c)| matches!(c, Content::Underway(_)));
        let runs = edge.needs.run && !matches!(node.run, Run::Idle);
        let below = node.inputs.iter().any(|input| {
            self.edge(*input).is_some_and(|input| input.consumers.contains_key(&at) && input.result.is_none())
        });
        let later = !self.probing.is_empty() && self.touched.contains(&at.node);
        assert!(probing || works || content || runs || below || later, "{at:?} waits for nothing: {edge:?}");
    }

    /// No task without interest.
    fn check_interest(&self) {
        for (work, task) in &self.works {
            let interest = match task {
                Task::Map(id) => {
                    let node = &self.nodes[id];
                    let work = node.map_work.expect("work");
                    work.is_dying() || node.edges.values().any(|e| e.needs.map)
                }
                Task::Content(id, input) => {
                    let node = &self.nodes[id];
                    let Content::Underway(work) = &node.content[*input] else { panic!("no work") };
                    work.is_dying() || node.edges.values().any(|e| e.needs.content.contains(input))
                }
                Task::Run(id) => {
                    let node = &self.nodes[id];
                    let Run::Underway(work) = &node.run else { panic!("no work") };
                    work.is_dying() || needs_run(node) || !node.joined.is_empty()
                }
                Task::Load(at) => {
                    let edge = self.edge(*at).expect("edge");
                    let (work, _) = edge.load.as_ref().expect("work");
                    work.is_dying() || edge.want() == Want::Result
                }
                Task::Save(_) | Task::Orphan => true,
            };
            assert!(interest, "work {work} ({task:?}) is for nobody");
        }
    }
}
