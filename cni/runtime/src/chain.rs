//! A network's plugins, called one after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::{NetworkConfig, PluginConfig};
use crate::plugin::{Attachment, Bundled, Call, Command};
use crate::result::{NetworkResult, check_version};
use crate::{Error, exec};

/// A network with the means to call its plugins.
#[derive(Clone)]
pub struct Chain {
    config: NetworkConfig,
    path: Vec<PathBuf>,
    bundled: Arc<dyn Bundled>,
    timeout: Duration,
}

/// What is the same for every plugin of the chain.
#[derive(Clone, Copy)]
struct Step<'a> {
    command: Command,
    attachment: &'a Attachment,
    namespace_ends: bool,
}

impl Chain {
    /// Plugins are looked for in `path`, and among the bundled ones.
    pub fn new(config: NetworkConfig, path: Vec<PathBuf>, bundled: Arc<dyn Bundled>) -> Self {
        Self { config, path, bundled, timeout: exec::TIMEOUT }
    }

    /// Plugins that are programs get this long, instead of a minute.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The network.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Where plugins are looked for.
    pub fn path(&self) -> &[PathBuf] {
        &self.path
    }

    /// Connects a container: each plugin gets the result of those before it. When one
    /// fails, what the others did is undone.
    ///
    /// # Errors
    /// That of the first plugin that failed.
    pub fn add(&self, attachment: &Attachment) -> Result<NetworkResult, Error> {
        let step = Step { command: Command::Add, attachment, namespace_ends: false };
        let mut result = None;
        for plugin in &self.config.plugins {
            match self.call(plugin, step, result.as_ref()) {
                Ok(next) => result = next.or(result),
                Err(e) => {
                    if let Err(undo) = self.del(attachment, result.as_ref(), true) {
                        tracing::warn!(network = self.config.name, error = %undo, "undo failed ADD");
                    }
                    return Err(e);
                }
            }
        }
        Ok(result.unwrap_or_default())
    }

    /// Disconnects a container: last plugin first, and all of them, whatever fails.
    /// `namespace_ends` as in [`Call`].
    ///
    /// # Errors
    /// The first error.
    pub fn del(
        &self,
        attachment: &Attachment,
        result: Option<&NetworkResult>,
        namespace_ends: bool,
    ) -> Result<(), Error> {
        let step = Step { command: Command::Del, attachment, namespace_ends };
        // Before 0.4.0 there was no result at DEL.
        let result = result.filter(|_| self.rank() >= 2);
        let mut first = Ok(());
        for plugin in self.config.plugins.iter().rev() {
            let done = self.call(plugin, step, result).map(drop);
            if first.is_ok() {
                first = done;
            }
        }
        first
    }

    /// Sees whether a container is still connected as ADD left it.
    ///
    /// # Errors
    /// That of the first plugin that found something.
    pub fn check(&self, attachment: &Attachment, result: &NetworkResult) -> Result<(), Error> {
        if self.config.disable_check || self.rank() < 2 {
            return Ok(());
        }
        let step = Step { command: Command::Check, attachment, namespace_ends: false };
        self.config.plugins.iter().try_for_each(|p| self.call(p, step, Some(result)).map(drop))
    }

    /// Sees whether ADD could work; for versions before 1.1.0 nobody knows.
    ///
    /// # Errors
    /// That of the first plugin that is not ready.
    pub fn status(&self) -> Result<(), Error> {
        self.without_container(Command::Status, None)
    }

    /// Has plugins undo what was done for containers that are not among `valid`:
    /// their ids and interfaces. Before 1.1.0 there is no such call.
    ///
    /// # Errors
    /// The first error.
    pub fn gc(&self, valid: &[(String, String)]) -> Result<(), Error> {
        if self.config.disable_gc {
            return Ok(());
        }
        let list = valid
            .iter()
            .map(|(id, ifname)| serde_json::json!({"containerID": id, "ifname": ifname}))
            .collect::<Value>();
        self.without_container(Command::Gc, Some(("cni.dev/valid-attachments", list)))
    }

    fn without_container(&self, command: Command, field: Option<(&str, Value)>) -> Result<(), Error> {
        if self.rank() < 4 {
            return Ok(());
        }
        let nobody = Attachment::default();
        let step = Step { command, attachment: &nobody, namespace_ends: false };
        let mut first = Ok(());
        for plugin in &self.config.plugins {
            let mut plugin = plugin.clone();
            if let Some((key, value)) = &field {
                plugin.fields.insert((*key).to_owned(), value.clone());
                // The name it had in drafts, which plugins know.
                plugin.fields.insert("cni.dev/attachments".into(), value.clone());
            }
            let done = self.call(&plugin, step, None).map(drop);
            if first.is_ok() {
                first = done;
            }
        }
        first
    }

    /// Place of the network's version among those that are spoken.
    fn rank(&self) -> usize {
        check_version(&self.config.cni_version).unwrap_or_default()
    }

    fn call(
        &self,
        plugin: &PluginConfig,
        step: Step<'_>,
        previous: Option<&NetworkResult>,
    ) -> Result<Option<NetworkResult>, Error> {
        let failed =
            |source| Error::Plugin { kind: plugin.kind.clone(), command: step.command.name(), source };
        let mut fields = plugin.fields.clone();
        fields.insert("name".into(), self.config.name.clone().into());
        fields.insert("cniVersion".into(), self.config.cni_version.clone().into());
        if let Some(previous) = previous {
            fields.insert("prevResult".into(), previous.write(&self.config.cni_version).map_err(failed)?);
        }
        announce(&mut fields, &step.attachment.capabilities);
        let call = Call {
            command: step.command,
            attachment: step.attachment,
            path: &self.path,
            config: &Value::Object(fields),
            namespace_ends: step.namespace_ends,
        };
        call_within(self.bundled.as_ref(), &plugin.kind, &call, self.timeout)
    }
}

/// Says what plugins have announced that they understand, in place of the announcement.
fn announce(fields: &mut Map<String, Value>, capabilities: &Map<String, Value>) {
    let Some(Value::Object(announced)) = fields.remove("capabilities") else { return };
    let said = capabilities.iter().filter(|(name, _)| announced.get(*name) == Some(&Value::Bool(true)));
    let said: Map<String, Value> = said.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !said.is_empty() {
        fields.insert("runtimeConfig".into(), Value::Object(said));
    }
}

/// Calls the plugin of a type. A program in the call's path is called, unless it is this
/// very program: then the call needs no other process. Without a program the bundled
/// plugin serves.
///
/// # Errors
/// When there is no such plugin, or its own.
pub fn delegate(bundled: &dyn Bundled, kind: &str, call: &Call<'_>) -> Result<Option<NetworkResult>, Error> {
    call_within(bundled, kind, call, exec::TIMEOUT)
}

fn call_within(
    bundled: &dyn Bundled,
    kind: &str,
    call: &Call<'_>,
    timeout: Duration,
) -> Result<Option<NetworkResult>, Error> {
    match find(bundled, kind, call.path)? {
        Found::Own(own) => own.call(call).map_err(|source| Error::Plugin {
            kind: kind.into(),
            command: call.command.name(),
            source,
        }),
        Found::Program(program) => exec::call(&program, kind, call, timeout),
    }
}

fn find(bundled: &dyn Bundled, kind: &str, path: &[PathBuf]) -> Result<Found, Error> {
    let own = bundled.plugin(kind);
    let program = path.iter().map(|dir| dir.join(kind)).find(|p| is_program(p));
    match (program, own) {
        (Some(program), Some(own)) if bundled.is_own_program(&program) => Ok(Found::Own(own)),
        (Some(program), _) => Ok(Found::Program(program)),
        (None, Some(own)) => Ok(Found::Own(own)),
        (None, None) => Err(Error::NoPlugin {
            kind: kind.into(),
            searched: std::env::join_paths(path).unwrap_or_default().into(),
        }),
    }
}

enum Found {
    Own(Arc<dyn crate::Plugin>),
    Program(PathBuf),
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
