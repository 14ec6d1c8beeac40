//! Who may say which sources a build uses: rules that come with the request, and
//! a client that is asked.
//!
//! Every source is looked at once when a definition is planned, and whenever a
//! frontend asks what a source is. A source may be denied, or another put in its
//! place, which is looked at in turn.

mod engine;

use std::time::Duration;

use async_trait::async_trait;
use base::failure::Detail;
use base::gotext::quote;
use base::{Classify, Digest, Failure, Kind};
use futures_util::future::try_join_all;
use llb::graph::Change;
use ops::{Behalf, SourcePolicy, Worker};
use prost::Message as _;
use proto::moby::buildkit::v1::sourcepolicy::policysession as session_wire;
use proto::moby::buildkit::v1::sourcepolicy::{Policy as Wire, PolicyAction};
use proto::{gateway, pb};
use session_wire::check_policy_response::Result as Answer;

use crate::builder::step;
use crate::meta;
use crate::service::{meta_to_wire, resolve_request};
use engine::Policy;

/// How long the client that has a say may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions to the client about one source, and its questions back.
const MAX_QUESTIONS: usize = 10;

/// A source may not be used, or nobody can tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    #[error("{0}")]
    Invalid(String),
    #[error("source {0} denied by policy: source denied by policy")]
    ByRule(String),
    #[error("source {identifier} not allowed by policy: action {action}")]
    ByClient { identifier: String, action: String },
    #[error("too many mutations on a single source: too many operations")]
    Endless,
    #[error("too many policy requests")]
    TooManyQuestions,
}

impl Classify for Denied {
    fn kind(&self) -> Kind {
        // As in the reference, whose policies have no codes of their own.
        Kind::Unknown
    }
}

/// What has a say in one build.
#[derive(Default)]
pub(crate) struct Policies {
    own: Vec<Policy>,
    /// The session of the client that is asked; empty when none is.
    session: String,
}

impl Policies {
    /// Of a request.
    pub(crate) fn new(policy: Option<&Wire>, session: &str) -> Result<Self, Failure> {
        let own = policy.map(Policy::new).transpose()?.into_iter().collect();
        Ok(Self { own, session: session.to_owned() })
    }

    /// Looks at every source of `graph`. `more` policies have a say beside those
    /// of the build.
    pub(crate) async fn graph(
        &self,
        more: &[Wire],
        graph: llb::Graph,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<llb::Graph, Failure> {
        let more = &more.iter().map(Policy::new).collect::<Result<Vec<_>, _>>()?;
        let work = graph.vertices().iter().map(|vertex| async move {
            let pb::op::Op::Source(given) = &vertex.op else { return Ok(None) };
            let mut source = given.clone();
            let op = pb::Op::decode(&*vertex.bytes).map_err(|e| Failure::invalid(e.to_string()))?;
            Box::pin(self.apply(more, &mut source, op.platform, worker, behalf))
                .await
                .map_err(|e| e.context("error evaluating the source policy"))?;
            Ok::<_, Failure>((source != *given).then_some(source))
        });
        // All at once: a client that is asked may take its time.
        let mut changed = behalf.scope.run(try_join_all(work)).await?;
        if changed.iter().all(Option::is_none) {
            return Ok(graph);
        }
        let change = |at: usize, _: &llb::Vertex| Change {
            source: changed.get_mut(at).and_then(Option::take),
            ..Change::default()
        };
        Ok(graph.changed(change)?)
    }

    /// Looks at one source.
    pub(crate) async fn source(
        &self,
        more: &[Wire],
        source: &mut pb::SourceOp,
        platform: Option<pb::Platform>,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<(), Failure> {
        let more = more.iter().map(Policy::new).collect::<Result<Vec<_>, _>>()?;
        let applied = behalf.scope.run(Box::pin(self.apply(&more, source, platform, worker, behalf))).await;
        applied.map_err(|e| e.context("could not resolve image due to policy"))
    }

    async fn apply(
        &self,
        more: &[Policy],
        source: &mut pb::SourceOp,
        platform: Option<pb::Platform>,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<(), Failure> {
        let mut questions = MAX_QUESTIONS;
        loop {
            self.rules(more, source)?;
            if self.session.is_empty() {
                return Ok(());
            }
            match self.ask(source, platform.clone(), worker, behalf, &mut questions).await? {
                None => return Ok(()),
                Some(other) => *source = other,
            }
        }
    }

    fn rules(&self, more: &[Policy], source: &mut pb::SourceOp) -> Result<(), Denied> {
        source.identifier = ops::source::normalized(source);
        engine::apply(self.own.iter().chain(more), source).map(drop)
    }

    /// Asks the client, who may want to know more first. What it puts in place.
    async fn ask(
        &self,
        source: &pb::SourceOp,
        platform: Option<pb::Platform>,
        worker: &Worker,
        behalf: &Behalf,
        questions: &mut usize,
    ) -> Result<Option<pb::SourceOp>, Failure> {
        let caller = worker.sessions.get(&self.session, PATIENCE).await?;
        let known = gateway::ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
        let mut request =
            session_wire::CheckPolicyRequest { platform, source: Some(known), ..Default::default() };
        loop {
            *questions = questions.checked_sub(1).ok_or(Denied::TooManyQuestions)?;
            let answer = caller.check_policy(request.clone()).await?;
            let decision = match answer.result {
                Some(Answer::Request(wanted)) => {
                    request.source = Some(self.tell(source, wanted, worker, behalf).await?);
                    continue;
                }
                Some(Answer::Decision(decision)) => decision,
                None => return Err(Denied::Invalid("no decision in policy response".to_owned()).into()),
            };
            return match PolicyAction::try_from(decision.action) {
                Ok(PolicyAction::Allow) => Ok(None),
                Ok(PolicyAction::Convert) => match decision.update {
                    Some(update) => Ok(Some(update)),
                    None => Err(Denied::Invalid("convert action requires updated source".to_owned()).into()),
                },
                other => {
                    let action = other.map_or_else(|e| e.0.to_string(), |a| a.as_str_name().to_owned());
                    let identifier = quote(&source.identifier);
                    let failure = Failure::from(Denied::ByClient { identifier, action });
                    let messages: Vec<String> =
                        decision.deny_messages.into_iter().map(|m| m.message).collect();
                    Err(if messages.is_empty() { failure } else { failure.with(Detail::Denied(messages)) })
                }
            };
        }
    }

    /// What the client wants to know of the source it is asked about, and of no other.
    async fn tell(
        &self,
        source: &pb::SourceOp,
        wanted: gateway::ResolveSourceMetaRequest,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<gateway::ResolveSourceMetaResponse, Failure> {
        let mut request = resolve_request(wanted)?;
        if request.source.identifier != source.identifier {
            let (asked, own) = (quote(&request.source.identifier), quote(&source.identifier));
            let text = format!("policy requested different source identifier: {asked} != {own}");
            return Err(Denied::Invalid(text).into());
        }
        if request.source.attrs != source.attrs {
            return Err(Denied::Invalid("policy requested different source attrs".to_owned()).into());
        }
        self.rules(&[], &mut request.source)?;
        let sink = behalf.progress.sink().clone();
        let digest = Digest::of(base::id::fresh());
        let shown = Behalf { progress: sink.vertex(digest.clone()), ..behalf.clone() };
        let name = meta::step_name(&request);
        let told = step(&sink, digest, name, Box::pin(meta::resolve(worker, request, &shown))).await;
        let told = told.map_err(|e| e.context("error resolving source metadata from policy request"))?;
        Ok(meta_to_wire(told))
    }
}

#[async_trait]
impl SourcePolicy for Policies {
    async fn apply(
        &self,
        graph: llb::Graph,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<llb::Graph, Failure> {
        self.graph(&[], graph, worker, behalf).await
    }

    async fn check(
        &self,
        source: &mut pb::SourceOp,
        worker: &Worker,
        behalf: &Behalf,
    ) -> Result<(), Failure> {
        let checked = Box::pin(Self::apply(self, &[], source, None, worker, behalf));
        let checked = behalf.scope.run(checked).await;
        checked.map_err(|e| e.context("error evaluating the source policy"))
    }
}
