//! Network configurations: `.conf`, `.json` and `.conflist` files.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::result::check_version;

/// Size above which a configuration is not read.
const LIMIT: u64 = 4 << 20;

/// A network: plugins to be called one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the network: letters, digits, `_`, `.`, `-`.
    pub name: String,
    /// Version of the specification.
    pub cni_version: String,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins, first to last.
    pub plugins: Vec<PluginConfig>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Its type, which is the name of its program.
    pub kind: String,
    /// Everything that stands there, for the plugin.
    pub fields: Map<String, Value>,
}

impl NetworkConfig {
    /// Reads a file. A list has `plugins`; anything else is one plugin.
    ///
    /// # Errors
    /// When it cannot be read or is no configuration.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(&read(path)?, &path.display().to_string())
    }

    /// Reads the text of a configuration from `place`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &[u8], place: &str) -> Result<Self, Error> {
        let wrong = |message: String| Error::config(place, message);
        let value: Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        let Value::Object(mut fields) = value else { return Err(wrong("not a JSON object".into())) };
        let string = |fields: &Map<String, Value>, key: &str| match fields.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(_) => Err(wrong(format!("{key} is not a text"))),
        };
        let name = string(&fields, "name")?;
        if !valid_name(&name) {
            return Err(wrong(format!("invalid network name {name:?}")));
        }
        let cni_version = string(&fields, "cniVersion")?;
        check_version(&cni_version).map_err(|e| wrong(e.to_string()))?;
        // Early lists wrote truth as a text.
        let truth = |key: &str| {
            fields.get(key).is_some_and(|v| v.as_bool() == Some(true) || v.as_str() == Some("true"))
        };
        let (disable_check, disable_gc) = (truth("disableCheck"), truth("disableGC"));
        let list = match fields.remove("plugins") {
            None => vec![Value::Object(fields)],
            Some(Value::Array(list)) => list,
            Some(_) => return Err(wrong("plugins is not a list".into())),
        };
        if list.is_empty() {
            return Err(wrong("no plugins in the list".into()));
        }
        let mut plugins = Vec::with_capacity(list.len());
        for plugin in list {
            let Value::Object(fields) = plugin else {
                return Err(wrong("a plugin is not a JSON object".into()));
            };
            let kind = string(&fields, "type")?;
            if kind.is_empty() || kind == ".." || kind == "." || kind.contains(['/', '\0']) {
                return Err(wrong(format!("invalid plugin type {kind:?}")));
            }
            plugins.push(PluginConfig { kind, fields });
        }
        Ok(Self { name, cni_version, disable_check, disable_gc, plugins })
    }

    /// The configuration as a list, from which it can be read again.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "name": self.name,
            "cniVersion": self.cni_version,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": self.plugins.iter().map(|p| Value::Object(p.fields.clone())).collect::<Vec<_>>(),
        })
    }
}

/// The text of a configuration file.
///
/// # Errors
/// When it cannot be read, or is no file of reasonable size.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let meta = std::fs::metadata(path).map_err(Error::file("read", path))?;
    if !meta.is_file() || meta.len() > LIMIT {
        return Err(Error::config(path.display().to_string(), "not a file of reasonable size"));
    }
    std::fs::read(path).map_err(Error::file("read", path))
}

/// Names begin with a letter or digit and stay clear of what could be a path.
pub(crate) fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConfig, Error> {
        NetworkConfig::parse(text.as_bytes(), "x.conf")
    }

    #[test]
    fn lists_and_single_plugins() {
        let single = parse(r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","mtu":9}"#).unwrap();
        assert_eq!((single.plugins.len(), single.plugins[0].kind.as_str()), (1, "bridge"));
        assert_eq!(single.plugins[0].fields["mtu"], 9);
        let list =
            parse(r#"{"cniVersion":"0.4.0","name":"n","disableCheck":"true","plugins":[{"type":"a"},{"type":"b"}]}"#)
                .unwrap();
        assert!(list.disable_check && list.plugins.len() == 2);
        assert_eq!(NetworkConfig::parse(list.to_json().to_string().as_bytes(), "").unwrap(), list);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "[]",
            "{",
            r#"{"name":"n","type":"x"}"#,
            r#"{"cniVersion":"0.1.0","name":"n","type":"x"}"#,
            r#"{"cniVersion":"1.0.0","name":"../n","type":"x"}"#,
            r#"{"cniVersion":"1.0.0","name":"n","type":"../x"}"#,
            r#"{"cniVersion":"1.0.0","name":"n"}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[3]}"#,
            r#"{"cniVersion":"1.0.0","name":7,"type":"x"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
