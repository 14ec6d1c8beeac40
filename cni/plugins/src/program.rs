//! The plugins as programs: environment and standard input in, standard output out.

use std::io::Read;
use std::path::PathBuf;

use cni::result::{VERSIONS, check_version};
use cni::{Attachment, Bundled, Call, Code, Command, NetworkResult, PluginError};
use serde_json::{Value, json};

use crate::Plugins;
use crate::bundled::PROGRAM;

/// Size above which a configuration is not read.
const LIMIT: u64 = 4 << 20;

/// Longest name of an interface.
const IFNAME_MAX: usize = 15;

/// What is printed, and whether all went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// The exit code is zero.
    pub success: bool,
}

/// Name of the plugin that is meant by the program's name and arguments.
pub fn plugin_name(args: &[String]) -> Option<String> {
    let name = args.first()?.rsplit('/').next()?;
    if name == PROGRAM {
        return args.get(1).cloned();
    }
    Some(name.to_owned())
}

/// Runs one of `plugins`. `env` looks up environment variables.
pub fn run(plugins: &Plugins, name: &str, env: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Answer {
    let mut text = String::new();
    let config = match stdin.take(LIMIT).read_to_string(&mut text) {
        Err(e) => Err(PluginError::new(Code::Io, format!("read configuration: {e}"))),
        Ok(_) => serde_json::from_str::<Value>(&text)
            .map_err(|e| PluginError::new(Code::Decode, format!("configuration: {e}"))),
    };
    let version = config
        .as_ref()
        .ok()
        .and_then(|c| c.get("cniVersion")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| "0.3.1".into());
    match config.and_then(|config| call(plugins, name, env, &config, &version)) {
        Ok(None) => Answer { text: String::new(), success: true },
        Ok(Some(value)) => Answer { text: value.to_string(), success: true },
        Err(mut error) => {
            error.cni_version = version;
            Answer { text: json!(error).to_string(), success: false }
        }
    }
}

fn call(
    plugins: &Plugins,
    name: &str,
    env: impl Fn(&str) -> Option<String>,
    config: &Value,
    version: &str,
) -> Result<Option<Value>, PluginError> {
    let word = env("CNI_COMMAND").unwrap_or_default();
    let missing = |what: &str| PluginError::new(Code::InvalidEnvironment, format!("{what} is missing"));
    let command = Command::from_name(&word)
        .ok_or_else(|| PluginError::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND {word:?}")))?;
    if command == Command::Version {
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    check_version(version)?;
    let path = env("CNI_PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| p.is_absolute()).collect();
    let mut attachment = Attachment::default();
    if !matches!(command, Command::Gc | Command::Status) {
        attachment.container_id = env("CNI_CONTAINERID").unwrap_or_default();
        attachment.ifname = env("CNI_IFNAME").unwrap_or_default();
        attachment.netns = env("CNI_NETNS").filter(|p| !p.is_empty()).map(PathBuf::from);
        attachment.args = arguments(&env("CNI_ARGS").unwrap_or_default())?;
        if attachment.container_id.is_empty() {
            return Err(missing("CNI_CONTAINERID"));
        }
        if !valid_id(&attachment.container_id) {
            return Err(PluginError::new(Code::InvalidEnvironment, "invalid characters in CNI_CONTAINERID"));
        }
        if !valid_ifname(&attachment.ifname) {
            return Err(PluginError::new(Code::InvalidEnvironment, "invalid CNI_IFNAME"));
        }
        if attachment.netns.is_none() && command != Command::Del {
            return Err(missing("CNI_NETNS"));
        }
    }
    let plugin = plugins.plugin(name).ok_or_else(|| {
        PluginError::new(Code::InvalidEnvironment, format!("no plugin {name:?} in this program"))
    })?;
    let call = Call { command, attachment: &attachment, path: &path, config, namespace_ends: false };
    match plugin.call(&call)? {
        None => Ok(None),
        Some(result) => NetworkResult::write(&result, version).map(Some),
    }
}

fn arguments(text: &str) -> Result<Vec<(String, String)>, PluginError> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| {
                PluginError::new(Code::InvalidEnvironment, format!("invalid pair {pair:?} in CNI_ARGS"))
            })
        })
        .collect()
}

fn valid_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn valid_ifname(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= IFNAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(env: &[(&str, &str)], config: &str) -> Value {
        let env = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        serde_json::from_str(&run(&Plugins::new(), "bridge", env, config.as_bytes()).text).unwrap()
    }

    #[test]
    fn names() {
        let name = |args: &[&str]| plugin_name(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert_eq!(name(&["/opt/cni/bin/bridge"]).as_deref(), Some("bridge"));
        assert_eq!(name(&["buildkit-cni", "firewall"]).as_deref(), Some("firewall"));
        assert_eq!(name(&["buildkit-cni"]), None);
    }

    #[test]
    fn errors_are_those_of_the_specification() {
        let conf = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
        let full =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/no")];
        for (env, conf, code) in [
            (&full[..0], conf, 4),
            (&full[..1], conf, 4),
            (&full[..3], conf, 4),
            (&full[..], "nonsense", 6),
            (&full[..], r#"{"cniVersion":"9.9.9","name":"n"}"#, 1),
            (&full[..], r#"{"cniVersion":"1.0.0","name":"n","vlan":4095}"#, 7),
            (&full[..], r#"{"cniVersion":"1.0.0","name":"n","mtu":"big"}"#, 6),
            (
                &[
                    ("CNI_COMMAND", "ADD"),
                    ("CNI_CONTAINERID", "../a"),
                    ("CNI_IFNAME", "e"),
                    ("CNI_NETNS", "/no"),
                ][..],
                conf,
                4,
            ),
            (
                &[
                    ("CNI_COMMAND", "ADD"),
                    ("CNI_CONTAINERID", "a"),
                    ("CNI_IFNAME", "e/e"),
                    ("CNI_NETNS", "/no"),
                ][..],
                conf,
                4,
            ),
        ] {
            assert_eq!(answer(env, conf)["code"], code, "{env:?} {conf}");
        }
        let versions = answer(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(versions["supportedVersions"], json!(VERSIONS));
    }
}
