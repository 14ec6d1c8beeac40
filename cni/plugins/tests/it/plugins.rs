//! The same networks by Debian's plugins, by our program and by our code in this process:
//! all must do the same for a container.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use cni::chain::Chain;
use cni::{Attachment, Error, NetworkConfig, NetworkResult};
use cni_plugins::Plugins;
use cni_plugins::netlink::Socket;
use serde_json::{Value, json};
use sys::netns::NetNs;

use crate::support::{World, world};

/// Whose plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Debian,
    Program,
    InProcess,
}

pub(crate) const ALL: [Whose; 3] = [Whose::Debian, Whose::Program, Whose::InProcess];

const OURS: [&str; 12] = [
    "bridge",
    "host-local",
    "static",
    "loopback",
    "firewall",
    "portmap",
    "tuning",
    "bandwidth",
    "ptp",
    "macvlan",
    "ipvlan",
    "dummy",
];

/// A directory with our program under all its names. Copies of one file, not links to the
/// program: it has to be started.
pub(crate) fn installed(world: &World) -> PathBuf {
    let bin = world.dir.path().join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_buildkit-cni"), bin.join("plugins")).unwrap();
        for name in OURS {
            std::fs::hard_link(bin.join("plugins"), bin.join(name)).unwrap();
        }
    }
    bin
}

/// A container in a namespace of its own.
pub(crate) struct Container {
    pub(crate) ns: NetNs,
    pub(crate) attachment: Attachment,
}

impl Container {
    pub(crate) fn new(world: &World, id: &str) -> Self {
        let (ns, ()) = NetNs::create(crate::support::loopback).unwrap();
        let file = world.dir.path().join(format!("netns-{id}"));
        ns.bind(&file).unwrap();
        let attachment = Attachment {
            container_id: id.into(),
            netns: Some(file),
            ifname: "eth0".into(),
            ..Attachment::default()
        };
        Self { ns, attachment }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        _ = sys::netns::unbind(self.attachment.netns.as_deref().unwrap());
    }
}

pub(crate) fn chain(world: &World, whose: Whose, config: &Value) -> Chain {
    let path = match whose {
        Whose::Debian => vec!["/usr/lib/cni".into()],
        Whose::Program => vec![installed(world)],
        Whose::InProcess => Vec::new(),
    };
    Chain::new(NetworkConfig::parse(config.to_string().as_bytes(), "test").unwrap(), path, Plugins::new())
}

/// What a program says, in this thread's namespace.
pub(crate) fn said(line: &str) -> String {
    let mut words = line.split(' ');
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Connects, looks, disconnects; nothing of it may be left.
fn connected(
    world: &World,
    whose: Whose,
    config: &Value,
    look: impl FnOnce(&Container, &NetworkResult),
) -> Result<(), Error> {
    let before = said("ip -4 -o addr") + &said("ip route");
    let chain = chain(world, whose, config);
    let container = Container::new(world, "c1");
    let result = chain.add(&container.attachment)?;
    chain.check(&container.attachment, &result).unwrap();
    look(&container, &result);
    chain.del(&container.attachment, Some(&result), false).unwrap();
    chain.del(&container.attachment, Some(&result), false).unwrap();
    let after = || said("ip -4 -o addr") + &said("ip route");
    assert_eq!(after(), before, "{whose:?}");
    assert!(world.rules().iter().all(|t| !t.contains("cni-")), "{whose:?}: {:?}", world.rules());
    Ok(())
}

fn host_local(world: &World, subnet: &str, whose: Whose) -> Value {
    let dir = world.dir.path().join(format!("ipam-{whose:?}"));
    json!({"type": "host-local", "subnet": subnet, "dataDir": dir})
}

#[test]
fn ptp() {
    world(|world| async move {
        for whose in ALL {
            let mut ipam = host_local(&world, "10.80.0.0/24", whose);
            ipam["routes"] = json!([{"dst": "0.0.0.0/0"}]);
            let config = json!({"cniVersion": "0.4.0", "name": "cable", "plugins": [
                {"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": ipam},
            ]});
            connected(&world, whose, &config, |c, result| {
                assert_eq!((result.interfaces.len(), result.ips[0].interface), (2, Some(1)), "{whose:?}");
                assert_eq!(world.ask(&c.ns).unwrap(), World::HOST);
                let routes = c.ns.run(|| said("ip route")).unwrap();
                assert!(routes.contains("10.80.0.0/24 via 10.80.0.1"), "{whose:?}: {routes}");
                assert!(c.ns.run(|| said("ip link show eth0")).unwrap().contains("mtu 1400"));
            })
            .unwrap();
        }
    });
}

fn station(kind: &str, address: &str, mtu: u32) -> Value {
    json!({"cniVersion": "1.0.0", "name": kind, "plugins": [
        {"type": kind, "mtu": mtu, "ipam": {"type": "static",
            "addresses": [{"address": address, "gateway": "203.0.113.2"}], "routes": [{"dst": "0.0.0.0/0"}]}},
    ]})
}

#[test]
fn macvlan_and_ipvlan() {
    world(|world| async move {
        for whose in ALL {
            for (kind, address) in [("macvlan", "203.0.113.50"), ("ipvlan", "203.0.113.51")] {
                let config = station(kind, &format!("{address}/24"), 1400);
                let done = connected(&world, whose, &config, |c, result| {
                    assert_eq!((result.interfaces.len(), result.ips[0].interface), (1, Some(0)));
                    // It is there with its own address.
                    assert_eq!(world.ask(&c.ns).unwrap().to_string(), address, "{whose:?} {kind}");
                    let link = c.ns.run(|| said("ip -d link show eth0")).unwrap();
                    assert!(link.contains(kind) && link.contains("mtu 1400"), "{link}");
                });
                if let Err(e) = done {
                    assert!(!world.makes(kind), "{whose:?}: {e}");
                    if whose != Whose::Debian {
                        assert!(e.to_string().contains(&format!("this kernel has no {kind}")), "{e}");
                    }
                }
                let error = chain(&world, whose, &station(kind, "203.0.113.50/24", 9000))
                    .add(&Container::new(&world, "c2").attachment)
                    .unwrap_err()
                    .to_string();
                assert!(whose == Whose::Debian || error.contains("mtu 9000 is larger"), "{error}");
            }
        }
        let config = json!({"cniVersion": "1.0.0", "name": "m", "type": "macvlan", "mode": "sideways"});
        let error = chain(&world, Whose::InProcess, &config)
            .add(&Container::new(&world, "c3").attachment)
            .unwrap_err();
        assert!(error.to_string().contains("sideways"), "{error}");
    });
}

#[test]
fn bandwidth() {
    world(|world| async move {
        let mut told = Vec::new();
        for whose in ALL {
            let config = json!({"cniVersion": "1.0.0", "name": "slow", "plugins": [
                {"type": "bridge", "bridge": "slow0", "isDefaultGateway": true, "ipMasq": true,
                 "ipam": host_local(&world, "10.81.0.0/24", whose)},
                {"type": "bandwidth", "capabilities": {"bandwidth": true},
                 "ingressRate": 8_000_000, "ingressBurst": 800_000,
                 "egressRate": 4_000_000, "egressBurst": 400_000},
            ]});
            let chain = chain(&world, whose, &config);
            let container = Container::new(&world, "c1");
            let result = chain.add(&container.attachment).unwrap();
            chain.check(&container.attachment, &result).unwrap();
            // Both ways are open, through the limits.
            assert_eq!(world.ask(&container.ns).unwrap(), World::HOST, "{whose:?}");
            let limits = |name: &str| {
                let said = said(&format!("tc qdisc show dev {name} root"));
                assert!(said.contains("tbf"), "{whose:?}: {name}: {said}");
                let words: Vec<_> =
                    said.split_whitespace().skip_while(|w| *w != "rate").map(str::to_owned).collect();
                words
            };
            let device = result.interfaces.iter().find(|i| i.name.starts_with("bwp")).unwrap().name.clone();
            told.push([limits(&result.interfaces[1].name), limits(&device)]);
            let passed = || -> u64 {
                let path = format!("/sys/class/net/{device}/statistics/tx_bytes");
                // The directory shows the namespace of whoever mounted it.
                let said = said(&format!("ip -s -j link show {device}"));
                let value: Value =
                    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{path}: {e}: {said}"));
                value[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
            };
            assert!(passed() > 0, "{whose:?}: what it sends is led through the device");
            chain.del(&container.attachment, Some(&result), false).unwrap();
            chain.del(&container.attachment, Some(&result), false).unwrap();
            assert!(!said("ip -o link").contains("bwp"), "{whose:?}");
            world.delete_link("slow0");
        }
        assert_eq!(told[1], told[2]);
        assert_eq!(told[0][0][..6], told[1][0][..6], "rate and burst are Debian's");

        // By the runtime's word, where the file has none.
        let config = json!({"cniVersion": "1.0.0", "name": "slow", "plugins": [
            {"type": "ptp", "ipam": host_local(&world, "10.81.0.0/24", Whose::InProcess)},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]});
        let mut container = Container::new(&world, "c2");
        let said_to = json!({"egressRate": 8_000_000, "egressBurst": 80_000});
        container.attachment.capabilities.insert("bandwidth".into(), said_to);
        container.attachment.capabilities.insert("unheard-of".into(), json!(1));
        for whose in ALL {
            let chain = chain(&world, whose, &config);
            let result = chain.add(&container.attachment).unwrap();
            assert!(!said(&format!("tc qdisc show dev {}", result.interfaces[0].name)).contains("tbf"));
            assert!(result.interfaces.iter().any(|i| i.name.starts_with("bwp")), "{whose:?}");
            chain.del(&container.attachment, Some(&result), false).unwrap();
        }
    });
}

#[test]
fn addresses_that_are_not_theirs() {
    world(|world| async move {
        for whose in ALL {
            let config = json!({"cniVersion": "1.0.0", "name": "held", "plugins": [
                {"type": "bridge", "bridge": "held0", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true,
                 "ipam": host_local(&world, "10.82.0.0/24", whose)},
            ]});
            let chain = chain(&world, whose, &config);
            let container = Container::new(&world, "c1");
            let result = chain.add(&container.attachment).unwrap();
            assert_eq!(world.ask(&container.ns).unwrap(), World::HOST, "{whose:?}");
            let other = "ip link set eth0 address 02:00:00:00:00:99";
            assert_eq!(container.ns.run(|| said(other)).unwrap(), "");
            let gateway = result.ips[0].gateway.unwrap();
            assert!(World::refuses(&container.ns, gateway, 1), "{whose:?}");
            assert!(world.refused_outside(&container.ns), "{whose:?}: a foreign hardware address is heard");
            chain.del(&container.attachment, Some(&result), false).unwrap();
            if whose != Whose::Debian {
                assert_eq!(world.rules(), Vec::<String>::new());
            }
            world.delete_link("held0");
            // Debian's leave chains behind that hold nothing.
            said("nft flush ruleset");
        }
    });
}

#[test]
fn a_bridge_keeps_its_address() {
    world(|world| async move {
        let config = json!({"cniVersion": "1.0.0", "name": "kept", "plugins": [
            {"type": "bridge", "bridge": "kept0", "isGateway": true,
             "ipam": host_local(&world, "10.85.0.0/24", Whose::InProcess)},
        ]});
        let chain = chain(&world, Whose::InProcess, &config);
        let address = || Socket::route().unwrap().link("kept0").unwrap().unwrap().mac;
        let containers: Vec<_> = (0..6).map(|n| Container::new(&world, &format!("k{n}"))).collect();
        let mut first = None;
        for container in &containers {
            chain.add(&container.attachment).unwrap();
            assert_eq!(address(), *first.get_or_insert_with(address));
        }
        for container in &containers {
            chain.del(&container.attachment, None, false).unwrap();
            assert_eq!(Some(address()), first);
        }
        world.delete_link("kept0");
    });
}

#[test]
fn vlans() {
    world(|world| async move {
        for whose in ALL {
            let config = json!({"cniVersion": "1.0.0", "name": "vlans", "plugins": [
                {"type": "bridge", "bridge": "vlans0", "isDefaultGateway": true, "ipMasq": true, "vlan": 100,
                 "ipam": host_local(&world, "10.83.0.0/24", whose)},
            ]});
            let chain = chain(&world, whose, &config);
            let container = Container::new(&world, "c1");
            match chain.add(&container.attachment) {
                Ok(result) => {
                    assert_eq!(world.ask(&container.ns).unwrap(), World::HOST, "{whose:?}");
                    let port = said(&format!("bridge vlan show dev {}", result.interfaces[1].name));
                    assert!(port.contains("100 PVID Egress Untagged"), "{whose:?}: {port}");
                    assert!(said("ip -o addr show vlans0.100").contains("10.83.0.1/24"), "{whose:?}");
                    chain.del(&container.attachment, Some(&result), false).unwrap();
                    world.delete_link("vlans0.100");
                    world.delete_link("vlans0");
                }
                Err(e) => {
                    assert!(!world.makes_vlan_bridges(), "{whose:?}: {e}");
                    assert!(
                        whose == Whose::Debian || e.to_string().contains("no bridges with VLANs"),
                        "{whose:?}: {e}"
                    );
                    said("ip link delete vlans0");
                }
            }
        }
        // Debian's alone: a VLAN of an interface of the host.
        let config = json!({"cniVersion": "1.0.0", "name": "v", "type": "vlan", "master": "up0", "vlanId": 5,
            "ipam": {"type": "static", "addresses": [{"address": "192.0.2.9/24"}]}});
        let chain = chain(&world, Whose::Debian, &config);
        let container = Container::new(&world, "c2");
        match chain.add(&container.attachment) {
            Ok(result) => {
                let link = container.ns.run(|| said("ip -d link show eth0")).unwrap();
                assert!(link.contains("id 5"), "{link}");
                chain.del(&container.attachment, Some(&result), false).unwrap();
            }
            Err(e) => assert!(!world.makes("vlan") && e.to_string().contains("\"vlan\" (ADD)"), "{e}"),
        }
    });
}

#[test]
fn loopback() {
    world(|world| async move {
        for whose in ALL {
            let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
            let container = Container::new(&world, "c1");
            let up = || container.ns.run(|| said("ip -o link show lo")).unwrap().contains("LOOPBACK,UP");
            container.ns.run(|| said("ip link set lo down")).unwrap();
            assert!(!up());
            let chain = chain(&world, whose, &config);
            let result = chain.add(&container.attachment).unwrap();
            assert!(up(), "{whose:?}");
            chain.check(&container.attachment, &result).unwrap();
            container.ns.run(|| said("ip link set lo down")).unwrap();
            assert!(chain.check(&container.attachment, &result).is_err(), "{whose:?}");
            chain.del(&container.attachment, Some(&result), false).unwrap();
        }
    });
}

/// Everything Debian's own list does at once, by all three, and with rules by iptables.
#[test]
fn chains_of_many() {
    world(|world| async move {
        for backend in ["iptables", "nftables"] {
            for whose in ALL {
                let ours = whose != Whose::Debian;
                let mut plugins = json!([
                    {"type": "bridge", "bridge": "many0", "isDefaultGateway": true, "ipMasq": true,
                     "hairpinMode": true, "ipam": host_local(&world, "10.84.0.0/24", whose)},
                    {"type": "tuning", "mac": "02:00:00:00:00:07", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
                    {"type": "firewall"},
                    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
                ]);
                if ours {
                    plugins[0]["ipMasqBackend"] = backend.into();
                    plugins[2] =
                        json!({"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"});
                    plugins[3]["backend"] = backend.into();
                } else {
                    plugins[1]["sysctl"] = json!({"net.ipv4.conf.eth0.arp_filter": "1"});
                }
                let config = json!({"cniVersion": "1.0.0", "name": "many", "plugins": plugins});
                let chain = chain(&world, whose, &config);
                let mut container = Container::new(&world, "c1");
                let server = World::listen(&container.ns);
                let ports = json!([{"hostPort": 8098, "containerPort": server.port, "protocol": "tcp"}]);
                container.attachment.capabilities.insert("portMappings".into(), ports);
                let result = chain.add(&container.attachment).unwrap();
                let name = format!("{whose:?} {backend}");
                assert_eq!(world.ask(&container.ns).unwrap(), World::HOST, "{name}");
                assert!(
                    container.ns.run(|| said("ip link show eth0")).unwrap().contains("02:00:00:00:00:07")
                );
                assert_eq!(
                    World::connect(&world.outside, World::HOST, 8098).unwrap(),
                    "203.0.113.2",
                    "{name}: a port of the host"
                );
                // By the host's port to itself.
                assert!(World::connect(&container.ns, World::HOST, 8098).is_ok(), "{name}: hairpin");
                let to = result.ips[0].address.addr;
                assert_eq!(World::refuses(&world.outside, to, server.port), ours, "{name}: from outside");
                chain.del(&container.attachment, Some(&result), false).unwrap();
                drop(server);
                assert!(World::refuses(&world.outside, World::HOST, 8098), "{name}: the port is closed");
                if ours {
                    let rules = said("iptables -t nat -S") + &said("iptables -S");
                    assert!(!rules.contains("-A "), "{name}: {rules}");
                }
                if ours && backend == "nftables" {
                    assert!(world.rules().iter().all(|t| !t.contains("cni-")), "{:?}", world.rules());
                }
                world.delete_link("many0");
                said("nft flush ruleset");
            }
        }
    });
}

/// The program asked for cannot be had: the error names it.
#[test]
fn rules_nobody_can_make() {
    world(|world| async move {
        let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "none0",
            "isGateway": true, "ipMasq": true, "ipMasqBackend": "iptables",
            "ipam": host_local(&world, "10.85.0.0/24", Whose::Program)});
        let container = Container::new(&world, "c1");
        let run = |user: u32| {
            use std::io::Write;
            use std::os::unix::process::CommandExt;
            let mut command = Command::new(installed(&world).join("bridge"));
            command.env_clear().env("PATH", "/nowhere").uid(user);
            command.envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
            command.env("CNI_NETNS", container.attachment.netns.as_deref().unwrap());
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            let out = child.wait_with_output().unwrap();
            assert!(!out.status.success());
            let error: Value = serde_json::from_slice(&out.stdout).unwrap();
            error["msg"].as_str().unwrap().to_owned()
        };
        let message = run(0);
        assert!(message.contains("iptables: No such file"), "{message}");
        assert!(!container.ns.run(|| said("ip link show eth0")).unwrap().contains("mtu"), "half-made");
        world.delete_link("none0");
        // Nobody may do this but root: the directory it starts with is named.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(world.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let message = run(65534);
        assert!(message.contains("ermission denied") || message.contains("not permitted"), "{message}");
        assert!(!said("ip link").contains("none0"));
    });
}

#[test]
fn ranges_that_are_used_up() {
    world(|world| async move {
        for whose in ALL {
            let config = json!({"cniVersion": "1.0.0", "name": "small", "type": "bridge", "bridge": "small0",
                "ipam": host_local(&world, "10.86.0.0/30", whose)});
            let chain = Arc::new(chain(&world, whose, &config));
            let first = Container::new(&world, "c1");
            let result = chain.add(&first.attachment).unwrap();
            let names = || -> Vec<String> {
                said("ip -o link").lines().filter_map(|l| Some(l.split(':').nth(1)?.to_owned())).collect()
            };
            let links = names();
            let second = Container::new(&world, "c2");
            let error = chain.add(&second.attachment).unwrap_err().to_string();
            assert!(error.contains("no") && error.contains("10.86.0."), "{whose:?}: {error}");
            assert_eq!(names(), links, "{whose:?}: nothing half-made");
            chain.del(&first.attachment, Some(&result), false).unwrap();
            let result = chain.add(&second.attachment).unwrap();
            chain.del(&second.attachment, Some(&result), false).unwrap();
            world.delete_link("small0");
        }
    });
}
