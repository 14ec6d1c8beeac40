//! Clients over TCP: those who can show who they are are served, others are not.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};

use anyhow::{Result, ensure};
use integration::certificates::{Authority, EXPIRED, Pair, VALID};
use integration::registry::free_port;
use integration::{Buildctl, Buildx, Daemon, Net, Options, Project, Run, suite, wait_for};
use tempfile::TempDir;

const HERE: &str = "DNS:localhost,IP:127.0.0.1";

struct Bench {
    daemon: Daemon,
    port: u16,
    authority: Authority,
    client: Pair,
    /// Where the daemon's certificate and key are.
    dir: TempDir,
    buildctl: Buildctl,
    /// One case has the daemon's certificate to itself.
    turn: RwLock<()>,
}

impl Bench {
    fn start() -> Result<Self> {
        let authority = Authority::new()?;
        let dir = TempDir::with_prefix("bk-tls-")?;
        install(&authority.sign("daemon", HERE, VALID)?, dir.path())?;
        let client = authority.sign("client", "DNS:client", VALID)?;
        let port = free_port()?;
        let file = |name: &str| dir.path().join(name).display().to_string();
        let args = vec![
            format!("--addr=tcp://127.0.0.1:{port}"),
            format!("--tlscert={}", file("cert.pem")),
            format!("--tlskey={}", file("key.pem")),
            format!("--tlscacert={}", authority.cert().display()),
        ];
        let daemon = Daemon::start(Options { net: Net::Host, args, ..Options::default() })?;
        let buildctl = Buildctl::new(&daemon)?;
        Ok(Self { daemon, port, authority, client, dir, buildctl, turn: RwLock::new(()) })
    }

    /// `buildctl debug workers` over TCP, trusting `ca`, showing `pair`.
    fn ask(&self, ca: &Path, pair: Option<&Pair>) -> Result<Run> {
        let addr = format!("--addr=tcp://localhost:{}", self.port);
        let mut command = self.buildctl.command(&[&addr, "debug", "workers"]);
        command.arg("--tlscacert").arg(ca);
        if let Some(pair) = pair {
            command.arg("--tlscert").arg(&pair.cert).arg("--tlskey").arg(&pair.key);
        }
        integration::process::run(command)
    }
}

/// Puts a certificate where the daemon looks for its own.
fn install(pair: &Pair, dir: &Path) -> Result<()> {
    std::fs::copy(&pair.cert, dir.join("cert.pem"))?;
    std::fs::copy(&pair.key, dir.join("key.pem"))?;
    Ok(())
}

fn main() -> ExitCode {
    suite::main(
        Bench::start,
        &[
            ("who_shows_a_good_certificate_is_served", good),
            ("buildx_builds_over_tls", buildx),
            ("others_are_refused", refused),
            ("certificates_are_replaced_without_a_restart", replaced),
        ],
        |mut bench| bench.daemon.stop(),
    )
}

fn good(b: &Bench) -> Result<()> {
    let _turn = b.turn.read().unwrap_or_else(PoisonError::into_inner);
    ensure!(b.ask(&b.authority.cert(), Some(&b.client))?.ok()?.contains("linux/"));
    // The same from a directory, by the names that Kubernetes uses.
    let dir = TempDir::with_prefix("bk-tlsdir-")?;
    std::fs::copy(b.authority.cert(), dir.path().join("ca.crt"))?;
    std::fs::copy(&b.client.cert, dir.path().join("tls.crt"))?;
    std::fs::copy(&b.client.key, dir.path().join("tls.key"))?;
    let (addr, tls) = (format!("--addr=tcp://localhost:{}", b.port), dir.path().display().to_string());
    b.buildctl.run(&[&addr, "--tlsdir", &tls, "debug", "workers"])?.ok()?;
    Ok(())
}

fn buildx(b: &Bench) -> Result<()> {
    let _turn = b.turn.read().unwrap_or_else(PoisonError::into_inner);
    let buildx = Buildx::new(&b.daemon)?;
    let addr = format!("tcp://localhost:{}", b.port);
    let options = format!(
        "cacert={},cert={},key={}",
        b.authority.cert().display(),
        b.client.cert.display(),
        b.client.key.display()
    );
    buildx.run(&["create", "--name=tls", "--driver=remote", "--driver-opt", &options, &addr])?.ok()?;
    let project = Project::new("FROM scratch\nCOPY file /\n")?.with("file", "x")?;
    let dir = project.dir().display().to_string();
    buildx.run(&["build", "--builder=tls", "--provenance=false", &dir])?.ok()?;
    Ok(())
}

fn refused(b: &Bench) -> Result<()> {
    let _turn = b.turn.read().unwrap_or_else(PoisonError::into_inner);
    let stranger = Authority::new()?;
    let ours = b.authority.cert();
    b.ask(&ours, None)?.fails_with(&[])?;
    b.ask(&ours, Some(&stranger.sign("client", "DNS:client", VALID)?))?.fails_with(&[])?;
    b.ask(&ours, Some(&b.authority.sign("late", "DNS:late", EXPIRED)?))?.fails_with(&[])?;
    // The client does not trust everybody either.
    b.ask(&stranger.cert(), Some(&b.client))?.fails_with(&["certificate"])?;
    // Nor is anything served without TLS.
    let addr = format!("--addr=tcp://localhost:{}", b.port);
    b.buildctl.run(&[&addr, "debug", "workers"])?.fails_with(&[])?;
    let log = b.daemon.log();
    ensure!(log.matches("TLS handshake").count() >= 3, "{log}");
    Ok(())
}

fn replaced(b: &Bench) -> Result<()> {
    let _turn = b.turn.write().unwrap_or_else(PoisonError::into_inner);
    // Signed by somebody else, so that one can tell.
    let other = Authority::new()?;
    let before =
        (std::fs::read(b.dir.path().join("cert.pem"))?, std::fs::read(b.dir.path().join("key.pem"))?);
    install(&other.sign("daemon", HERE, VALID)?, b.dir.path())?;
    let hangup = || -> Result<()> {
        let pid = i32::try_from(b.daemon.pid())?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| anyhow::anyhow!("no daemon"))?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::HUP)?)
    };
    hangup()?;
    let served = |ca: &Path| b.ask(ca, Some(&b.client)).ok()?.ok().ok();
    let patience = std::time::Duration::from_secs(10);
    wait_for("the new certificate", patience, || served(&other.cert()))?;
    // A key that does not fit is not used.
    std::fs::write(b.dir.path().join("key.pem"), &before.1)?;
    hangup()?;
    let complained = || b.daemon.log().contains("the configuration cannot be used").then_some(());
    wait_for("a complaint", patience, complained)?;
    ensure!(served(&other.cert()).is_some());
    // For the cases that come later.
    std::fs::write(b.dir.path().join("cert.pem"), &before.0)?;
    hangup()?;
    wait_for("the old certificate", patience, || served(&b.authority.cert()))?;
    Ok(())
}
