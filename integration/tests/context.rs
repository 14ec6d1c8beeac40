//! Large and odd build contexts.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use integration::bench::Client::{Buildctl, Buildx};
use integration::bench::text;
use integration::{Bench, Options, Project, suite};

fn main() -> ExitCode {
    suite::main(
        || Bench::start(Options::default()),
        &[
            ("thirty_thousand_files", thirty_thousand_files),
            ("only_what_changed_is_sent", only_what_changed_is_sent),
            ("odd_names_and_kinds", odd_names_and_kinds),
            ("from_standard_input", from_standard_input),
            ("one_large_file", one_large_file),
        ],
        Bench::finish,
    )
}

fn thirty_thousand_files(bench: &Bench) -> Result<()> {
    const DIRECTORIES: usize = 300;
    const FILES: usize = 100;
    let project = Project::new(
        "FROM busybox AS all\nCOPY . /c\nRUN find /c/d* -type f | wc -l >/count && cat /c/d299/f99 >>/count\n\
         FROM scratch\nCOPY --from=all /count /c/d150/f50 /\n",
    )?;
    for d in 0..DIRECTORIES {
        let directory = project.path(&format!("d{d}"));
        std::fs::create_dir(&directory)?;
        for f in 0..FILES {
            std::fs::write(directory.join(format!("f{f}")), format!("{d}/{f}\n"))?;
        }
    }
    let tree = bench.export(Buildx, &project, &[])?;
    ensure!(text(&tree, "count")? == "30000\n299/99\n", "{}", text(&tree, "count")?);
    ensure!(text(&tree, "f50")? == "150/50\n");
    // One file more or less is noticed.
    std::fs::remove_file(project.path("d7/f7"))?;
    std::fs::write(project.path("d8/new"), "")?;
    std::fs::write(project.path("d9/new"), "")?;
    let tree = bench.export(Buildctl, &project, &[])?;
    ensure!(text(&tree, "count")?.starts_with("30001\n"), "{}", text(&tree, "count")?);
    Ok(())
}

/// Also when another directory was sent in between.
fn only_what_changed_is_sent(bench: &Bench) -> Result<()> {
    for client in [Buildx, Buildctl] {
        let made = || -> Result<Project> {
            Project::new("FROM scratch\nCOPY . /\n")?.with("large", vec![7; 5 << 20])?.with("small", "a")
        };
        let (project, neighbour) = (made()?, made()?);
        for one in [&project, &neighbour] {
            let first = bench.build(client, one, &[])?.said()?;
            ensure!(first.contains("transferring context: 5.2"), "{client:?}: {first}");
        }
        project.write("small", "b")?;
        let second = bench.build(client, &project, &[])?.said()?;
        ensure!(second.contains("transferring context:") && !second.contains("MB"), "{client:?}: {second}");
    }
    Ok(())
}

fn odd_names_and_kinds(bench: &Bench) -> Result<()> {
    let project = Project::new("FROM scratch\nCOPY odd /\n")?
        .with("odd/spaces and \"quotes\" $HOME *?[x]", "1")?
        .with("odd/ümläut-✓", "2")?
        .with("odd/.hidden/-dash", "3")?
        .with(&format!("odd/{}", "n".repeat(255)), "4")?
        .with("odd/empty", "")?;
    std::fs::create_dir(project.path("odd/no files"))?;
    symlink("nowhere", project.path("odd/dangling"))?;
    symlink("../../../../etc/shadow", project.path("odd/escaping"))?;
    std::fs::hard_link(project.path("odd/empty"), project.path("odd/linked"))?;
    std::fs::set_permissions(project.path("odd/empty"), std::fs::Permissions::from_mode(0o2640))?;
    let mut fifo = std::process::Command::new("mkfifo");
    fifo.arg(project.path("odd/fifo"));
    integration::process::run(fifo)?.ok()?;
    for client in [Buildx, Buildctl] {
        let tree = bench.export(client, &project, &[])?;
        for name in [
            "spaces and \"quotes\" $HOME *?[x]",
            "ümläut-✓",
            ".hidden/-dash",
            "no files",
            "fifo",
            &"n".repeat(255),
        ] {
            ensure!(tree.path().join(name).exists(), "{name} is missing");
        }
        ensure!(std::fs::read_link(tree.path().join("dangling"))?.as_os_str() == "nowhere");
        ensure!(std::fs::read_link(tree.path().join("escaping"))?.as_os_str() == "../../../../etc/shadow");
        ensure!(std::fs::metadata(tree.path().join("linked"))?.permissions().mode() & 0o7777 == 0o2640);
    }
    Ok(())
}

fn from_standard_input(bench: &Bench) -> Result<()> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in [("Dockerfile", "FROM scratch\nCOPY data /\n"), ("data", "from a tar file")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, name, data.as_bytes())?;
    }
    let out = tempfile::TempDir::with_prefix("bk-out-")?;
    let output = format!("--output=type=local,dest={}", out.path().display());
    let command = bench.buildx.command(&[
        "build",
        "--builder",
        "bench",
        "--provenance=false",
        "--progress=plain",
        &output,
        "-",
    ]);
    integration::process::run_with(command, &tar.into_inner()?)?.ok()?;
    ensure!(text(&out, "data")? == "from a tar file");
    let command = bench.buildx.command(&[
        "build",
        "--builder",
        "bench",
        "--provenance=false",
        "--progress=plain",
        &output,
        "-",
    ]);
    integration::process::run_with(command, b"FROM busybox\nRUN echo only a Dockerfile >/only\n")?.ok()?;
    ensure!(text(&out, "only")? == "only a Dockerfile\n");
    Ok(())
}

fn one_large_file(bench: &Bench) -> Result<()> {
    let project = Project::new(
        "FROM busybox AS a\nCOPY large /\nRUN md5sum </large >/sum\nFROM scratch\nCOPY --from=a /sum /large /\n",
    )?;
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut content = Vec::new();
    for round in 0..100_u8 {
        content.push(round);
        content.extend_from_slice(&block);
    }
    project.write("large", &content)?;
    let tree = bench.export(Buildctl, &project, &[])?;
    ensure!(std::fs::read(tree.path().join("large"))? == content);
    Ok(())
}
