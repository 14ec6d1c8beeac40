//! What sources say of themselves.

use base::Failure;
use frontend::gateway::{
    AttestationChain, ChecksumAlgorithm, GitMeta, HttpMeta, ImageMeta, ResolveSource, SourceMeta,
};
use ops::source::git;
use ops::source::http::{self, Checksum};
use ops::source::image;
use ops::{Behalf, Worker};

/// What `request.source` is, on behalf of a build. Of what has nothing to say (a
/// client's directory, a blob) only the source comes back.
pub(crate) async fn resolve(
    worker: &Worker,
    request: ResolveSource,
    behalf: &Behalf,
) -> Result<SourceMeta, Failure> {
    let source = request.source.clone();
    let mut meta = SourceMeta { source, ..SourceMeta::default() };
    match request.source.identifier.split_once("://").map(|(scheme, _)| scheme) {
        Some("docker-image" | "oci-layout") => {
            meta.image = Some(Box::pin(image(worker, request, behalf)).await?)
        }
        Some("git") => meta.git = Some(Box::pin(repository(worker, request, behalf)).await?),
        Some("http" | "https") => meta.http = Some(Box::pin(file(worker, request, behalf)).await?),
        _ => {}
    }
    Ok(meta)
}

async fn image(worker: &Worker, request: ResolveSource, behalf: &Behalf) -> Result<ImageMeta, Failure> {
    let mut source = request.source;
    if !request.resolve_mode.is_empty() {
        source.attrs.insert(llb::attr::IMAGE_RESOLVE_MODE.to_owned(), request.resolve_mode);
    }
    let platform = request.platform.unwrap_or_else(|| worker.platform());
    let wanted = image::Wanted::parse(&source, &platform)?;
    let (query, sessions) = (request.image, behalf.sessions());
    let work = async {
        let resolved = worker.images.resolve(&wanted, &sessions).await?;
        if !query.attestation_chain && query.attestations.is_empty() {
            return Ok((resolved, None));
        }
        let root = &resolved.root;
        let chain = worker.images.attestations(&wanted, root, &query.attestations, &sessions).await?;
        Ok::<_, Failure>((resolved, chain))
    };
    let (resolved, chain) = behalf.scope.run(Box::pin(work)).await?;
    Ok(ImageMeta {
        digest: resolved.root.digest.clone(),
        config: if query.no_config { Vec::new() } else { resolved.config.clone() },
        attestation_chain: chain.map(|chain| AttestationChain {
            root: resolved.root.digest.clone(),
            image_manifest: chain.image.digest,
            attestation_manifest: chain.attestations.map(|d| d.digest),
            signature_manifests: chain.signature.map(|d| d.digest).into_iter().collect(),
            blobs: chain.documents.into_iter().map(|(desc, bytes)| (desc, bytes.to_vec())).collect(),
        }),
    })
}

async fn file(worker: &Worker, request: ResolveSource, behalf: &Behalf) -> Result<HttpMeta, Failure> {
    let wanted = http::Wanted::parse(&request.source)?;
    let (found, checksum) = match request.http_checksum {
        None => (wanted.find(worker, behalf).await?, None),
        Some(query) => {
            let algorithm = match query.algorithm {
                ChecksumAlgorithm::Sha256 => Checksum::Sha256,
                ChecksumAlgorithm::Sha384 => Checksum::Sha384,
                ChecksumAlgorithm::Sha512 => Checksum::Sha512,
            };
            let (found, digest) = wanted.find_checksum(worker, behalf, algorithm, &query.suffix).await?;
            (found, Some((digest, query.suffix)))
        }
    };
    Ok(HttpMeta { digest: found.digest, filename: found.filename, last_modified: found.modified, checksum })
}

async fn repository(worker: &Worker, request: ResolveSource, behalf: &Behalf) -> Result<GitMeta, Failure> {
    let wanted = git::Wanted::parse(&request.source)?;
    let (found, objects) = if request.git_objects || wanted.is_signed() {
        wanted.find_objects(worker, behalf).await?
    } else {
        (wanted.find(worker, behalf).await?, git::Objects::default())
    };
    Ok(GitMeta {
        checksum: found.checksum,
        reference: found.reference,
        commit_checksum: found.commit,
        commit_object: objects.commit,
        tag_object: objects.tag,
    })
}

/// Under which name a question is shown to people.
pub(crate) fn step_name(request: &ResolveSource) -> String {
    match request.log_name.as_str() {
        "" => format!("resolve image config for {}", request.source.identifier),
        name => name.to_owned(),
    }
}
