//! `debug workers` and `debug info`.

use base::{Failure, Platform};
use clap::Args;
use proto::control as wire;
use proto::control::types;
use serde_json::{Map, Value, json};

use super::{print, print_with};
use crate::connect::Connection;
use crate::errors::answer;
use crate::format::table::Table;
use crate::format::template::Template;
use crate::format::{size, time};

#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// containerd-style filter string slice
    #[arg(short, long)]
    filter: Vec<String>,
    /// Verbose output
    #[arg(short, long)]
    verbose: bool,
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long)]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long)]
    format: Option<String>,
}

/// Lists the daemon's workers.
pub(crate) async fn list(connection: &Connection, args: WorkersArgs) -> Result<(), Failure> {
    let template = args.format.as_deref().filter(|f| !f.is_empty()).map(Template::parse).transpose()?;
    let workers = workers(connection, args.filter).await?;
    if let Some(template) = template {
        let value = if workers.is_empty() { Value::Null } else { workers.iter().map(worker_json).collect() };
        return print_with(&template, &value);
    }
    let mut table = Table::tabbed();
    if args.verbose {
        workers.iter().for_each(|w| verbose(&mut table, w));
    } else {
        table.line("ID\tPLATFORMS");
        workers.iter().for_each(|w| table.line(format!("{}\t{}", w.id, platforms(&w.platforms))));
    }
    print(table.take())
}

/// The daemon's workers.
pub(crate) async fn workers(
    connection: &Connection,
    filter: Vec<String>,
) -> Result<Vec<types::WorkerRecord>, Failure> {
    let response = connection.control().list_workers(wire::ListWorkersRequest { filter }).await;
    Ok(response.map_err(|e| answer(&e).context("failed to list workers"))?.into_inner().record)
}

/// Shows the daemon's version.
pub(crate) async fn info(connection: &Connection, args: InfoArgs) -> Result<(), Failure> {
    let template = args.format.as_deref().filter(|f| !f.is_empty()).map(Template::parse).transpose()?;
    let response = connection.control().info(wire::InfoRequest {}).await;
    let response = response.map_err(|e| answer(&e).context("failed to call info"))?.into_inner();
    let version = response.buildkit_version.unwrap_or_default();
    if let Some(template) = template {
        return print_with(&template, &json!({ "buildkitVersion": version_json(&version) }));
    }
    let mut table = Table::spaced();
    versions(&mut table, &version);
    print(table.take())
}

fn versions(table: &mut Table, version: &types::BuildkitVersion) {
    table.line(format!("BuildKit:\t{} {} {}", version.package, version.version, version.revision));
    if !version.dockerfile_version.is_empty() {
        table.line(format!("Dockerfile:\t{}", version.dockerfile_version));
    }
}

fn platform(platform: &proto::pb::Platform) -> Platform {
    let mut out = Platform::new(&platform.os, &platform.architecture, &platform.variant);
    out.os_version.clone_from(&platform.os_version);
    out.os_features.clone_from(&platform.os_features);
    out
}

fn platforms(list: &[proto::pb::Platform]) -> String {
    list.iter().map(|p| platform(p).to_string()).collect::<Vec<_>>().join(",")
}

fn verbose(table: &mut Table, worker: &types::WorkerRecord) {
    table.line(format!("ID:\t{}", worker.id));
    table.line(format!("Platforms:\t{}", platforms(&worker.platforms)));
    versions(table, &worker.buildkit_version.clone().unwrap_or_default());
    table.line("Labels:");
    for (key, value) in &worker.labels {
        table.line(format!("\t{key}:\t{value}"));
    }
    if !worker.cdi_devices.is_empty() {
        table.line("Devices:");
        for device in &worker.cdi_devices {
            table.line(format!("\tName:\t{}", device.name));
            match device.on_demand {
                true => table.line("\tOnDemand:\ttrue"),
                false => table.line(format!("\tAutoAllow:\t{}", device.auto_allow)),
            }
            for (key, value) in &device.annotations {
                table.line(format!("\tAnnotations:\t{key}:\t{value}"));
            }
        }
        table.line("");
    }
    for (number, rule) in worker.gc_policy.iter().enumerate() {
        table.line(format!("GC Policy rule#{number}:"));
        table.line(format!("\tAll:\t{}", rule.all));
        if !rule.filters.is_empty() {
            table.line(format!("\tFilters:\t{}", rule.filters.join(" ")));
        }
        if rule.keep_duration > 0 {
            table.line(format!("\tKeep duration:\t{}", time::duration(rule.keep_duration)));
        }
        let space = [
            ("Reserved", rule.reserved_space),
            ("Minimum free", rule.min_free_space),
            ("Maximum used", rule.max_used_space),
        ];
        for (what, bytes) in space.into_iter().filter(|(_, bytes)| *bytes > 0) {
            table.line(format!("\t{what} space:\t{}", size::shortest(bytes)));
        }
    }
    table.line("");
}

fn version_json(version: &types::BuildkitVersion) -> Value {
    let mut out = Map::new();
    out.insert("package".into(), json!(version.package));
    out.insert("version".into(), json!(version.version));
    out.insert("revision".into(), json!(version.revision));
    if !version.dockerfile_version.is_empty() {
        out.insert("dockerfileVersion".into(), json!(version.dockerfile_version));
    }
    Value::Object(out)
}

fn worker_json(worker: &types::WorkerRecord) -> Value {
    let nothing = |empty: bool, value: Value| if empty { Value::Null } else { value };
    let policy = worker.gc_policy.iter().map(|rule| {
        json!({
            "all": rule.all,
            "filter": nothing(rule.filters.is_empty(), json!(rule.filters)),
            "keepDuration": rule.keep_duration,
            "reservedSpace": rule.reserved_space,
            "maxUsedSpace": rule.max_used_space,
            "minFreeSpace": rule.min_free_space,
        })
    });
    let devices = worker.cdi_devices.iter().map(|device| {
        json!({
            "name": device.name,
            "autoAllow": device.auto_allow,
            "annotations": nothing(device.annotations.is_empty(), json!(device.annotations)),
            "onDemand": device.on_demand,
        })
    });
    json!({
        "id": worker.id,
        "labels": nothing(worker.labels.is_empty(), json!(worker.labels)),
        "platforms": worker.platforms.iter().map(|p| json!(platform(p))).collect::<Vec<_>>(),
        "gcPolicy": policy.collect::<Vec<_>>(),
        "buildkitVersion": version_json(&worker.buildkit_version.clone().unwrap_or_default()),
        "cdiDevices": nothing(worker.cdi_devices.is_empty(), devices.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_shown_whole() {
        let worker = types::WorkerRecord {
            id: "w1".into(),
            labels: [("a".to_owned(), "1".to_owned()), ("longer".to_owned(), "2".to_owned())].into(),
            platforms: vec![proto::pb::Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                ..Default::default()
            }],
            buildkit_version: Some(types::BuildkitVersion {
                package: "p".into(),
                version: "v".into(),
                revision: "r".into(),
                ..Default::default()
            }),
            gc_policy: vec![types::GcPolicy {
                keep_duration: 172_800_000_000_000,
                max_used_space: 512_000_000,
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut table = Table::tabbed();
        verbose(&mut table, &worker);
        assert_eq!(
            table.take(),
            "ID:\t\tw1\nPlatforms:\tlinux/amd64\nBuildKit:\tp v r\nLabels:\n\ta:\t1\n\tlonger:\t2\nGC Policy rule#0:\n\tAll:\t\t\tfalse\n\tKeep duration:\t\t48h0m0s\n\tMaximum used space:\t512MB\n\n"
        );
        let json = worker_json(&worker).to_string();
        assert!(
            json.contains("\"cdiDevices\":null") && json.contains("\"maxUsedSpace\":512000000"),
            "{json}"
        );
    }
}
