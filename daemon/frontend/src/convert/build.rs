//! The Dockerfile frontend: from a build's options to its result.

use std::sync::Arc;

use base::failure::{Detail, SourceExcerpt};
use base::{Failure, Kind, Platform};
use futures_util::future::try_join_all;
use prost::Message;

use super::error::Failed;
use super::names::places;
use super::{Converted, Options, convert, requests};
use crate::dockerfile::directives;
use crate::dockerfile::lint::Warning;
use crate::dockerui::{Built, Client, Source, assemble};
use crate::gateway::{self, FrontendResult, Gateway, Solve};
use crate::sbom::{Scanner, Target};

/// What a client may demand of this frontend.
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

/// Builds a Dockerfile.
///
/// # Errors
/// What is wrong with the options or the file, with the places in it, or what
/// the gateway says.
pub async fn build(gateway: Arc<dyn Gateway>) -> Result<FrontendResult, Failure> {
    let client = Arc::new(Client::new(Arc::clone(&gateway))?);
    let opts = &client.options().opts;
    let lacking = lacking_cap(opts.get("frontend.caps").map_or("", String::as_str));
    if let Some((error, false)) = &lacking {
        return Err(error.clone());
    }
    let source = client.read_entrypoint("Dockerfile").await?;
    if !opts.contains_key("cmdline") {
        const SYNTAX: &str = "build-arg:BUILDKIT_SYNTAX";
        if let Some(cmdline) = opts.get(SYNTAX) {
            let reference = cmdline.trim().split(' ').next().unwrap_or_default();
            return forward(&client, reference, cmdline).await.map_err(|e| match has_source(&e) {
                true => e,
                false => e.context(format!("failed with {SYNTAX} = {cmdline}")),
            });
        }
        if let Some(syntax) = directives::syntax(&source.map.data) {
            return forward(&client, syntax.first_word(), &syntax.value).await.map_err(|e| {
                let at = excerpt(&source, syntax.lines.ranges());
                if has_source(&e) { e } else { e.with(Detail::Source(at)) }
            });
        }
    }
    if let Some((error, _)) = lacking {
        return Err(error);
    }
    let options = Options {
        client: Arc::clone(&client),
        source: Arc::clone(&source.map),
        platform: None,
        lint: true,
        all_stages: false,
    };
    if let Some(request) = opts.get("requestid") {
        return requests::answer(request, &options, &source).await;
    }
    let scanner = match &client.config().sbom {
        Some(wanted) => {
            let platform = client.config().build_platforms.first().cloned().unwrap_or_else(Platform::host);
            let mode = opts.get("image-resolve-mode").cloned().unwrap_or_default();
            Some(Scanner::find(client.gateway(), wanted, platform, mode).await?)
        }
        None => None,
    };

    let targets = match client.config().target_platforms.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let builds = targets.into_iter().enumerate().map(|(at, platform)| {
        // The same warnings once are enough.
        let options = Options { platform, lint: at == 0, ..options.clone() };
        let (client, source) = (&client, &source);
        async move { build_one(client, source, options).await }
    });
    let built = try_join_all(builds).await?;

    let (built, converted): (Vec<Built>, Vec<Converted>) = built.into_iter().unzip();
    let ids: Vec<String> = built.iter().map(Built::id).collect();
    let mut result = assemble(built, client.config().multi_platform)?;
    if let Some(scanner) = &scanner {
        let scans = ids.iter().zip(&converted).map(|(id, c)| {
            let target = Target { id, state: &c.state, extras: &c.scan, ignore_cache: c.ignore_cache };
            scanner.scan(client.gateway(), target)
        });
        for (id, attestation) in ids.iter().zip(try_join_all(scans).await?) {
            result.attestations.entry(id.clone()).or_default().push(attestation);
        }
    }
    Ok(result)
}

async fn build_one(
    client: &Client,
    source: &Source,
    options: Options,
) -> Result<(Built, Converted), Failure> {
    let converted = convert_and_warn(&options, source).await.map_err(|e| located(e, source))?;
    let definition = converted
        .state
        .marshal(&converted.defaults)
        .map_err(|e| Failure::from(e).context("failed to marshal LLB definition"))?;
    let request =
        Solve { cache_imports: client.config().cache_imports.clone(), ..Solve::definition(definition) };
    let result = client.gateway().solve(request).await?;
    let built = Built {
        platform: options.platform,
        reference: result.single_ref()?.cloned(),
        image: converted.image.clone(),
        base_image: converted.base_image.clone(),
        epoch: converted.epoch.clone(),
    };
    Ok((built, converted))
}

/// Converts, and tells the author what should be written differently.
pub(super) async fn convert_and_warn(options: &Options, source: &Source) -> Result<Converted, Failed> {
    let (converted, warnings) = convert(options).await;
    for warning in warnings {
        warn(&options.client, source, &warning).await;
    }
    converted
}

/// The first demand this frontend does not meet, and whether another one may be
/// asked instead.
fn lacking_cap(demanded: &str) -> Option<(Failure, bool)> {
    let mut lacking = None;
    for demand in demanded.split(',').filter(|_| !demanded.is_empty()) {
        let name = demand.split('+').next().unwrap_or_default();
        if CAPS.contains(&name) {
            continue;
        }
        let error = Failure::new(Kind::Unimplemented, format!("unsupported frontend capability {name}"))
            .with(Detail::FrontendCap(name.to_owned()));
        let may_forward = demand.contains("+forward");
        lacking = Some((error, may_forward));
        if !may_forward {
            break;
        }
    }
    lacking
}

/// Lets another frontend do it.
async fn forward(client: &Client, reference: &str, cmdline: &str) -> Result<FrontendResult, Failure> {
    let mut opts = client.options().opts.clone();
    opts.insert("cmdline".to_owned(), cmdline.to_owned());
    opts.insert("source".to_owned(), reference.to_owned());
    let inputs = match client.options().caps.has(llb::caps::FRONTEND_INPUTS) {
        true => client.inputs().await?,
        false => Default::default(),
    };
    client.gateway().solve(Solve::frontend("gateway.v0", opts, inputs)).await
}

fn has_source(error: &Failure) -> bool {
    error.details().iter().any(|d| matches!(d, Detail::Source(_)))
}

/// The file, and places in it.
fn excerpt(source: &Source, ranges: Vec<base::failure::Range>) -> SourceExcerpt {
    SourceExcerpt {
        filename: source.map.filename.clone(),
        language: source.map.language.clone(),
        data: source.map.data.clone(),
        definition: source.map.definition.as_ref().map(Message::encode_to_vec),
        ranges,
    }
}

/// An error with every place that is known.
fn located(error: Failed, source: &Source) -> Failure {
    let Failed { failure, places: lines } = error;
    lines.iter().fold(failure, |failure, lines| failure.also(Detail::Source(excerpt(source, places(*lines)))))
}

async fn warn(client: &Client, source: &Source, warning: &Warning) {
    let map = &source.map;
    let info = proto::pb::SourceInfo {
        filename: map.filename.clone(),
        data: map.data.clone(),
        definition: map.definition.clone(),
        language: map.language.clone(),
    };
    let warning = gateway::Warning {
        vertex: source.vertex.clone(),
        level: 1,
        short: warning.short().into_bytes(),
        detail: vec![warning.rule.description.as_bytes().to_vec()],
        url: warning.rule.url.to_owned(),
        source: Some(info),
        ranges: warning.lines.ranges(),
    };
    // Advice that does not arrive is no reason to fail.
    _ = client.gateway().warn(warning).await;
}
