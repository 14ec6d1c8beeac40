//! Podman's networks, through the library that sets them up for podman: a plugin `netavark`
//! whose configuration holds a network as podman writes it down.
//!
//! Bridges and rules are netavark's and so the same that podman's containers get. Ours is what
//! the library leaves to its caller: addresses, from `host-local`, and that nothing is left
//! when half of it fails. Ports of a bridge are isolated from each other, and the host's loopback
//! from all of them: netavark has the kernel route to it, for ports that are forwarded from there.
//! Name servers are the host's: `aardvark-dns`, which knows the names of podman's containers,
//! is not asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cni::result::Interface;
use cni::{
    BridgeConfig, Bundled, Call, Command, DefaultNetwork, Error, NetworkConfig, NetworkResult, Plugin,
    PluginError,
};
use netavark::error::NetavarkError;
use netavark::firewall::{FirewallDriver, get_supported_firewall_driver};
use netavark::network::core_utils::{open_host_netlink_socket, open_netlink_sockets};
use netavark::network::driver::{DriverInfo, get_network_driver};
use netavark::network::types::{Network, PerNetworkOptions};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bundled::Plugins;
use crate::conf::{failed, netns, netns_path, previous, read};
use crate::container::{check_addresses, existing, interface, open, remove_link, wait_for};
use crate::ipam;

/// The type of the plugin.
const KIND: &str = "netavark";
const VERSION: &str = "1.0.0";
const BRIDGE: &str = "bridge";
/// Where `aardvark-dns` would listen, which rules let through.
const DNS_PORT: u16 = 53;
/// Longest name of an interface, in bytes.
const NAME: usize = 15;

/// Reads a network that podman has written down, usually below `/etc/containers/networks`.
/// Addresses that are taken and what netavark remembers are kept below `state`.
///
/// # Errors
/// When the file cannot be read, or holds no network that steps could be put into.
pub fn network(path: &Path, state: &Path) -> Result<NetworkConfig, Error> {
    let place = path.display().to_string();
    parse(&cni::config::read(path)?, &place, state)
}

fn parse(text: &[u8], place: &str, state: &Path) -> Result<NetworkConfig, Error> {
    let wrong = |message: String| Error::Config { place: place.to_owned(), message };
    let mut network: Network =
        serde_json::from_slice(text).map_err(|e| wrong(format!("not a network of podman: {e}")))?;
    if ![BRIDGE, "macvlan", "ipvlan"].contains(&network.driver.as_str()) {
        return Err(wrong(format!("driver {:?}: expected bridge, macvlan or ipvlan", network.driver)));
    }
    let name = network.network_interface.as_deref().unwrap_or_default();
    let named = name.len() <= NAME && !name.contains(['/', '\0', ' ']) && !matches!(name, "." | "..");
    if !named || (name.is_empty() && network.driver == BRIDGE) {
        return Err(wrong(format!("network_interface {name:?} is no name of an interface")));
    }
    // It becomes the name of a file.
    if network.id.is_empty() || !network.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(wrong(format!("id {:?} is not of letters and digits", network.id)));
    }
    let subnets = network.subnets.as_deref().unwrap_or_default();
    let driver = network.ipam_options.as_ref().and_then(|o| o.get("driver")).map_or("", String::as_str);
    let ipam = match driver {
        "none" => Value::Null,
        "" | "host-local" if subnets.is_empty() => return Err(wrong("subnets are missing".into())),
        "" | "host-local" => {
            let range = |subnet: &netavark::network::types::Subnet| {
                let lease = subnet.lease_range.as_ref();
                json!([{
                    "subnet": subnet.subnet,
                    "gateway": subnet.gateway,
                    "rangeStart": lease.and_then(|l| l.start_ip.as_ref()),
                    "rangeEnd": lease.and_then(|l| l.end_ip.as_ref()),
                }])
            };
            let ranges: Vec<Value> = subnets.iter().map(range).collect();
            json!({"type": "host-local", "ranges": ranges, "dataDir": state.join("ipam")})
        }
        other => return Err(wrong(format!("ipam_options: driver {other:?}: expected host-local or none"))),
    };
    network.dns_enabled = false;
    let mut plugin = json!({"type": KIND, "network": network, "stateDir": state.join(KIND)});
    if !ipam.is_null() {
        plugin["ipam"] = ipam;
    }
    let list = json!({"cniVersion": VERSION, "name": network.name, "plugins": [plugin]});
    NetworkConfig::parse(list.to_string().as_bytes(), place)
}

/// The bundled plugins, and `netavark`.
pub struct Backend {
    plugins: Arc<Plugins>,
    /// Netavark reads rules before it adds those that are missing.
    turn: Arc<Mutex<()>>,
}

impl Backend {
    /// With these for everything else.
    pub fn new(plugins: Arc<Plugins>) -> Arc<Self> {
        Arc::new(Self { plugins, turn: Arc::default() })
    }
}

impl Bundled for Backend {
    fn plugin(&self, kind: &str) -> Option<Arc<dyn Plugin>> {
        if kind == KIND {
            return Some(Arc::new(Netavark { plugins: self.plugins.clone(), turn: self.turn.clone() }));
        }
        self.plugins.plugin(kind)
    }

    fn is_own_program(&self, program: &Path) -> bool {
        self.plugins.is_own_program(program)
    }

    fn remove_links(&self, names: &[String]) -> Result<(), Error> {
        self.plugins.remove_links(names)
    }

    fn default_network(&self, wanted: &BridgeConfig) -> Result<DefaultNetwork, Error> {
        self.plugins.default_network(wanted)
    }

    fn remove_default_network(&self, network: &DefaultNetwork) -> Result<(), Error> {
        self.plugins.remove_default_network(network)
    }
}

struct Netavark {
    plugins: Arc<Plugins>,
    turn: Arc<Mutex<()>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conf {
    network: Network,
    state_dir: PathBuf,
}

impl Plugin for Netavark {
    fn call(&self, call: &Call<'_>) -> Result<Option<NetworkResult>, PluginError> {
        let plugins = self.plugins.as_ref();
        match call.command {
            Command::Add => {
                let conf: Conf = read(call)?;
                netns(call)?;
                let addresses = ipam::add(plugins, call)?.unwrap_or_default();
                match self.connect(call, &conf, addresses) {
                    Ok(result) => Ok(Some(result)),
                    Err(e) => {
                        // It leaves what it has made when it fails.
                        if let Err(undo) = self.disconnect(call, &conf, Vec::new()) {
                            tracing::warn!(error = %undo, "undo half of a network of podman's");
                        }
                        ipam::undo(plugins, call);
                        Err(e)
                    }
                }
            }
            Command::Del => {
                let conf: Conf = read(call)?;
                let ips = previous(call)?.unwrap_or_default().ips;
                let disconnected =
                    self.disconnect(call, &conf, ips.iter().map(|ip| ip.address.addr).collect());
                // In any case, and last: nobody else may have them before.
                let given_back = ipam::pass_on(plugins, call);
                disconnected.and(given_back).map(|()| None)
            }
            Command::Check => {
                ipam::pass_on(plugins, call)?;
                check_addresses(call).map(|()| None)
            }
            Command::Gc | Command::Status => ipam::pass_on(plugins, call).map(|()| None),
            Command::Version => Ok(None),
        }
    }
}

impl Netavark {
    fn connect(
        &self,
        call: &Call<'_>,
        conf: &Conf,
        addresses: NetworkResult,
    ) -> Result<NetworkResult, PluginError> {
        let sandbox = netns_path(call)?;
        let path = sandbox.to_string_lossy();
        let options = options(call, addresses.ips.iter().map(|ip| ip.address.addr).collect());
        let turn = self.turn.lock();
        for address in guarded(conf, options.static_ips.iter().flatten()) {
            self.plugins.rules.guard_loopback(bridge(conf), address)?;
        }
        let status = alone(|| {
            let firewall = get_supported_firewall_driver(None)?;
            let (mut host, mut inside) = open_netlink_sockets(&path)?;
            let sandbox = Some((inside.file.as_fd(), path.as_ref()));
            let info = info(call, conf, &options, firewall.as_ref(), host.file.as_fd(), sandbox);
            let mut driver = get_network_driver(info, &None)?;
            driver.validate()?;
            Ok(driver.setup((&mut host.netlink, &mut inside.netlink))?.0)
        })?;
        drop(turn);
        let mut interfaces = Vec::new();
        if conf.network.driver == BRIDGE {
            let mut host = open()?;
            let port = existing(&mut host, &port_name(call))?;
            host.set_port(port.index, false, true).map_err(failed("isolate a port of the bridge"))?;
            wait_for(&mut host, &port.name)?;
            interfaces.push(interface(&port, Path::new("")));
        }
        let made = status.interfaces.unwrap_or_default();
        let mac = made.get(&call.attachment.ifname).map(|i| i.mac_address.clone()).unwrap_or_default();
        let mut ips = addresses.ips;
        ips.iter_mut().for_each(|ip| ip.interface = Some(interfaces.len()));
        interfaces.push(Interface {
            name: call.attachment.ifname.clone(),
            mac,
            sandbox: path.into_owned(),
            ..Interface::default()
        });
        Ok(NetworkResult { interfaces, ips, ..NetworkResult::default() })
    }

    /// Removes the container's interface, its rules, and the bridge when it was the last.
    fn disconnect(&self, call: &Call<'_>, conf: &Conf, ips: Vec<IpAddr>) -> Result<(), PluginError> {
        let options = options(call, ips);
        let _turn = self.turn.lock();
        let mut host = open()?;
        let bridge = bridge(conf);
        let mut there = true;
        if conf.network.driver == BRIDGE {
            host.delete(&port_name(call)).map_err(failed("remove port of the bridge"))?;
            there = host.link(bridge).map_err(failed("look for bridge"))?.is_some();
        } else {
            remove_link(call)?;
        }
        let done = alone(|| {
            let firewall = get_supported_firewall_driver(None)?;
            let mut host = open_host_netlink_socket()?;
            let info = info(call, conf, &options, firewall.as_ref(), host.file.as_fd(), None);
            get_network_driver(info, &None)?.teardown((&mut host.netlink, None))
        });
        for address in guarded(conf, options.static_ips.iter().flatten()) {
            self.plugins.rules.leave_loopback(bridge, Some(address))?;
        }
        if conf.network.driver == BRIDGE && host.link(bridge).map_err(failed("look for bridge"))?.is_none() {
            self.plugins.rules.leave_loopback(bridge, None)?;
        }
        match done {
            // Nothing is left to be taken down, which it calls an error.
            Err(e) if !there => {
                tracing::debug!(bridge, error = %e, "the bridge was gone");
                Ok(())
            }
            done => done,
        }
    }
}

fn bridge(conf: &Conf) -> &str {
    conf.network.network_interface.as_deref().unwrap_or_default()
}

/// Those of a container's addresses from which the host's loopback could be reached.
fn guarded<'a>(conf: &Conf, ips: impl Iterator<Item = &'a IpAddr>) -> impl Iterator<Item = IpAddr> {
    let is_bridge = conf.network.driver == BRIDGE;
    ips.copied().filter(move |ip| is_bridge && ip.is_ipv4())
}

/// Runs netavark on a thread of its own: it enters the container's namespace, and when
/// something fails there it stays in it.
fn alone<T: Send>(work: impl FnOnce() -> Result<T, NetavarkError> + Send) -> Result<T, PluginError> {
    let thread = || work().map_err(|e| PluginError::other(format!("netavark: {e}")));
    std::thread::scope(|scope| scope.spawn(thread).join())
        .unwrap_or_else(|_| Err(PluginError::other("netavark panicked")))
}

/// The host's end of a container's pair of interfaces, the same for every call.
fn port_name(call: &Call<'_>) -> String {
    let whose = format!("{}\n{}", call.attachment.container_id, call.attachment.ifname);
    let hash = base::Digest::of(whose);
    let digits: String = hash.hex().chars().take(NAME - 4).collect();
    format!("veth{digits}")
}

fn options(call: &Call<'_>, static_ips: Vec<IpAddr>) -> PerNetworkOptions {
    PerNetworkOptions {
        aliases: None,
        interface_name: call.attachment.ifname.clone(),
        static_ips: Some(static_ips),
        static_mac: None,
        options: Some(HashMap::from([("host_interface_name".to_owned(), port_name(call))])),
    }
}

/// Everything netavark wants to know; `sandbox` is the container's namespace and its file.
fn info<'a>(
    call: &'a Call<'_>,
    conf: &'a Conf,
    options: &'a PerNetworkOptions,
    firewall: &'a dyn FirewallDriver,
    host: BorrowedFd<'a>,
    sandbox: Option<(BorrowedFd<'a>, &'a str)>,
) -> DriverInfo<'a> {
    DriverInfo {
        firewall,
        container_id: &call.attachment.container_id,
        container_name: &call.attachment.container_id,
        container_dns_servers: &None,
        netns_host: host,
        netns_container: sandbox.map(|(fd, _)| fd),
        netns_path: sandbox.map_or("", |(_, path)| path),
        network: &conf.network,
        per_network_opts: options,
        port_mappings: &None,
        dns_port: DNS_PORT,
        config_dir: &conf.state_dir,
        rootless: false,
        container_hostname: &None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NETWORK: &str = r#"{
        "name": "build", "id": "aa55", "driver": "bridge", "network_interface": "podman7",
        "created": "2026-11-21T10:00:00Z", "ipv6_enabled": false, "internal": false, "dns_enabled": true,
        "subnets": [{"subnet": "10.89.7.0/24", "gateway": "10.89.7.1",
                     "lease_range": {"start_ip": "10.89.7.100", "end_ip": "10.89.7.200"}}],
        "ipam_options": {"driver": "host-local"}
    }"#;

    fn read(text: &str) -> Result<NetworkConfig, Error> {
        parse(text.as_bytes(), "build.json", Path::new("/state"))
    }

    #[test]
    fn a_network_of_podman_becomes_a_list_of_one_plugin() {
        let config = read(NETWORK).unwrap();
        assert_eq!((config.name.as_str(), config.plugins.len()), ("build", 1));
        let fields = &config.plugins[0].fields;
        assert_eq!(fields["ipam"]["ranges"][0][0]["rangeStart"], "10.89.7.100");
        assert_eq!(fields["ipam"]["dataDir"], "/state/ipam");
        assert_eq!(fields["network"]["dns_enabled"], false);
        assert_eq!(fields["network"]["subnets"][0]["gateway"], "10.89.7.1");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (from, to, named) in [
            (r#""driver": "bridge""#, r#""driver": "weird""#, "driver"),
            ("podman7", "../podman7", "network_interface"),
            ("podman7", "a-name-too-long-for-it", "network_interface"),
            ("aa55", "../../etc", "id"),
            (r#"{"driver": "host-local"}"#, r#"{"driver": "dhcp"}"#, "ipam_options"),
            (r#""name": "build""#, r#""name": "a/b""#, "name"),
            (r#""driver": "bridge","#, "", "driver"),
            ("10.89.7.0/24", "10.89.7.0/99", "podman"),
        ] {
            let error = read(&NETWORK.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains("build.json") && error.contains(named), "{error}");
        }
        assert!(parse(b"[", "x", Path::new("/")).is_err());
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(json!([{"subnet": "fd00::/64"}])),
            Just(json!([{"subnet": "10.0.0.0/0", "lease_range": {"start_ip": "x"}}])),
            Just(json!({"driver": "none"})),
            Just(json!({"mtu": -1, "isolate": "maybe"})),
        ]
    }

    proptest! {
        #[test]
        fn any_network_is_read_or_refused(at in 0_usize..11, value in value()) {
            let mut network: Value = serde_json::from_str(NETWORK).unwrap();
            let fields = network.as_object_mut().unwrap();
            let key = fields.keys().nth(at).cloned().unwrap_or_else(|| "options".to_owned());
            fields.insert(key, value);
            if let Ok(config) = read(&network.to_string()) {
                prop_assert_eq!(&config.plugins[0].kind, KIND);
                prop_assert!(!config.plugins[0].fields["network"]["id"].as_str().unwrap().contains('/'));
            }
        }
    }
}
