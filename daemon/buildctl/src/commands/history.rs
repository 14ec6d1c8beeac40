//! Records of past builds: list, watch, pin, delete, replay.

use base::{Digest, Failure};
use clap::Args;
use proto::content as blobs;
use proto::control as wire;

use super::{json_of, print, print_with};
use crate::connect::Connection;
use crate::display::{Display, Mode};
use crate::errors::answer;
use crate::format::table::Table;
use crate::format::template::Template;
use crate::format::time;

const EVENT: &str = "moby.buildkit.v1.BuildHistoryEvent";

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long)]
    format: Option<String>,
}

impl FormatArgs {
    fn template(&self) -> Result<Option<Template>, Failure> {
        self.format.as_deref().filter(|f| !f.is_empty()).map(Template::parse).transpose()
    }
}

#[derive(Debug, Args)]
pub(crate) struct MonitorArgs {
    /// show completed builds
    #[arg(long)]
    completed: bool,
    /// show events for a specific build
    #[arg(long = "ref", default_value = "")]
    reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// progress output type
    #[arg(long, default_value = "auto")]
    progress: String,
    /// show opentelemetry trace
    #[arg(long)]
    trace: bool,
    /// the build
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// Pin build so it will not be garbage collected
    #[arg(long)]
    pin: bool,
    /// Unpin build so it will be garbage collected
    #[arg(long)]
    unpin: bool,
    /// Delete build record
    #[arg(long)]
    delete: bool,
    /// the build
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// the blob
    #[arg(value_name = "DIGEST")]
    digest: Option<String>,
}

fn build(reference: Option<String>) -> Result<String, Failure> {
    reference.ok_or_else(|| Failure::invalid("build ref must be specified"))
}

async fn listen(
    connection: &Connection,
    request: wire::BuildHistoryRequest,
) -> Result<tonic::Streaming<wire::BuildHistoryEvent>, Failure> {
    let stream = connection.control().listen_build_history(request).await;
    Ok(stream.map_err(|e| answer(&e))?.into_inner())
}

fn event_name(event: &wire::BuildHistoryEvent) -> &'static str {
    wire::BuildHistoryEventType::try_from(event.r#type).map_or("UNKNOWN", |t| t.as_str_name())
}

/// Lists all records.
pub(crate) async fn list(connection: &Connection, args: FormatArgs) -> Result<(), Failure> {
    let template = args.template()?;
    let request = wire::BuildHistoryRequest { early_exit: true, ..Default::default() };
    let mut events = listen(connection, request).await?;
    let mut table = Table::tabbed();
    table.line("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\tPINNED");
    while let Some(event) = events.message().await.map_err(|e| answer(&e))? {
        if let Some(template) = &template {
            print_with(template, &json_of(EVENT, &event)?)?;
            continue;
        }
        let pinned = event.record.as_ref().is_some_and(|r| r.pinned);
        table.line(row(&event) + if pinned { "\t*" } else { "\t" });
        print(table.take())?;
    }
    if template.is_some() { Ok(()) } else { print(table.take()) }
}

fn row(event: &wire::BuildHistoryEvent) -> String {
    let record = event.record.clone().unwrap_or_default();
    let (created, completed) =
        (time::local(record.created_at.as_ref()), time::local(record.completed_at.as_ref()));
    format!("{}\t{}\t{created}\t{completed}\t{}", event_name(event), record.r#ref, record.generation)
}

/// Deletes all records that are not pinned.
pub(crate) async fn prune(connection: &Connection, args: FormatArgs) -> Result<(), Failure> {
    let template = args.template()?;
    let request = wire::BuildHistoryRequest { early_exit: true, ..Default::default() };
    let mut events = listen(connection, request).await?;
    let mut table = Table::tabbed();
    table.line("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION");
    let mut failed: Option<Failure> = None;
    while let Some(event) = events.message().await.map_err(|e| answer(&e))? {
        let Some(record) = event.record.as_ref().filter(|r| !r.pinned) else { continue };
        let request = wire::UpdateBuildHistoryRequest {
            r#ref: record.r#ref.clone(),
            delete: true,
            ..Default::default()
        };
        if let Err(e) = connection.control().update_build_history(request).await {
            let e = answer(&e).context(format!("delete {}", record.r#ref));
            // The rest is deleted all the same.
            failed.get_or_insert(e);
            continue;
        }
        match &template {
            Some(template) => print_with(template, &json_of(EVENT, &event)?)?,
            None => {
                table.line(row(&event));
                print(table.take())?;
            }
        }
    }
    if template.is_none() {
        print(table.take())?;
    }
    failed.map_or(Ok(()), Err)
}

/// Pins, unpins or deletes a record.
pub(crate) async fn control(connection: &Connection, args: CtlArgs) -> Result<(), Failure> {
    let reference = build(args.reference)?;
    match (args.pin, args.unpin, args.delete) {
        (false, false, false) => {
            return Err(Failure::invalid("must specify one of --pin, --unpin, --delete"));
        }
        (true, true, _) => return Err(Failure::invalid("cannot specify both --pin and --unpin")),
        (true, _, true) | (_, true, true) => {
            return Err(Failure::invalid("cannot specify --delete with --pin or --unpin"));
        }
        _ => {}
    }
    let request = wire::UpdateBuildHistoryRequest {
        r#ref: reference,
        pinned: args.pin,
        delete: args.delete,
        ..Default::default()
    };
    connection.control().update_build_history(request).await.map_err(|e| answer(&e))?;
    Ok(())
}

/// Writes a blob to standard output.
pub(crate) async fn get(connection: &Connection, args: GetArgs) -> Result<(), Failure> {
    let digest = args.digest.ok_or_else(|| Failure::invalid("blob digest must be specified"))?;
    let digest: Digest =
        digest.parse().map_err(|e: base::digest::ParseError| Failure::invalid(e.to_string()))?;
    blob(connection, &digest).await
}

async fn blob(connection: &Connection, digest: &Digest) -> Result<(), Failure> {
    let request = blobs::ReadContentRequest { digest: digest.to_string(), ..Default::default() };
    let mut stream = connection.content().read(request).await.map_err(|e| answer(&e))?.into_inner();
    while let Some(message) = stream.message().await.map_err(|e| answer(&e))? {
        print(&message.data)?;
    }
    Ok(())
}

/// Shows a build again, as it went.
pub(crate) async fn logs(connection: &Connection, args: LogsArgs) -> Result<(), Failure> {
    let reference = build(args.reference)?;
    if args.trace {
        let request = wire::BuildHistoryRequest { r#ref: reference.clone(), ..Default::default() };
        let event = listen(connection, request).await?.message().await.map_err(|e| answer(&e))?;
        let record = event.ok_or_else(|| Failure::invalid(format!("ref {reference} not found")))?.record;
        let trace = record.unwrap_or_default().trace;
        let trace = trace.ok_or_else(|| Failure::invalid(format!("ref {reference} does not have trace")))?;
        let digest =
            trace.digest.parse().map_err(|e: base::digest::ParseError| Failure::invalid(e.to_string()))?;
        return blob(connection, &digest).await;
    }
    let stream = connection.control().status(wire::StatusRequest { r#ref: reference }).await;
    let mut stream = stream.map_err(|e| answer(&e))?.into_inner();
    let mut display = Display::open(Mode::parse(&args.progress)?, crate::display::Output::Stdout)?;
    loop {
        match stream.message().await {
            Ok(Some(status)) => display.update(status),
            Ok(None) => {
                display.finish();
                return Ok(());
            }
            Err(e) => {
                display.finish();
                return Err(answer(&e));
            }
        }
    }
}

/// Shows builds as they begin and end.
pub(crate) async fn monitor(connection: &Connection, args: MonitorArgs) -> Result<(), Failure> {
    let request = wire::BuildHistoryRequest {
        active_only: !args.completed,
        r#ref: args.reference,
        ..Default::default()
    };
    let mut events = listen(connection, request).await?;
    while let Some(event) = events.message().await.map_err(|e| answer(&e))? {
        let record = event.record.clone().unwrap_or_default();
        let mut text = format!("event: {} ref:{}\n", event_name(&event), record.r#ref);
        if record.num_total_steps != 0 {
            text += &format!("  cache: {}/{}\n", record.num_cached_steps, record.num_total_steps);
        }
        if record.num_warnings != 0 {
            text += &format!("  warnings: {}\n", record.num_warnings);
        }
        let mut say = |what: &str, descriptor: &wire::Descriptor| {
            text += &format!(
                "  {what}: media_type:\"{}\" digest:\"{}\" size:{}\n",
                descriptor.media_type, descriptor.digest, descriptor.size
            );
        };
        record.logs.iter().for_each(|d| say("logs", d));
        record.trace.iter().for_each(|d| say("trace", d));
        let of = |prefix: &str,
                  result: &wire::BuildResultInfo,
                  say: &mut dyn FnMut(&str, &wire::Descriptor)| {
            match result.results.is_empty() {
                true => result.result_deprecated.iter().for_each(|d| say(&format!("{prefix}descriptor"), d)),
                false => result.results.values().for_each(|d| say(&format!("{prefix}descriptor"), d)),
            }
            result.attestations.iter().for_each(|d| say(&format!("{prefix}attestation"), d));
        };
        record.result.iter().for_each(|r| of("", r, &mut say));
        for (platform, result) in &record.results {
            of(&format!("[{platform}] "), result, &mut say);
        }
        print(text)?;
    }
    Ok(())
}
