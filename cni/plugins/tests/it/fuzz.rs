//! Every plugin as a program with any configuration: it answers in JSON, and makes nothing
//! where the namespace does not exist.

use cni_plugins::{Plugins, program};
use proptest::prelude::*;
use serde_json::{Value, json};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![Just("10.0.0.0/30"), Just("fd00::/127"), Just("0.0.0.0/0"), Just("10.0.0.9"), Just("l2")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        let key = prop_oneof![
            Just("type"),
            Just("subnet"),
            Just("ranges"),
            Just("rangeStart"),
            Just("rangeEnd"),
            Just("gateway"),
            Just("addresses"),
            Just("address"),
            Just("ips"),
            Just("portMappings"),
            Just("hostPort"),
            Just("id"),
            Just("minID"),
            Just("mac"),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::hash_map(key, inner, 0..6)
                .prop_map(|m| { Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()) }),
        ]
    })
}

fn config() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("ipam"),
        Just("prevResult"),
        Just("runtimeConfig"),
        Just("mtu"),
        Just("vlan"),
        Just("vlanTrunk"),
        Just("mode"),
        Just("mac"),
        Just("sysctl"),
        Just("dns"),
        Just("ingressRate"),
        Just("ingressPolicy"),
        Just("backend"),
        Just("ipMasq"),
        Just("args"),
    ];
    prop::collection::hash_map(key, value(), 0..8)
        .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn configurations(config in config(), command in prop_oneof![Just("ADD"), Just("CHECK"), Just("STATUS")]) {
        for name in ["ptp", "macvlan", "ipvlan", "bandwidth", "tuning", "portmap", "firewall", "static", "dummy"] {
            let mut config = config.clone();
            // Addresses are taken from a directory that nobody can make.
            if let Some(ipam) = config.get_mut("ipam").and_then(Value::as_object_mut) {
                ipam.insert("type".into(), json!("host-local"));
                ipam.insert("dataDir".into(), json!("/proc/nowhere"));
            }
            for (key, value) in [("cniVersion", json!("1.0.0")), ("name", json!("fuzz")), ("type", json!(name))] {
                config[key] = value;
            }
            let env = |key: &str| {
                let value = match key {
                    "CNI_COMMAND" => command,
                    "CNI_CONTAINERID" => "c",
                    "CNI_IFNAME" => "eth0",
                    "CNI_NETNS" => "/proc/nowhere",
                    _ => return None,
                };
                Some(value.to_owned())
            };
            // What it does all the same, it does where nobody is.
            let run = || program::run(&Plugins::new(), name, env, config.to_string().as_bytes());
            let (_, answer) = sys::netns::NetNs::create(run).unwrap();
            if !answer.text.is_empty() {
                prop_assert!(serde_json::from_str::<Value>(&answer.text).is_ok(), "{}", answer.text);
            }
            prop_assert!(answer.success || !answer.text.is_empty());
        }
    }
}
