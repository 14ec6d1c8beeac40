//! `du` and `prune`.

use base::Failure;
use clap::Args;
use proto::control as wire;
use serde_json::{Value, json};

use super::{print, print_with};
use crate::connect::Connection;
use crate::errors::answer;
use crate::format::table::Table;
use crate::format::template::Template;
use crate::format::{size, time};

#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// Filter records
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
pub(crate) struct PruneArgs {
    /// Keep data newer than this limit
    #[arg(long, default_value = "0s")]
    keep_duration: String,
    /// Keep data below this limit (in MB)
    #[arg(long, default_value_t = 0.0)]
    keep_storage: f64,
    /// Always allow data above this limit (in MB)
    #[arg(long, default_value_t = 0.0)]
    keep_storage_min: f64,
    /// Keep free data below this limit (in MB)
    #[arg(long, default_value_t = 0.0)]
    free_storage: f64,
    /// Filter records
    #[arg(short, long)]
    filter: Vec<String>,
    /// Include internal/frontend references
    #[arg(long)]
    all: bool,
    /// Verbose output
    #[arg(short, long)]
    verbose: bool,
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long)]
    format: Option<String>,
}

/// Shows what the daemon keeps.
pub(crate) async fn du(connection: &Connection, args: DuArgs) -> Result<(), Failure> {
    let template = args.format.as_deref().filter(|f| !f.is_empty()).map(Template::parse).transpose()?;
    let all = args.filter.is_empty();
    let request = wire::DiskUsageRequest { filter: args.filter, ..Default::default() };
    let response = connection.control().disk_usage(request).await;
    let mut records =
        response.map_err(|e| answer(&e).context("failed to call diskusage"))?.into_inner().record;
    records.sort_by(|a, b| a.size.cmp(&b.size).then_with(|| a.id.cmp(&b.id)));
    if let Some(template) = template {
        let value = if records.is_empty() { Value::Null } else { records.iter().map(record_json).collect() };
        return print_with(&template, &value);
    }
    let mut table = Table::tabbed();
    if args.verbose {
        records.iter().for_each(|r| verbose(&mut table, r));
    } else {
        header(&mut table);
        records.iter().for_each(|r| row(&mut table, r));
    }
    let mut text = table.take();
    if all {
        summary(&mut table, &records);
        text += &table.take();
    }
    print(text)
}

/// Deletes what nobody needs.
pub(crate) async fn prune(connection: &Connection, args: PruneArgs) -> Result<(), Failure> {
    let template = args.format.as_deref().filter(|f| !f.is_empty()).map(Template::parse).transpose()?;
    let bytes = |megabytes: f64| (megabytes * 1e6) as i64;
    let (negative, keep) = base::gotext::parse_duration(&args.keep_duration)
        .map_err(|e| Failure::invalid(format!("invalid keep-duration {:?}: {e}", args.keep_duration)))?;
    let keep = i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX);
    let request = wire::PruneRequest {
        filter: args.filter,
        all: args.all,
        keep_duration: if negative { -keep } else { keep },
        reserved_space: bytes(args.keep_storage_min),
        max_used_space: bytes(args.keep_storage),
        min_free_space: bytes(args.free_storage),
    };
    let stream = connection.control().prune(request).await;
    let mut stream = stream.map_err(|e| answer(&e).context("failed to call prune"))?.into_inner();
    let (mut total, mut first) = (0i64, true);
    let mut table = Table::tabbed();
    while let Some(record) = stream.message().await.map_err(|e| answer(&e))? {
        total = total.saturating_add(record.size);
        if let Some(template) = &template {
            print_with(template, &record_json(&record))?;
            continue;
        }
        if args.verbose {
            verbose(&mut table, &record);
        } else {
            if std::mem::take(&mut first) {
                header(&mut table);
            }
            row(&mut table, &record);
        }
        print(table.take())?;
    }
    if template.is_some() {
        return Ok(());
    }
    table.line(format!("Total:\t{}", size::fixed(total)));
    print(table.take())
}

fn header(table: &mut Table) {
    table.line("ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED");
}

fn row(table: &mut Table, record: &wire::UsageRecord) {
    let star = |yes| if yes { "*" } else { "" };
    let id = format!("{}{}", record.id, star(record.mutable));
    let size = format!("{}{}", size::fixed(record.size), star(record.shared));
    let reclaimable = (!record.in_use).to_string();
    table.line(format!("{id:<71}\t{reclaimable:<11}\t{size}\t"));
}

fn verbose(table: &mut Table, record: &wire::UsageRecord) {
    let mut say = |key: &str, value: &dyn std::fmt::Display| table.line(format!("{key}:\t{value}"));
    say("ID", &record.id);
    if !record.parents.is_empty() {
        say("Parents", &record.parents.join(";"));
    }
    say("Created at", &time::long(record.created_at.as_ref()));
    say("Mutable", &record.mutable);
    say("Reclaimable", &!record.in_use);
    say("Shared", &record.shared);
    say("Size", &size::fixed(record.size));
    if !record.description.is_empty() {
        say("Description", &record.description);
    }
    say("Usage count", &record.usage_count);
    if record.last_used_at.is_some() {
        say("Last used", &time::long(record.last_used_at.as_ref()));
    }
    if !record.record_type.is_empty() {
        say("Type", &record.record_type);
    }
    table.line("");
}

fn summary(table: &mut Table, records: &[wire::UsageRecord]) {
    let sum = |which: fn(&wire::UsageRecord) -> bool| {
        records.iter().filter(|r| which(r)).fold(0i64, |sum, r| sum.saturating_add(r.size))
    };
    let total = sum(|r| r.size > 0);
    let shared = sum(|r| r.shared);
    if shared > 0 {
        table.line(format!("Shared:\t{}", size::fixed(shared)));
        table.line(format!("Private:\t{}", size::fixed(total - shared)));
    }
    table.line(format!("Reclaimable:\t{}", size::fixed(sum(|r| r.size > 0 && !r.in_use))));
    table.line(format!("Total:\t{}", size::fixed(total)));
}

fn record_json(record: &wire::UsageRecord) -> Value {
    json!({
        "id": record.id,
        "mutable": record.mutable,
        "inUse": record.in_use,
        "size": record.size,
        "createdAt": time::rfc3339(record.created_at.as_ref()),
        "lastUsedAt": record.last_used_at.as_ref().map(|t| time::rfc3339(Some(t))),
        "usageCount": record.usage_count,
        "parents": if record.parents.is_empty() { Value::Null } else { json!(record.parents) },
        "description": record.description,
        "recordType": record.record_type,
        "shared": record.shared,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, size: i64) -> wire::UsageRecord {
        wire::UsageRecord { id: id.into(), size, mutable: id == "b", ..Default::default() }
    }

    #[test]
    fn the_table_is_the_one_scripts_know() {
        let mut table = Table::tabbed();
        header(&mut table);
        row(&mut table, &record("b", 1234));
        let id = format!("{:<71}", "b*");
        let expected =
            format!("ID{}RECLAIMABLE\tSIZE\tLAST ACCESSED\n{id}\ttrue       \t1.23kB\t\n", "\t".repeat(9));
        assert_eq!(table.take(), expected);
        summary(
            &mut table,
            &[record("a", 1000), wire::UsageRecord { in_use: true, shared: true, ..record("c", 5) }],
        );
        assert_eq!(table.take(), "Shared:\t\t5B\nPrivate:\t1.00kB\nReclaimable:\t1.00kB\nTotal:\t\t1.00kB\n");
    }

    #[test]
    fn json_has_the_fields_programs_read() {
        let text = record_json(&record("a", 1)).to_string();
        for field in [
            "\"id\":\"a\"",
            "\"inUse\":false",
            "\"lastUsedAt\":null",
            "\"recordType\":\"\"",
            "\"parents\":null",
        ] {
            assert!(text.contains(field), "{text}");
        }
    }
}
