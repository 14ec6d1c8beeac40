//! `loopback`: the interface `lo`, set up; with further addresses where the runtime
//! asks for some.

use cni::result::{Address, Interface};
use cni::{Call, Cidr, Code, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::conf::{failed, failed_io, failed_sys, netns, netns_path, previous, read};
use crate::netlink::Socket;

const NAME: &str = "lo";

pub(crate) struct Loopback;

#[derive(Deserialize)]
struct Conf {
    #[serde(rename = "runtimeConfig", default)]
    runtime: Runtime,
}

#[derive(Deserialize, Default)]
struct Runtime {
    #[serde(default)]
    ips: Vec<String>,
}

impl Plugin for Loopback {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        match call.command {
            Command::Add => add(call).map(Some),
            Command::Check => check(call).map(|()| None),
            // It ends with the namespace.
            _ => Ok(None),
        }
    }
}

fn add(call: &Call<'_>) -> Result<NetworkResult, PluginError> {
    let mut socket =
        netns(call)?.run(Socket::route).map_err(failed_sys)?.map_err(failed_io("open netlink socket"))?;
    let link = find(&mut socket)?;
    socket.set_up(link).map_err(failed("set lo up"))?;
    for text in read::<Conf>(call)?.runtime.ips {
        let invalid = |_| PluginError::new(Code::InvalidConfig, format!("invalid address {text:?}"));
        let address = text.parse().map_err(invalid)?;
        socket.add_address(link, address).map_err(failed("add address to lo"))?;
    }
    if let Some(previous) = previous(call)? {
        return Ok(previous);
    }
    let ips = socket
        .addresses()
        .map_err(failed("list addresses"))?
        .into_iter()
        .filter(|(index, _)| *index == link)
        .map(|(_, address): (u32, Cidr)| Address { interface: Some(0), address, gateway: None })
        .collect();
    let interface = Interface {
        name: NAME.into(),
        mac: "00:00:00:00:00:00".into(),
        sandbox: netns_path(call)?.to_string_lossy().into_owned(),
        ..Interface::default()
    };
    Ok(NetworkResult { interfaces: vec![interface], ips, ..NetworkResult::default() })
}

fn check(call: &Call<'_>) -> Result<(), PluginError> {
    let mut socket =
        netns(call)?.run(Socket::route).map_err(failed_sys)?.map_err(failed_io("open netlink socket"))?;
    let link = socket.link(NAME).map_err(failed("look for lo"))?;
    match link {
        Some(link) if link.up => Ok(()),
        _ => Err(PluginError::new(Code::Other, "interface lo is not up")),
    }
}

fn find(socket: &mut Socket) -> Result<u32, PluginError> {
    let link = socket.link(NAME).map_err(failed("look for lo"))?;
    link.map(|l| l.index).ok_or_else(|| PluginError::other("there is no interface lo"))
}
