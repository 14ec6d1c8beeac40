//! Real networks in network namespaces of their own. Needs root.

#[allow(clippy::unwrap_used)] // of tests
mod foreign;
mod fuzz;
#[allow(clippy::unwrap_used)] // of tests
mod hostile;
#[allow(clippy::unwrap_used)] // of tests
mod plugins;
#[allow(clippy::unwrap_used)] // of tests
mod support;

use std::mem::ManuallyDrop;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use cni::{Attachment, Mode, NetworkConfig, chain::Chain};
use cni_plugins::Plugins;
use plugins::said;
use serde_json::json;
use support::{World, address_of, world};
use sys::netns::NetNs;

#[test]
fn the_default_network_leads_out_but_not_in() {
    world(|world| async move {
        let networks = world.open(Mode::Auto, 0).await.unwrap();
        assert_eq!(networks.mode(), "cni");
        let (a, b) = (networks.namespace("").await.unwrap(), networks.namespace("").await.unwrap());
        let inside = NetNs::open(a.path().unwrap()).unwrap();
        // The 10.10 range is taken by a route of this world.
        assert_eq!(address_of(&a).to_string().split('.').take(2).collect::<Vec<_>>(), ["10", "11"]);
        // Out, with the host's address.
        assert_eq!(world.ask(&inside).unwrap(), World::HOST);
        assert_eq!(world.ask6(&inside).unwrap(), World::HOST6);
        // Not to each other, not by a detour over the gateway, not in from outside.
        let server = World::listen(&inside);
        for from in [&NetNs::open(b.path().unwrap()).unwrap(), &world.outside] {
            for ip in &a.result().unwrap().ips {
                assert!(World::refuses(from, ip.address.addr, server.port));
            }
        }
        assert!(World::connect(&inside, address_of(&a), server.port).is_ok());
        drop(server);
        assert_eq!(
            a.resolv_conf().nameservers.len(),
            cni::dns::ResolvConf::load("/etc/resolv.conf".as_ref()).without_loopback().nameservers.len()
        );
        a.release().await.unwrap();
        // As long as it is open it exists.
        drop(inside);
        drop(b);
        networks.close().await;
        world.assert_clean();
    });
}

#[test]
fn ready_namespaces_are_used_once() {
    world(|world| async move {
        let networks = world.open(Mode::Bridge, 2).await.unwrap();
        let mut seen: Vec<PathBuf> = Vec::new();
        for _ in 0..5 {
            let namespace = networks.namespace("").await.unwrap();
            let path = namespace.path().unwrap().to_owned();
            assert!(!seen.contains(&path));
            assert_eq!(world.ask(&NetNs::open(&path).unwrap()).unwrap(), World::HOST);
            seen.push(path);
            namespace.release().await.unwrap();
        }
        let named = networks.namespace("box").await.unwrap();
        assert!(!seen.iter().any(|p| Some(p.as_path()) == named.path()));
        drop(named);
        networks.close().await;
        world.assert_clean();
    });
}

#[test]
fn what_a_killed_daemon_left_is_removed() {
    world(|world| async move {
        let killed = ManuallyDrop::new(world.open(Mode::Bridge, 1).await.unwrap());
        let _left = ManuallyDrop::new(killed.namespace("").await.unwrap());
        assert!(!world.rules().is_empty());
        let networks = world.open(Mode::Host, 0).await.unwrap();
        assert_eq!(networks.mode(), "host");
        let host = networks.namespace("").await.unwrap();
        assert!(host.is_host() && host.path().is_none());
        world.assert_clean();
        drop(host);
        networks.close().await;
        // Its tasks are still there, in this process.
        killed.close().await;
    });
}

#[test]
fn other_peoples_plugins() {
    world(|world| async move {
        std::fs::write(
            world.config_path(),
            json!({
                "cniVersion": "1.0.0",
                "name": "theirs",
                "plugins": [
                    {"type": "bridge", "bridge": "theirs0", "isDefaultGateway": true, "ipMasq": true,
                     "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": world.dir.path().join("theirs")}},
                    {"type": "firewall"},
                    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}},
                ],
            })
            .to_string(),
        )
        .unwrap();
        let networks = world.open(Mode::Auto, 0).await.unwrap();
        assert_eq!(networks.mode(), "cni");
        let a = networks.namespace("box").await.unwrap();
        assert!(address_of(&a).to_string().starts_with("10.77.0."));
        let inside = NetNs::open(a.path().unwrap()).unwrap();
        assert_eq!(world.ask(&inside).unwrap(), World::HOST);
        a.release().await.unwrap();
        let left = std::fs::read_dir(world.dir.path().join("theirs/theirs")).unwrap();
        assert!(!left.flatten().any(|e| e.file_name().to_string_lossy().starts_with("10.")));
        networks.close().await;
        assert!(std::fs::read_dir(world.root().join("net/cni")).unwrap().next().is_none());
    });
}

#[test]
fn many_at_once_and_none_alike() {
    world(|world| async move {
        let networks = world.open(Mode::Bridge, 0).await.unwrap();
        let scope = base::task::Scope::root();
        let tasks: Vec<_> = (0..24)
            .map(|_| {
                let networks = networks.clone();
                scope.spawn(async move { networks.namespace("").await.unwrap() })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        let mut addresses: Vec<_> = all.iter().map(address_of).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 24);
        // Some are given back, some dropped, one is not even waited for.
        for (at, namespace) in all.into_iter().enumerate() {
            if at % 2 == 0 {
                namespace.release().await.unwrap();
            }
        }
        drop(networks.namespace("dropped"));
        tokio::select! {
            biased;
            _ = networks.namespace("made-for-it") => panic!("it takes longer than that"),
            () = tokio::task::yield_now() => {}
        }
        networks.close().await;
        world.assert_clean();
    });
}

#[test]
fn a_broken_configuration_stops_the_start() {
    world(|world| async move {
        std::fs::write(world.config_path(), r#"{"cniVersion":"1.0.0","name":"n","type":"no-such-plugin"}"#)
            .unwrap();
        let error = world.open(Mode::Auto, 0).await.err().unwrap();
        assert!(error.to_string().contains("no-such-plugin"), "{error}");
        std::fs::remove_file(world.config_path()).unwrap();
        assert!(world.open(Mode::Cni, 0).await.is_err());
        world.assert_clean();
    });
}

#[test]
fn our_program_is_an_ordinary_plugin() {
    world(|world| async move {
        let path = world.dir.path().join("bin");
        std::fs::create_dir(&path).unwrap();
        for name in ["bridge", "host-local", "firewall", "tuning", "dummy", "static", "portmap"] {
            // A copy, not a link: it has to be started.
            std::fs::copy(env!("CARGO_BIN_EXE_buildkit-cni"), path.join(name)).unwrap();
        }
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let config = json!({
                "cniVersion": version,
                "name": "ours",
                "plugins": [
                    {"type": "bridge", "bridge": "ours0", "isDefaultGateway": true, "ipMasq": true,
                     "ipam": {"type": "host-local", "subnet": "10.78.0.0/24", "dataDir": world.dir.path().join("ours")}},
                    {"type": "firewall", "ingressPolicy": "same-bridge"},
                    {"type": "tuning", "mtu": 1400},
                    {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8099, "containerPort": 0}]}},
                ],
            });
            let mut config = NetworkConfig::parse(config.to_string().as_bytes(), "test").unwrap();
            let (ns, ()) = NetNs::create(support::loopback).unwrap();
            let file = world.dir.path().join("netns");
            ns.bind(&file).unwrap();
            let attachment = Attachment {
                container_id: "c1".into(),
                netns: Some(file.clone()),
                ifname: "eth0".into(),
                args: vec![],
                ..Attachment::default()
            };
            let server = World::listen(&ns);
            config.plugins[3].fields["runtimeConfig"]["portMappings"][0]["containerPort"] =
                server.port.into();
            let chain = Chain::new(config, vec![path.clone()], Plugins::new());
            let result = chain.add(&attachment).unwrap();
            assert_eq!(result.interfaces.len(), 3);
            assert_eq!(world.ask(&ns).unwrap(), World::HOST);
            assert!(World::refuses(&world.outside, result.ips[0].address.addr, server.port));
            assert_eq!(World::connect(&world.outside, World::HOST, 8099).unwrap(), "203.0.113.2");
            if version == "1.1.0" {
                assert_eq!(result.interfaces[2].mtu, Some(1400));
                chain.status().unwrap();
                chain.gc(&[("c1".into(), "eth0".into())]).unwrap();
            }
            chain.check(&attachment, &result).unwrap();
            chain.del(&attachment, Some(&result), false).unwrap();
            chain.del(&attachment, Some(&result), false).unwrap();
            drop(server);
            sys::netns::unbind(&file).unwrap();
            assert_eq!(world.rules(), Vec::<String>::new(), "{version}");
        }
        world.delete_link("ours0");
    });
}

#[test]
fn dummies_and_fixed_addresses() {
    world(|world| async move {
        let config = json!({
            "cniVersion": "1.0.0", "name": "d", "type": "dummy",
            "ipam": {"type": "static", "addresses": [{"address": "192.0.2.5/24"}, {"address": "fd00:9::5/64"}]},
        });
        let chain = Chain::new(
            NetworkConfig::parse(config.to_string().as_bytes(), "test").unwrap(),
            vec![],
            Plugins::new(),
        );
        let (ns, ()) = NetNs::create(|| {}).unwrap();
        let file = world.dir.path().join("netns");
        ns.bind(&file).unwrap();
        let attachment = Attachment {
            container_id: "d".into(),
            netns: Some(file.clone()),
            ifname: "eth0".into(),
            args: vec![],
            ..Attachment::default()
        };
        if world.has_dummies() {
            let result = chain.add(&attachment).unwrap();
            assert_eq!(result.ips.len(), 2);
        }
        // The interface is there, or cannot be made.
        let error = chain.add(&attachment).unwrap_err().to_string();
        assert!(error.contains("create interface eth0"), "{error}");
        chain.del(&attachment, None, false).unwrap();
        chain.del(&attachment, None, false).unwrap();
        sys::netns::unbind(&file).unwrap();
        chain.del(&attachment, None, false).unwrap();
    });
}

#[test]
fn enclosed_namespaces_lead_nowhere() {
    world(|world| async move {
        for mode in [Mode::Host, Mode::Bridge] {
            let networks = world.open(mode, 0).await.unwrap();
            let address = Ipv4Addr::new(10, 89, 0, 1);
            let [one, other] =
                [networks.enclosed(address).await.unwrap(), networks.enclosed(address).await.unwrap()];
            let path = one.path().unwrap().to_owned();
            let ns = NetNs::open(&path).unwrap();
            let inside = ns.run(|| (said("ip -o link"), said("ip -4 -o addr"), said("ip route"))).unwrap();
            assert_eq!(inside.0.lines().count(), 1, "{inside:?}");
            assert!(inside.1.contains("10.89.0.1/32") && inside.1.contains("127.0.0.1/8"), "{inside:?}");
            assert_eq!(inside.2, "");
            one.release().await.unwrap();
            assert!(!path.exists());
            // Those that nobody releases go as well.
            drop(other);
            networks.close().await;
            world.assert_clean();
        }
    });
}
