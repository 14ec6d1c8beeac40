//! Configurations and results from anybody: whatever they say, they are read or refused.

use cni::{Cidr, NetworkConfig, NetworkResult};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Any JSON, with the keys that mean something more often than others.
pub fn anything() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("name"),
        Just("cniVersion"),
        Just("type"),
        Just("plugins"),
        Just("ips"),
        Just("address"),
        Just("gateway"),
        Just("interface"),
        Just("interfaces"),
        Just("routes"),
        Just("dst"),
        Just("dns"),
        Just("sandbox"),
        Just("mtu"),
        Just("disableCheck"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![
            Just("1.0.0"),
            Just("0.3.1"),
            Just("10.0.0.1/24"),
            Just("fd00::1/64"),
            Just("::/0"),
            Just("1.2.3.4")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn configurations(text in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = NetworkConfig::parse(&text, "x");
    }

    #[test]
    fn configurations_of_json(value in anything()) {
        if let Ok(config) = NetworkConfig::parse(value.to_string().as_bytes(), "x") {
            prop_assert!(!config.plugins.is_empty());
            prop_assert!(!config.name.contains('/'));
            // What was read can be written and read again.
            let again = NetworkConfig::parse(config.to_json().to_string().as_bytes(), "x").unwrap();
            prop_assert_eq!(again, config);
        }
    }

    #[test]
    fn results_of_json(value in anything(), version in prop_oneof![Just("0.3.1"), Just("1.0.0"), Just("1.1.0")]) {
        let mut value = value;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("cniVersion".into(), json!(version));
        }
        if let Ok(result) = NetworkResult::read(value) {
            for version in cni::result::VERSIONS {
                let written = result.write(version).unwrap();
                prop_assert!(NetworkResult::read(written).is_ok());
            }
        }
    }

    #[test]
    fn networks(text in "[0-9a-f:./]{0,40}", n in any::<u128>()) {
        if let Ok(net) = text.parse::<Cidr>() {
            prop_assert_eq!(net.to_string().parse::<Cidr>().unwrap(), net);
            prop_assert!(net.contains(net.last()) && net.overlaps(net.network()));
            prop_assert!(net.nth(n).is_none_or(|addr| net.contains(addr)));
        }
    }
}
