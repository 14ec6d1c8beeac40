//! What needs no API: `debug dump-llb` and `dial-stdio`.

use std::io::Read;
use std::time::Duration;

use base::{Failure, Kind};
use clap::Args;
use prost::Message;
use tokio::io::{AsyncWriteExt, copy, stdin, stdout};
use tokio::net::UnixStream;

use super::print;
use crate::cli::Global;

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// Output dot format
    #[arg(long)]
    dot: bool,
    /// A file with LLB; standard input when it is missing or -
    #[arg(value_name = "LLBFILE", default_value = "-")]
    file: String,
}

/// Prints LLB.
pub(crate) fn dump(args: DumpArgs) -> Result<(), Failure> {
    let definition = read_llb(&args.file)?;
    let mut out = Vec::new();
    let result =
        if args.dot { llb::dump::dot(&definition, &mut out) } else { llb::dump::json(&definition, &mut out) };
    result.map_err(|e| Failure::invalid(e.to_string()))?;
    print(out)
}

/// Reads LLB from a file; `-` is standard input.
pub(crate) fn read_llb(file: &str) -> Result<proto::pb::Definition, Failure> {
    let mut bytes = Vec::new();
    let read = match file {
        "-" | "" => std::io::stdin().lock().read_to_end(&mut bytes).map(drop),
        path => std::fs::read(path).map(|b| bytes = b),
    };
    read.map_err(|e| Failure::new(Kind::NotFound, format!("read {file}: {e}")))?;
    proto::pb::Definition::decode(bytes.as_slice())
        .map_err(|e| Failure::invalid(format!("failed to parse input: {e}")))
}

/// Copies between standard input and output and the daemon's socket, so that a
/// client elsewhere can use it.
pub(crate) async fn dial_stdio(global: &Global) -> Result<(), Failure> {
    let address = global.addr.as_str();
    let Some(path) = address.strip_prefix("unix://") else {
        return Err(Failure::invalid(format!("invalid address {address} (expected unix://)")));
    };
    let fail =
        |what: &str, e: &dyn std::fmt::Display| Failure::new(Kind::Unavailable, format!("{what}: {e}"));
    let limit = if global.timeout == 0 { Duration::MAX } else { Duration::from_secs(global.timeout) };
    let socket = match tokio::time::timeout(limit, UnixStream::connect(path)).await {
        Ok(socket) => socket.map_err(|e| fail(&format!("connect to {path}"), &e))?,
        Err(_) => return Err(fail(&format!("connect to {path}"), &"timed out")),
    };
    let (mut from_socket, mut to_socket) = socket.into_split();
    let up = async {
        copy(&mut stdin(), &mut to_socket).await?;
        to_socket.shutdown().await
    };
    let down = async {
        let mut out = stdout();
        copy(&mut from_socket, &mut out).await?;
        out.flush().await
    };
    tokio::pin!(down);
    // The daemon's end is the end; ours is not, as it may still answer.
    tokio::select! {
        result = &mut down => return result.map_err(|e| fail("copy from daemon", &e)),
        result = up => result.map_err(|e| fail("copy to daemon", &e))?,
    }
    down.await.map_err(|e| fail("copy from daemon", &e))
}
