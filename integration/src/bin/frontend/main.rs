//! A frontend for tests: what it does is what the option `mode` says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use integration::gateway::{Gateway, Process, bind, stdio};
use llb::build::{Defaults, Image, Run};
use prost::Message as _;
use proto::gateway as msg;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let opts: BTreeMap<String, String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, option)| option.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let word = opts.get("word").map_or("nothing", String::as_str);
    match opts.get("mode").map_or("build", String::as_str) {
        "exit" => {
            eprintln!("this frontend gives up");
            std::process::exit(3);
        }
        "silent" => return Ok(()),
        _ => {}
    }
    let gateway = Gateway::new(stdio().await?, None);
    let mut client = gateway.client.clone();
    match opts.get("mode").map_or("build", String::as_str) {
        "error" => {
            let error =
                proto::google::rpc::Status { code: 5, message: format!("no {word} here"), details: vec![] };
            client.r#return(msg::ReturnRequest { result: None, error: Some(error) }).await?;
        }
        "unknown" => {
            let refused = gateway.finish("no-such-result", &[]).await.err().context("taken")?;
            gateway.finish("", &[("frontend.refused", refused.message())]).await?;
        }
        "container" => {
            let root = gateway.solve(busybox()?, false).await?;
            gateway.open("c", vec![bind(&root, "/")]).await?;
            let said =
                gateway.exec("c", Process::shell(&format!("echo {word} from a container"))).await?.ok()?;
            gateway.finish("", &[("frontend.said", said.trim())]).await?;
        }
        "build" => {
            let pong = client.ping(msg::PingRequest {}).await?.into_inner();
            let can = |id: &str| pong.frontend_api_caps.iter().any(|c| c.id == id && c.enabled);
            if !can("gateway.exec") || !can("return") {
                bail!("capabilities are missing");
            }
            // Its own image is a definition in a file.
            let own = std::fs::read("/run/config/buildkit/metadata/frontend.bin")?;
            let own = proto::pb::Definition::decode(own.as_slice())?;
            std::env::var("BUILDKIT_SESSION_ID")?;
            let workers: serde_json::Value = serde_json::from_str(&std::env::var("BUILDKIT_WORKERS")?)?;
            let platform =
                workers.pointer("/0/platforms/0/os").and_then(|os| os.as_str()).unwrap_or_default();
            let inputs = client.inputs(msg::InputsRequest {}).await?.into_inner().definitions;
            let script = format!("echo {word} > /made; ln -s made /link");
            let args = ["/bin/sh", "-c", script.as_str()].map(str::to_owned).to_vec();
            let run = Run { args: Some(args), ..Run::default() };
            let state = Image::default().state("busybox")?.run(run);
            let made = gateway.solve(state.root().marshal(&Defaults::default())?, false).await?;
            client.evaluate(msg::EvaluateRequest { r#ref: made.clone() }).await?;
            let read = msg::ReadFileRequest {
                r#ref: made.clone(),
                file_path: "/link".into(),
                ..msg::ReadFileRequest::default()
            };
            let read = client.read_file(read).await?.into_inner().data;
            let names: Vec<String> = inputs.into_keys().collect();
            let said = format!(
                "{}/{platform}/{}/{}",
                String::from_utf8_lossy(&read).trim(),
                own.def.len(),
                names.join(",")
            );
            gateway.finish(&made, &[("frontend.said", &said)]).await?;
        }
        other => bail!("no mode {other}"),
    }
    Ok(())
}

fn busybox() -> Result<proto::pb::Definition> {
    Ok(Image::default().state("busybox")?.marshal(&Defaults::default())?)
}
