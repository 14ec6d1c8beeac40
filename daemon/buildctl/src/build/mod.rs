//! `build`: gathers what a build may use, runs it, puts its results where they belong.

mod agent;
mod layout;
mod metadata;
mod options;
mod solve;
mod stores;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::task::Scope;
use base::{Digest, Failure, Kind, gotext, id};
use clap::{ArgAction, Args};
use proto::control as wire;
use session::client::{Agent, Attachables, OciStore, Session};

use crate::cli::Global;
use crate::commands::{offline, print};
use crate::connect::Connection;
use crate::credentials::Docker;
use crate::display::{Display, Mode, Output};
use agent::KeyAgent;
use metadata::Metrics;
pub(crate) use options::fields;
use options::{Attrs, Entry, Place};
pub(crate) use solve::Reporter;
use solve::Request;

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Define exports for build result, e.g. --output type=image,name=docker.io/username/image,push=true
    #[arg(short, long)]
    output: Vec<String>,
    /// Set type of progress (auto, plain, tty, rawjson, quiet). Use plain to show container output
    #[arg(long, default_value = "auto")]
    progress: String,
    /// Path to trace file. Defaults to no tracing.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Allow build access to the local directory
    #[arg(long, value_name = "NAME=DIR")]
    local: Vec<String>,
    /// Allow build access to the local OCI layout
    #[arg(long, value_name = "ID=DIR")]
    oci_layout: Vec<String>,
    /// Define frontend used for build
    #[arg(long, default_value = "")]
    frontend: String,
    /// Define custom options for frontend, e.g. --opt target=foo --opt build-arg:foo=bar
    #[arg(long, alias = "frontend-opt")]
    opt: Vec<String>,
    /// Disable cache for all the vertices
    #[arg(long, action = ArgAction::SetTrue)]
    no_cache: bool,
    /// Export build cache, e.g. --export-cache type=registry,ref=example.com/foo/bar, or --export-cache type=local,dest=path/to/dir
    #[arg(long)]
    export_cache: Vec<String>,
    /// Import build cache, e.g. --import-cache type=registry,ref=example.com/foo/bar, or --import-cache type=local,src=path/to/dir
    #[arg(long)]
    import_cache: Vec<String>,
    /// Secret value exposed to the build. Format id=secretname,src=filepath
    #[arg(long)]
    secret: Vec<String>,
    /// Allow extra privileged entitlement, e.g. network.host, security.insecure, device
    #[arg(long)]
    allow: Vec<String>,
    /// Allow forwarding SSH agent or a raw Unix socket to the builder. Format default|<id>[=<socket>|<key>[,<key>][,raw=false]]
    #[arg(long)]
    ssh: Vec<String>,
    /// Output build metadata (e.g., image digest) to a file as JSON
    #[arg(long)]
    metadata_file: Option<String>,
    /// Read source policy file from a JSON file
    #[arg(long)]
    source_policy_file: Option<String>,
    /// Run build with proxy network enforcement
    #[arg(long)]
    proxy_network: bool,
    /// Write build ref to a file
    #[arg(long)]
    ref_file: Option<String>,
    /// Overwrite TLS configuration when authenticating with registries, e.g. --registry-auth-tlscontext
    /// host=https://myserver:2376,insecure=false,ca=/path/to/my/ca.crt,cert=/path/to/my/cert.crt,key=/path/to/my/key.crt
    #[arg(long)]
    registry_auth_tlscontext: Vec<String>,
    /// Where to output json cache metrics, use 'stdout' or 'stderr' for standard (error) output.
    #[arg(long)]
    debug_json_cache_metrics: Option<String>,
    /// Old spelling of --output type=…
    #[arg(long, hide = true)]
    exporter: Option<String>,
    /// Old spelling of the attributes of --output
    #[arg(long, hide = true, requires = "exporter")]
    exporter_opt: Vec<String>,
}

/// What the flags mean, with all that could be checked before the build.
struct Plan {
    exports: Vec<(Entry, Place)>,
    cache_exports: Vec<Entry>,
    cache_imports: Vec<Entry>,
    attrs: Attrs,
    frontend: String,
    definition: Option<proto::pb::Definition>,
    policy: Option<wire::sourcepolicy::Policy>,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Plan {
    fn new(args: &BuildArgs) -> Result<Self, Failure> {
        let terminal = std::io::stdout().is_terminal();
        let mut exports = Vec::new();
        for text in &args.output {
            exports.push(options::output(text, terminal)?);
        }
        if let Some(kind) = &args.exporter {
            let opts = options::attrs(&args.exporter_opt)?;
            let quote =
                |(key, value): (&String, &String)| format!(",\"{key}={}\"", value.replace('"', "\"\""));
            // Once, files and directories were both given as `output`.
            let rename = |key: &str| if key == "output" { "dest".to_owned() } else { key.to_owned() };
            let opts: Attrs = opts.into_iter().map(|(k, v)| (rename(&k), v)).collect();
            let text = format!("type={kind}{}", opts.iter().map(quote).collect::<String>());
            exports.push(options::output(&text, terminal)?);
        }
        args.allow.iter().try_for_each(|text| options::allow(text))?;
        let cache_exports =
            args.export_cache.iter().map(|t| options::export_cache(t, &env)).collect::<Result<_, _>>()?;
        let cache_imports =
            args.import_cache.iter().map(|t| options::import_cache(t, &env)).collect::<Result<_, _>>()?;
        let mut attrs = options::opts(&args.opt, &env)?;
        let policy = args.source_policy_file.as_deref().map(read_policy).transpose()?;
        let mut definition = None;
        if args.frontend.is_empty() {
            if std::io::stdin().is_terminal() {
                return Err(Failure::invalid("please specify --frontend or pipe LLB definition to stdin"));
            }
            let mut read = offline::read_llb("-")?;
            if read.def.is_empty() {
                return Err(Failure::invalid("empty definition sent to build. Specify --frontend instead?"));
            }
            if args.no_cache {
                for op in &read.def {
                    read.metadata.entry(Digest::of(op).to_string()).or_default().ignore_cache = true;
                }
            }
            definition = Some(read);
        } else if args.no_cache {
            attrs.insert("no-cache".into(), String::new());
        }
        Ok(Self {
            exports,
            cache_exports,
            cache_imports,
            attrs,
            frontend: args.frontend.clone(),
            definition,
            policy,
        })
    }
}

fn read_policy(path: &str) -> Result<wire::sourcepolicy::Policy, Failure> {
    let text = std::fs::read(path).map_err(|e| Failure::new(Kind::NotFound, format!("read {path}: {e}")))?;
    session::json::decode("moby.buildkit.v1.sourcepolicy.Policy", &text).ok_or_else(|| {
        Failure::invalid(format!("failed to unmarshal source-policy-file {}", gotext::quote(path)))
    })
}

/// Builds.
pub(crate) async fn run(global: &Global, args: BuildArgs, scope: &Scope) -> Result<(), Failure> {
    let mode = Mode::parse(&args.progress)?;
    let mut plan = Plan::new(&args)?;
    let mut trace = args.trace.as_deref().map(open_trace).transpose()?;
    let mut metrics = args.debug_json_cache_metrics.as_ref().map(|_| Metrics::new());
    let credentials = Docker::load(&args.registry_auth_tlscontext)?;
    let (reporter, mut reports) = Reporter::new();
    let mut attachables = Attachables::new();
    attachables.credentials(Arc::new(credentials.reporting(reporter.clone())));
    for text in &args.secret {
        let (id, source) = options::secret(text, &env)?;
        attachables.secret(id, source);
    }
    let mut key_agents = Vec::new();
    for text in &args.ssh {
        let (id, source) = options::ssh(text, &env)?;
        let agent = match source {
            options::SshSource::Agent(agent) => agent,
            options::SshSource::Keys(files) => {
                let keys = scope.run(KeyAgent::start(&files)).await?;
                let agent = Agent { socket: keys.socket(), raw: false };
                key_agents.push(keys);
                agent
            }
        };
        attachables.agent(id, agent);
    }
    let locals = options::attrs(&args.local).map_err(|e| e.context("invalid local"))?;
    attach_files(&args, &plan, &locals, &mut attachables)?;
    let stores = stores::attach(&mut plan, &mut attachables)?;

    let mut display = Display::open(mode, Output::Stderr)?;
    let reference = id::fresh();
    let connection = scope.run(Connection::open(global)).await?;
    let session = attachables.open(connection.channel(), &mirror(&locals), scope).await?;
    let request = request(&plan, &args, &reference, &session);
    let solving = solve::run(&connection, request, &reporter, scope);
    let watching = async {
        let mut ticks = tokio::time::interval(crate::display::TICK);
        loop {
            tokio::select! {
                report = reports.recv() => {
                    let Some(status) = report else { break };
                    if let Some(trace) = &mut trace {
                        _ = trace.write_all(&crate::display::encode(&status));
                    }
                    if let Some(metrics) = &mut metrics {
                        metrics.update(&status);
                    }
                    display.update(status);
                }
                _ = ticks.tick() => display.refresh(),
            }
        }
        display.finish();
    };
    let solving = async {
        let outcome = solving.await;
        // The session holds reporters, too; without it the display can end.
        session.close().await;
        reporter.close();
        outcome
    };
    let (outcome, ()) = tokio::join!(solving, watching);
    if let Some(path) = &args.ref_file {
        metadata::write_whole(path, reference.as_bytes())?;
    }
    let outcome = outcome?;
    if let Some(path) = &args.metadata_file {
        metadata::write_whole(path, &metadata::metadata_json(&outcome.response))?;
    }
    stores.finish(&outcome.response)?;
    show_answer(&outcome.answer)?;
    match (&metrics, args.debug_json_cache_metrics.as_deref()) {
        (Some(metrics), Some(to)) => write_metrics(metrics, to),
        _ => Ok(()),
    }
}

fn open_trace(path: &Path) -> Result<std::fs::File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options().append(true).create(true).mode(0o600).open(path);
    file.map_err(|e| Failure::invalid(format!("open {}: {e}", path.display())))
}

fn write_metrics(metrics: &Metrics, to: &str) -> Result<(), Failure> {
    let mut text = Vec::new();
    metrics.write(&mut text).map_err(|e| Failure::internal(e.to_string()))?;
    match to {
        "stdout" => print(text),
        "stderr" => std::io::stderr().write_all(&text).map_err(|e| Failure::internal(e.to_string())),
        path => std::fs::write(path, text).map_err(|e| Failure::internal(format!("write {path}: {e}"))),
    }
}

/// What a subrequest answered.
fn show_answer(answer: &BTreeMap<String, Vec<u8>>) -> Result<(), Failure> {
    if let Some(text) = answer.get("result.txt") {
        return print(text);
    }
    for (key, value) in answer.iter().filter(|(key, _)| key.starts_with("result.")) {
        print([key.as_bytes(), b"\n", value, b"\n"].concat())?;
    }
    Ok(())
}

/// Local directories, layouts and targets.
fn attach_files(
    args: &BuildArgs,
    plan: &Plan,
    locals: &Attrs,
    attachables: &mut Attachables,
) -> Result<(), Failure> {
    if let Some(definition) = &plan.definition {
        for name in local_sources(definition)? {
            if !locals.contains_key(&name) {
                return Err(Failure::invalid(format!("local directory {name} not enabled")));
            }
        }
    }
    for (name, path) in locals {
        attachables.dir(name, Path::new(path)).map_err(|e| Failure::from(e).context("invalid local"))?;
    }
    for text in &args.oci_layout {
        let (id, path) = options::layout(text).map_err(|e| e.context("invalid oci-layout"))?;
        let store =
            OciStore::open(&path, false).map_err(|e| Failure::from(e).context("invalid oci-layout"))?;
        attachables.store(format!("oci:{id}"), store);
    }
    for (number, (_, place)) in plan.exports.iter().enumerate() {
        if let Some(target) = place.target() {
            attachables.target(i64::try_from(number).unwrap_or(i64::MAX), target);
        }
    }
    Ok(())
}

/// The session's shared key. The daemon keeps a mirror of each local directory under it, and is
/// sent what has changed since; without a key builds of different directories would send
/// everything in turns. The context says which build it is, if there is one. The machine does
/// not count: those that build for others are often new each time, with one path per project.
fn mirror(locals: &Attrs) -> String {
    let chosen: Vec<_> = match locals.get_key_value("context") {
        Some(context) => vec![context],
        None => locals.iter().collect(),
    };
    if chosen.is_empty() {
        return String::new();
    }
    let place = |path: &String| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let named = chosen.into_iter().map(|(name, path)| format!("{name}\0{}\0", place(path).display()));
    Digest::of(named.collect::<String>()).hex().to_owned()
}

/// The names of the local directories LLB reads.
fn local_sources(definition: &proto::pb::Definition) -> Result<Vec<String>, Failure> {
    use prost::Message;
    let mut out = Vec::new();
    for bytes in &definition.def {
        let op = proto::pb::Op::decode(bytes.as_slice())
            .map_err(|e| Failure::invalid(format!("failed to parse llb proto op: {e}")))?;
        if let Some(proto::pb::op::Op::Source(source)) = op.op
            && let Some(name) = source.identifier.strip_prefix("local://")
        {
            out.push(name.to_owned());
        }
    }
    Ok(out)
}

/// The requests that make the build.
fn request(plan: &Plan, args: &BuildArgs, reference: &str, session: &Session) -> Request {
    let entries = |list: &[Entry]| -> Vec<wire::CacheOptionsEntry> {
        let entry = |e: &Entry| wire::CacheOptionsEntry { r#type: e.kind.clone(), attrs: e.attrs.clone() };
        list.iter().map(entry).collect()
    };
    let mut attrs = plan.attrs.clone();
    let imports = entries(&plan.cache_imports);
    if !imports.is_empty() {
        let list: Vec<_> = plan
            .cache_imports
            .iter()
            .map(|e| serde_json::json!({"Type": e.kind, "Attrs": e.attrs}))
            .collect();
        attrs.insert("cache-imports".into(), serde_json::Value::from(list).to_string());
    }
    let exporters: Vec<_> = plan
        .exports
        .iter()
        .map(|(entry, _)| wire::Exporter { r#type: entry.kind.clone(), attrs: entry.attrs.clone() })
        .collect();
    // Daemons of old know one exporter only.
    let first = exporters.first().cloned().unwrap_or_default();
    let control = wire::SolveRequest {
        r#ref: reference.to_owned(),
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        session: session.id().to_owned(),
        frontend_attrs: attrs.clone(),
        cache: Some(wire::CacheOptions {
            exports: entries(&plan.cache_exports),
            imports,
            ..Default::default()
        }),
        entitlements: args.allow.clone(),
        source_policy: plan.policy.clone(),
        exporters,
        proxy_network: args.proxy_network,
        ..Default::default()
    };
    Request { control, frontend: plan.frontend.clone(), definition: plan.definition.clone(), attrs }
}
