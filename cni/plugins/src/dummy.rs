//! `dummy`: an interface that leads nowhere.

use std::sync::Weak;

use cni::result::Dns;
use cni::{Call, Command, NetworkResult, Plugin, PluginError};
use serde::Deserialize;

use crate::bundled::Plugins;
use crate::conf::{failed, failed_sys, netns, netns_path, read};
use crate::container::{configure, interface, open, remove_link, undo_link};
use crate::ipam;

pub(crate) struct Dummy(pub Weak<Plugins>);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Conf {
    mtu: u32,
    dns: Dns,
}

impl Plugin for Dummy {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.0.upgrade().ok_or_else(|| PluginError::other("plugins are gone"))?;
        match call.command {
            Command::Add => {
                let conf: Conf = read(call)?;
                let result = ipam::needed(plugins.as_ref(), call, "dummy")?;
                match add(call, &conf, result) {
                    Ok(result) => Ok(Some(result)),
                    Err(e) => {
                        ipam::undo(plugins.as_ref(), call);
                        undo_link(call);
                        Err(e)
                    }
                }
            }
            Command::Del => {
                let given_back = ipam::pass_on(plugins.as_ref(), call);
                if !call.namespace_ends {
                    remove_link(call)?;
                }
                given_back.map(|()| None)
            }
            Command::Version => Ok(None),
            _ => ipam::pass_on(plugins.as_ref(), call).map(|()| None),
        }
    }
}

fn add(call: &Call<'_>, conf: &Conf, mut result: NetworkResult) -> Result<NetworkResult, PluginError> {
    let ifname = &call.attachment.ifname;
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    let link = netns(call)?
        .run(|| {
            open()?
                .create(ifname, "dummy", conf.mtu)
                .map_err(failed(&format!("create interface {ifname}")))?;
            configure(ifname, &result.ips, &result.routes)
        })
        .map_err(failed_sys)??;
    result.interfaces = vec![interface(&link, netns_path(call)?)];
    if conf.dns != Dns::default() {
        result.dns = conf.dns.clone();
    }
    Ok(result)
}
