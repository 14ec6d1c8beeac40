//! What became of a frontend's results, as exporters, caches and documents want it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Failure;
use frontend::dockerui::Sbom;
use frontend::gateway::{
    Attestation, AttestationKind, FrontendResult, Gateway as _, RefId, Refs, SubjectKind,
};
use frontend::sbom::{self, Scanner, Target};
use futures_util::future::try_join_all;
use llb::build::State;
use ops::Output;

use crate::Bridge;
use crate::caches::Made;
use crate::plan::Plan;
use crate::provenance::Capture;

impl Bridge {
    /// The results of a frontend, built, for the exporters.
    ///
    /// # Errors
    /// Those of the build.
    pub(crate) async fn resolve(&self, result: &FrontendResult) -> Result<export::Source, Failure> {
        let mut source = export::Source { metadata: result.metadata.clone(), ..export::Source::default() };
        let attestations = async {
            let lists = result.attestations.iter().map(|(platform, list)| async move {
                let list = try_join_all(list.iter().map(|a| self.attestation(a))).await?;
                Ok::<_, Failure>((platform.clone(), list))
            });
            try_join_all(lists).await
        };
        let trees = async {
            match &result.refs {
                Refs::Single(id) => source.single = self.output(id.as_ref()).await?,
                Refs::ByPlatform(refs) => {
                    // All at once: platforms do not wait for each other.
                    let work = refs.iter().map(|(platform, id)| async move {
                        Ok::<_, Failure>((platform.clone(), self.output(id.as_ref()).await?))
                    });
                    source.refs = try_join_all(work).await?.into_iter().collect();
                }
            }
            Ok(())
        };
        let (attestations, ()) = futures_util::future::try_join(attestations, trees).await?;
        source.attestations = attestations.into_iter().collect();
        Ok(source)
    }

    /// Likewise, with how they were made.
    ///
    /// # Errors
    /// Those of the build.
    pub(crate) async fn made(&self, result: &FrontendResult) -> Result<Made, Failure> {
        let all: Vec<(Option<String>, &RefId)> = match &result.refs {
            Refs::Single(id) => id.iter().map(|id| (None, id)).collect(),
            Refs::ByPlatform(refs) => {
                refs.iter().filter_map(|(name, id)| Some((Some(name.clone()), id.as_ref()?))).collect()
            }
        };
        let mut made = Vec::with_capacity(all.len());
        for (name, id) in all {
            made.push((name, self.result(id).await?));
        }
        Ok(made)
    }

    async fn output(&self, id: Option<&RefId>) -> Result<Output, Failure> {
        match id {
            Some(id) => Ok(self.result(id).await?.result.clone()),
            None => Ok(None),
        }
    }

    /// Something a frontend said, with the files it says it in.
    async fn attestation(&self, said: &Attestation) -> Result<export::Attestation, Failure> {
        let tree = self.output(said.reference.as_ref()).await?;
        let tree = tree.ok_or_else(|| Failure::invalid("an attestation without files"))?;
        let subjects = said.subjects.iter().map(|subject| {
            let digests = subject.digests.iter().map(|text| {
                text.parse().map_err(|e| Failure::invalid(format!("subject {}: {text}: {e}", subject.name)))
            });
            Ok(export::Subject {
                kind: match subject.kind {
                    SubjectKind::This => export::SubjectKind::This,
                    SubjectKind::Raw => export::SubjectKind::Raw,
                },
                name: subject.name.clone(),
                digests: digests.collect::<Result<_, Failure>>()?,
            })
        });
        Ok(export::Attestation {
            kind: match said.kind {
                AttestationKind::InToto => export::AttestationKind::InToto,
                AttestationKind::Bundle => export::AttestationKind::Bundle,
            },
            metadata: said.metadata.clone(),
            predicate: export::Predicate::File(tree),
            path: said.path.clone(),
            predicate_type: said.predicate_type.clone(),
            subjects: subjects.collect::<Result<_, Failure>>()?,
        })
    }

    /// What each result was made from. They have to be built.
    ///
    /// # Errors
    /// When the metadata names no platforms, or an image's name is none.
    pub(crate) fn subjects(&self, result: &FrontendResult) -> Result<Subjects, Failure> {
        let platforms = export::platforms(&result.metadata)?;
        let all: Vec<RefId> = result.each_ref().cloned().collect();
        let capture_of = |id: &RefId| {
            let plan = self.planned(id).ok()?;
            Some(Capture::of(plan.solved()?))
        };
        let subject = |id: &RefId, platform: Option<&str>| -> Result<Option<Subject>, Failure> {
            let Some(owner) = self.asked().owner(id) else { return Ok(None) };
            let capture = owner.capture(id, &all, &platforms, platform, &capture_of)?;
            let Some(capture) = capture else { return Ok(None) };
            Ok(Some(Subject { capture, plan: self.planned(id)? }))
        };
        Ok(match &result.refs {
            Refs::Single(id) => Subjects {
                single: id.as_ref().map(|id| subject(id, None)).transpose()?.flatten(),
                ..Subjects::default()
            },
            Refs::ByPlatform(refs) => {
                let list = refs.iter().map(|(key, id)| {
                    let found = id.as_ref().map(|id| subject(id, Some(key))).transpose()?.flatten();
                    Ok((key.clone(), found))
                });
                Subjects { by_platform: Some(list.collect::<Result<_, Failure>>()?), ..Subjects::default() }
            }
        })
    }

    /// Lists of the contents of `result`, made by a scanner; none when there are
    /// some already.
    ///
    /// # Errors
    /// When there is no such scanner, or it fails.
    pub(crate) async fn scan(
        &self,
        result: &FrontendResult,
        wanted: &Sbom,
    ) -> Result<Vec<(String, export::Attestation)>, Failure> {
        if sbom::has(result) {
            return Ok(Vec::new());
        }
        let (this, opts) = (self.apart(), &self.options().opts);
        let platforms = export::platforms(&result.metadata)?;
        let mode = opts.get("image-resolve-mode").cloned().unwrap_or_else(|| "default".to_owned());
        let scanner = Scanner::find(&this, wanted, self.worker().platform(), mode).await?;
        let ignore_cache = opts.get("no-cache").is_some_and(String::is_empty);
        let work = platforms.iter().filter_map(|platform| {
            let id = match &result.refs {
                Refs::Single(id) => id.as_ref(),
                Refs::ByPlatform(refs) => refs.get(&platform.id).and_then(Option::as_ref),
            };
            id.map(|id| (&platform.id, id))
        });
        let work = work.map(|(platform, id)| {
            let (this, scanner) = (&this, &scanner);
            async move {
                let state = State::from_definition(&self.planned(id)?.definition)?;
                let target = Target { id: platform, state: &state, extras: &BTreeMap::new(), ignore_cache };
                let said = scanner.scan(this, target).await?;
                Ok((platform.clone(), self.attestation(&said).await?))
            }
        });
        try_join_all(work).await
    }
}

/// A result and what it was made from.
pub(crate) struct Subject {
    pub(crate) capture: Capture,
    pub(crate) plan: Arc<Plan>,
}

/// The results of a build that are not empty, each with what it was made from.
#[derive(Default)]
pub(crate) struct Subjects {
    pub(crate) single: Option<Subject>,
    pub(crate) by_platform: Option<BTreeMap<String, Option<Subject>>>,
}

impl Subjects {
    /// The one for `platform`; the only one is for all.
    pub(crate) fn find(&self, platform: &str) -> Option<&Subject> {
        let Some(map) = &self.by_platform else { return self.single.as_ref() };
        let only = || map.values().next().filter(|_| map.len() == 1);
        map.get(platform).or_else(only)?.as_ref()
    }

    /// Each, with its platform if there is one for each.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Option<&str>, &Subject)> {
        let map = self.by_platform.iter().flatten();
        let map = map.filter_map(|(key, subject)| Some((Some(key.as_str()), subject.as_ref()?)));
        self.single.iter().map(|subject| (None, subject)).chain(map)
    }
}
