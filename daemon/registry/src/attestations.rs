//! What goes with an image: attestations in its index, and signatures of those.
//!
//! Who wants to verify an image needs a chain of documents: the index names the
//! attestations of each image, and the registry knows which signatures refer to
//! them. Nothing is verified here but digests.

use std::collections::BTreeSet;

use base::descriptor::media;
use base::{Descriptor, Digest, Platform};
use bytes::Bytes;
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};

use crate::error::{Problem, Result};
use crate::host::Host;
use crate::image::{Document, Index};
use crate::wire::{self, Call, shown};
use crate::{MAX_MANIFEST, Manifest, Repository, select};

/// The attestations' manifest says in this annotation which image it is about.
const REFERS_TO: &str = "vnd.docker.reference.digest";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION: &str = "attestation-manifest";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const COSIGN: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PROVENANCE: [&str; 2] = ["https://slsa.dev/provenance/v0.2", "https://slsa.dev/provenance/v1"];
/// In the index and the entries of Docker's hardened images, whose attestations
/// are not in the index.
const HARDENED_TITLE: &str = "org.opencontainers.image.title";
const HARDENED_BUILD: &str = "com.docker.dhi.build.id";
/// So many bytes are brought in all.
const MAX_CHAIN: u64 = 64 << 20;

/// The documents from an index to the attestations of one image.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The image's manifest, which is not among the documents.
    pub image: Descriptor,
    /// The manifest of its attestations.
    pub attestations: Option<Descriptor>,
    /// The manifest of their signature.
    pub signature: Option<Descriptor>,
    /// The index, both manifests, all of the signature, and the statements that
    /// were asked for.
    pub documents: Vec<(Descriptor, Bytes)>,
}

impl Repository {
    /// The attestations of the image for `platform` in the index `root`, with the
    /// statements of these `predicates`. `None` when `root` is no OCI index.
    ///
    /// # Errors
    /// When there is no image for the platform, and those of [`Self::fetch`].
    pub async fn attestations(
        &self,
        root: &Descriptor,
        platform: &Platform,
        predicates: &[String],
    ) -> Result<Option<Chain>> {
        if root.media_type != media::OCI_INDEX {
            return Ok(None);
        }
        let about = |digest: &Digest, problem| self.about(digest, Some(problem));
        let bytes = self.fetch(root).await?;
        let Document::Index(index) = Document::parse(root, &bytes).map_err(|p| about(&root.digest, p))?
        else {
            return Ok(None);
        };
        let image = image(&index, platform).cloned().ok_or_else(|| {
            let (digest, platform) = (root.digest.clone(), platform.to_string());
            Problem::Platform { digest, platform }.of(self.reference())
        })?;
        let attestations = if is_hardened(&index) {
            let query = [
                ("artifactType", IN_TOTO),
                ("predicateType", PROVENANCE[0]),
                ("predicateType", PROVENANCE[1]),
            ];
            let referrers = self.referrers(&image.digest, &query).await?;
            let found = referrers.into_iter().find(is_provenance).ok_or_else(|| {
                let message = "no attestations refer to it".to_owned();
                about(&image.digest, Problem::NotFound { message })
            });
            Some(found?)
        } else {
            let is_about = |d: &&Descriptor| {
                let says = |key: &str, value: &str| d.annotations.get(key).is_some_and(|v| v == value);
                says(REFERENCE_TYPE, ATTESTATION) && says(REFERS_TO, image.digest.as_str())
            };
            index.manifests.iter().find(is_about).cloned()
        };
        let mut chain = Chain { image, attestations, signature: None, documents: Vec::new() };
        let mut left = MAX_CHAIN;
        self.add(&mut chain, &mut left, root).await?;
        let Some(attestations) = chain.attestations.clone() else { return Ok(Some(chain)) };
        let manifest = self.add_manifest(&mut chain, &mut left, &attestations).await?;
        chain.signature = self.signature(&attestations.digest).await?;
        if let Some(signature) = chain.signature.clone() {
            for part in self.add_manifest(&mut chain, &mut left, &signature).await?.layers {
                self.add(&mut chain, &mut left, &part).await?;
            }
        }
        let wanted: BTreeSet<_> = predicates.iter().filter(|p| !p.is_empty()).collect();
        for statement in &manifest.layers {
            if statement.annotations.get(PREDICATE_TYPE).is_some_and(|p| wanted.contains(p)) {
                self.add(&mut chain, &mut left, statement).await?;
            }
        }
        Ok(Some(chain))
    }

    /// Brings a document, unless it is there.
    async fn add(&self, chain: &mut Chain, left: &mut u64, desc: &Descriptor) -> Result<Bytes> {
        if let Some((_, known)) = chain.documents.iter().find(|(known, _)| known.digest == desc.digest) {
            return Ok(known.clone());
        }
        let too_large = Problem::TooLarge { size: desc.size, limit: *left };
        *left = left.checked_sub(desc.size).ok_or_else(|| self.about(&desc.digest, Some(too_large)))?;
        let bytes = self.fetch(desc).await?;
        chain.documents.push((desc.clone(), bytes.clone()));
        Ok(bytes)
    }

    async fn add_manifest(&self, chain: &mut Chain, left: &mut u64, desc: &Descriptor) -> Result<Manifest> {
        let bytes = self.add(chain, left, desc).await?;
        match Document::parse(desc, &bytes).map_err(|p| self.about(&desc.digest, Some(p)))? {
            Document::Image(manifest) => Ok(*manifest),
            Document::Index(_) => {
                let (digest, reason) = (desc.digest.clone(), "an index of attestations".to_owned());
                Err(self.about(&desc.digest, Some(Problem::Manifest { digest, reason })))
            }
        }
    }

    /// The one signature of `digest` that counts: a bundle, or else a signature of its own kind.
    async fn signature(&self, digest: &Digest) -> Result<Option<Descriptor>> {
        // Some registries do not know how to look for two kinds at once.
        let referrers = self.referrers(digest, &[]).await?;
        let of = |kind| referrers.iter().find(|d| d.artifact_type.as_deref() == Some(kind));
        Ok(of(BUNDLE).or_else(|| of(COSIGN)).cloned())
    }

    /// What refers to `digest`: the registry is asked, and when none of the hosts
    /// knows how to answer, the tag that stands for an answer.
    ///
    /// # Errors
    /// The first host's when neither can be had. That there is nothing is none.
    pub async fn referrers(&self, digest: &Digest, query: &[(&str, &str)]) -> Result<Vec<Descriptor>> {
        let about = |problem| self.about(digest, Some(problem));
        let tag = digest.as_str().replace(':', "-");
        let ways = [(format!("referrers/{digest}"), query, false), (format!("manifests/{tag}"), &[], true)];
        let mut first = None;
        for (tail, query, decides) in &ways {
            for (host, last) in self.hosts_and_last() {
                match self.referrers_at(host, tail, query, last).await {
                    Ok(Some(index)) => return Ok(index.manifests),
                    Ok(None) if *decides => return Ok(Vec::new()),
                    Ok(None) => {}
                    Err(problem) => {
                        tracing::debug!(host = host.authority, %problem, "referrers");
                        first.get_or_insert(problem);
                    }
                }
            }
        }
        first.map_or_else(|| Ok(Vec::new()), |problem| Err(about(problem)))
    }

    async fn referrers_at(
        &self,
        host: &Host,
        tail: &str,
        query: &[(&str, &str)],
        last: bool,
    ) -> Result<Option<Index>, Problem> {
        let mut url = host.url(self.reference().path(), tail)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut call = Call::new(Method::GET, url, self.pull_scopes()).header(ACCEPT, media::OCI_INDEX)?;
        call.last = last;
        let answer = self.wire().send(host, call).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(answer.problem(false).await);
        }
        let silence = self.shared().config.retry.silence;
        let body = wire::body(answer.response, &answer.method, &answer.url, MAX_MANIFEST);
        let url = shown(&answer.url);
        let body = tokio::time::timeout(silence, body)
            .await
            .map_err(|_| Problem::Stalled { url: url.clone(), seconds: silence.as_secs() })??;
        let index = serde_json::from_slice(&body);
        index.map(Some).map_err(|e| crate::auth::protocol(&url, format!("no index of referrers: {e}")))
    }
}

/// The image for `platform`; indexes within the index are passed over.
fn image<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let suitable = select(&index.manifests, platform);
    suitable.into_iter().find(|d| media::is_manifest(&d.media_type))
}

fn is_hardened(index: &Index) -> bool {
    let built = |d: &Descriptor| d.annotations.get(HARDENED_BUILD).is_some_and(|id| !id.is_empty());
    index.annotations.get(HARDENED_TITLE).is_some_and(|title| title.starts_with("dhi/"))
        && index.manifests.iter().all(built)
}

fn is_provenance(d: &Descriptor) -> bool {
    d.artifact_type.as_deref() == Some(IN_TOTO)
        && d.annotations.get(PREDICATE_TYPE).is_some_and(|p| PROVENANCE.contains(&p.as_str()))
}
