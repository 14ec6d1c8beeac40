//! Plugins that misbehave, and places that are taken.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use cni::{Config, Mode, Networks};
use cni_plugins::Plugins;
use serde_json::json;

use crate::plugins::{Container, Whose, chain, said};
use crate::support::{World, world};

/// A plugin that is a script.
fn script(world: &World, name: &str, text: &str) -> PathBuf {
    let bin = world.dir.path().join("scripts");
    std::fs::create_dir_all(&bin).unwrap();
    let path = bin.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn plugins_that_misbehave() {
    world(|world| async move {
        let long = "head -c 3000000 /dev/zero | tr '\\0' x";
        for (name, text, expected) in [
            ("hangs", "[ $CNI_COMMAND = ADD ] && exec sleep 1000; exit 0", "did not end within"),
            ("crashes", "[ $CNI_COMMAND = ADD ] && kill -SEGV $$; exit 0", "crashes"),
            ("fails", "echo oh no >&2; exit 7", "oh no"),
            ("garbage", "echo '{{{'", "not JSON"),
            ("silent", "exit 0", "not JSON"),
            ("talks", long, "more than can be useful"),
            ("lies", r#"echo '{"cniVersion":"1.0.0","code":77,"msg":"all wrong"}'"#, "all wrong"),
            ("older", r#"echo '{"cniVersion":"0.1.0"}'"#, "incompatible"),
            ("odd", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.0/99"}]}'"#, "10.0.0.0/99"),
        ] {
            let scripts = script(&world, name, text);
            let dir = world.dir.path().join("ipam");
            let config = json!({"cniVersion": "1.0.0", "name": "bad", "plugins": [
                {"type": "bridge", "bridge": "bad0", "ipMasq": true,
                 "ipam": {"type": "host-local", "subnet": "10.87.0.0/24", "dataDir": dir}},
                {"type": name},
            ]});
            let config = cni::NetworkConfig::parse(config.to_string().as_bytes(), "test").unwrap();
            let chain = cni::chain::Chain::new(config, vec![scripts], Plugins::new());
            let chain = chain.with_timeout(Duration::from_secs(1));
            let container = Container::new(&world, "c1");
            let error = chain.add(&container.attachment).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
            // What the plugin before it did is undone.
            let left: Vec<_> = std::fs::read_dir(dir.join("bad"))
                .unwrap()
                .filter_map(|e| e.unwrap().file_name().into_string().ok())
                .filter(|n| n.starts_with("10."))
                .collect();
            assert_eq!(left, Vec::<String>::new(), "{name}");
            assert_eq!(world.rules(), Vec::<String>::new(), "{name}");
        }
        world.delete_link("bad0");
    });
}

#[test]
fn places_that_are_taken() {
    world(|world| async move {
        let config = |bridge: &str, subnet: Option<&str>| Config {
            mode: Mode::Bridge,
            root: world.root(),
            bridge_name: bridge.into(),
            bridge_subnet: subnet.map(|s| s.parse().unwrap()),
            ..Config::default()
        };
        let scope = base::task::Scope::root();
        let open = |config| Networks::open(config, Plugins::new(), &scope);
        // By an interface that is no bridge; by a route of this host; by no room.
        for (bridge, subnet, expected) in [
            ("up0", None, r#""up0" already exists but is not a bridge"#),
            ("kit0", Some("203.0.112.0/22"), "203.0.112.0/22 is taken: up0"),
            ("kit0", Some("10.10.4.128/25"), "is taken: up0 leads to 10.10.4.0/24"),
            ("kit0", Some("10.99.0.0/31"), "too small"),
            ("a-name-that-is-too-long", None, "a-name-that-is-too-long"),
        ] {
            let error = open(config(bridge, subnet)).await.err().unwrap().to_string();
            assert!(error.contains(expected), "{bridge} {subnet:?}: {error}");
            assert_eq!(world.rules(), Vec::<String>::new(), "{bridge} {subnet:?}");
            assert!(!said("ip -o link").contains("kit0"), "{bridge} {subnet:?}");
        }
        // Room for two.
        let networks = open(config("kit0", Some("10.99.0.0/29"))).await.unwrap();
        let mut held = Vec::new();
        let error = loop {
            match networks.namespace("").await {
                Ok(namespace) => held.push(namespace),
                Err(e) => break e.to_string(),
            }
        };
        assert_eq!(held.len(), 5);
        assert!(error.contains("10.99.0."), "{error}");
        held.pop().unwrap().release().await.unwrap();
        held.push(networks.namespace("").await.unwrap());
        drop(held);
        networks.close().await;
        world.assert_clean();
    });
}

#[test]
fn thirty_two_that_were_running() {
    world(|world| async move {
        use std::mem::ManuallyDrop;
        let killed = ManuallyDrop::new(world.open(Mode::Bridge, 0).await.unwrap());
        let mut running = Vec::new();
        for _ in 0..32 {
            let namespace = ManuallyDrop::new(killed.namespace("").await.unwrap());
            // As a process that still runs: it holds the namespace.
            running.push(sys::netns::NetNs::open(namespace.path().unwrap()).unwrap());
        }
        assert!(said("ip -o link").matches("veth").count() >= 32);
        let networks = world.open(Mode::Host, 0).await.unwrap();
        // At once, whatever still runs.
        assert_eq!(said("ip -o link").matches("veth").count(), 0);
        assert!(running.iter().all(|ns| !ns.run(|| said("ip -o link")).unwrap().contains("eth0")));
        world.assert_clean();
        networks.close().await;
        killed.close().await;
    });
}

#[test]
fn chains_are_the_same_for_all() {
    world(|world| async move {
        // Before 0.4.0 DEL is not told what there was.
        for whose in [Whose::Program, Whose::InProcess] {
            let config = json!({"cniVersion": "0.3.1", "name": "old", "plugins": [
                {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.88.0.0/24",
                    "routes": [{"dst": "0.0.0.0/0"}], "dataDir": world.dir.path().join("old")}},
            ]});
            let chain = chain(&world, whose, &config);
            let container = Container::new(&world, "c1");
            let result = chain.add(&container.attachment).unwrap();
            assert_eq!(world.ask(&container.ns).unwrap(), World::HOST);
            chain.del(&container.attachment, Some(&result), false).unwrap();
            assert_eq!(world.rules(), Vec::<String>::new(), "{whose:?}");
        }
    });
}
