//! Measures build daemons against each other.
//!
//! `bench --help` says how.
//!
//! Every daemon named on the command line is driven by the same client through
//! the same cases. They take turns within each round, so that whatever else the
//! machine does hits all of them alike. The result is a Markdown table of
//! medians; ratios are to the first daemon, above one where it is the better.
//!
//! What a person starts is measured through `buildctl` as a process; what would
//! drown in the start of a process is called over gRPC.

mod cases;
mod daemon;
mod definition;
mod images;
mod networks;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use integration::places;

use crate::cases::{CASES, Lab};
use crate::daemon::Candidate;
use crate::table::Table;

const USAGE: &str = "Measures build daemons against each other, as root.

  bench [FLAGS] [NAME=BUILDKITD]...

Every daemon that is named runs the same cases, driven by the same client; they take turns,
each round in another order. The result, on standard output, is a Markdown table of medians. Ratios are
to the first daemon: below one where the other is better. Without a NAME=PATH the buildkitd
beside this program is measured.

  bench --only net- new=target/release/buildkitd old=/usr/bin/buildkitd

Flags:
  --rounds N        How often everything is done [default: 3]
  --only WORD       Only cases with this in their name; may be given several times
  --buildctl PATH   The client [default: that beside this program]
  --help            This text

Cases:
";

/// What `--help` prints.
fn usage() -> String {
    let cases = CASES.iter().map(|case| format!("  {:<16}  {}\n", case.name, case.what));
    std::iter::once(USAGE.to_owned()).chain(cases).collect()
}

struct Arguments {
    rounds: usize,
    only: Vec<String>,
    buildctl: PathBuf,
    candidates: Vec<Candidate>,
}

/// `None` when there is nothing to be measured.
fn arguments() -> Result<Option<Arguments>> {
    let mut given = std::env::args().skip(1);
    let (mut rounds, mut only, mut buildctl, mut candidates) = (3, Vec::new(), None, Vec::new());
    while let Some(argument) = given.next() {
        let mut value = || given.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--rounds" => rounds = value()?.parse().context("--rounds")?,
            "--only" => only.push(value()?),
            "--buildctl" => buildctl = Some(PathBuf::from(value()?)),
            flag if flag.starts_with('-') => bail!("unknown flag {flag}: see bench --help"),
            _ => {
                let (name, path) = argument.split_once('=').context("a daemon is given as NAME=PATH")?;
                let program = std::path::absolute(path)?;
                anyhow::ensure!(program.exists(), "{path} does not exist");
                candidates.push(Candidate { name: name.to_owned(), program });
            }
        }
    }
    if candidates.is_empty() {
        candidates.push(Candidate { name: "buildkitd".into(), program: places::program("buildkitd")? });
    }
    let buildctl = buildctl.map_or_else(|| places::program("buildctl"), Ok)?;
    Ok(Some(Arguments { rounds, only, buildctl, candidates }))
}

fn measure() -> Result<()> {
    let Some(arguments) = arguments()? else {
        print!("{}", usage());
        return Ok(());
    };
    let mut table = Table::new(arguments.candidates.iter().map(|c| c.name.clone()).collect());
    let lab = Lab::set_up(arguments.buildctl)?;
    for round in 0..arguments.rounds {
        for case in CASES {
            if !arguments.only.is_empty()
                && !arguments.only.iter().any(|word| case.name.contains(word.as_str()))
            {
                continue;
            }
            let candidates = if case.once { 1 } else { arguments.candidates.len() };
            let mut turns: Vec<_> = arguments.candidates.iter().take(candidates).enumerate().collect();
            turns.rotate_left(round % candidates);
            for (column, candidate) in turns {
                // Nobody waits for what another has left to be written.
                rustix::fs::sync();
                eprintln!("round {}: {} with {}", round + 1, case.name, candidate.name);
                let mut report = |figure: &str, unit, value| table.add(figure, unit, column, value);
                if let Err(e) = (case.run)(&lab, candidate, &mut report) {
                    table.fail(case.name, column, &format!("{e:#}"));
                }
            }
        }
    }
    print!("{table}");
    Ok(())
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
