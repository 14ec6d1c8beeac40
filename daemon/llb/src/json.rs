//! Operations as the JSON of their Go types.
//!
//! Cache keys are digests of this JSON, so it is exact: field names and order
//! are those of the protobuf definition, what is zero or empty is left out,
//! enumerations are numbers, bytes are base64, and a one-of is an object of its
//! own where the reference wrote one by hand.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::pb;
use proto::pb::file_action::Action;
use proto::pb::user_opt::User;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// Writes the JSON of a message.
pub struct Json<'a, T>(pub &'a T);

/// Collects the fields that are not zero.
struct Fields<M>(M);

impl<M: SerializeMap> Fields<M> {
    fn text(&mut self, name: &'static str, value: &str) -> Result<(), M::Error> {
        if value.is_empty() { Ok(()) } else { self.0.serialize_entry(name, value) }
    }

    fn number<N: Serialize + PartialEq + Default>(
        &mut self,
        name: &'static str,
        value: N,
    ) -> Result<(), M::Error> {
        if value == N::default() { Ok(()) } else { self.0.serialize_entry(name, &value) }
    }

    fn flag(&mut self, name: &'static str, value: bool) -> Result<(), M::Error> {
        self.number(name, value)
    }

    fn bytes(&mut self, name: &'static str, value: &[u8]) -> Result<(), M::Error> {
        self.text(name, &STANDARD.encode(value))
    }

    fn plain<T: Serialize>(&mut self, name: &'static str, values: &[T]) -> Result<(), M::Error> {
        if values.is_empty() { Ok(()) } else { self.0.serialize_entry(name, values) }
    }

    fn strings(&mut self, name: &'static str, map: &BTreeMap<String, String>) -> Result<(), M::Error> {
        if map.is_empty() { Ok(()) } else { self.0.serialize_entry(name, map) }
    }

    fn message<'a, T>(&mut self, name: &'static str, value: Option<&'a T>) -> Result<(), M::Error>
    where
        Json<'a, T>: Serialize,
    {
        value.map_or(Ok(()), |v| self.0.serialize_entry(name, &Json(v)))
    }

    fn messages<'a, T>(&mut self, name: &'static str, values: &'a [T]) -> Result<(), M::Error>
    where
        Json<'a, T>: Serialize,
    {
        let values: Vec<_> = values.iter().map(Json).collect();
        self.plain(name, &values)
    }

    fn map<'a, T>(&mut self, name: &'static str, map: &'a BTreeMap<String, T>) -> Result<(), M::Error>
    where
        Json<'a, T>: Serialize,
    {
        if map.is_empty() {
            return Ok(());
        }
        let map: BTreeMap<&str, _> = map.iter().map(|(k, v)| (k.as_str(), Json(v))).collect();
        self.0.serialize_entry(name, &map)
    }
}

macro_rules! json {
    ($($type:ty { $($method:ident $name:literal $value:expr),* $(,)? } as $m:ident;)*) => {$(
        impl Serialize for Json<'_, $type> {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                #[allow(unused_variables)]
                let $m = self.0;
                let mut fields = Fields(s.serialize_map(None)?);
                $(fields.$method($name, $value)?;)*
                fields.0.end()
            }
        }
    )*};
}

json! {
    pb::Input { text "digest" &m.digest, number "index" m.index } as m;
    pb::Platform {
        text "Architecture" &m.architecture,
        text "OS" &m.os,
        text "Variant" &m.variant,
        text "OSVersion" &m.os_version,
        plain "OSFeatures" &m.os_features,
    } as m;
    pb::WorkerConstraints { plain "filter" &m.filter } as m;
    pb::ExecOp {
        message "meta" m.meta.as_ref(),
        messages "mounts" &m.mounts,
        number "network" m.network,
        number "security" m.security,
        messages "secretenv" &m.secretenv,
        messages "cdiDevices" &m.cdi_devices,
    } as m;
    pb::Meta {
        plain "args" &m.args,
        plain "env" &m.env,
        text "cwd" &m.cwd,
        text "user" &m.user,
        message "proxy_env" m.proxy_env.as_ref(),
        messages "extraHosts" &m.extra_hosts,
        text "hostname" &m.hostname,
        messages "ulimit" &m.ulimit,
        text "cgroupParent" &m.cgroup_parent,
        flag "removeMountStubsRecursive" m.remove_mount_stubs_recursive,
        plain "validExitCodes" &m.valid_exit_codes,
    } as m;
    pb::ProxyEnv {
        text "http_proxy" &m.http_proxy,
        text "https_proxy" &m.https_proxy,
        text "ftp_proxy" &m.ftp_proxy,
        text "no_proxy" &m.no_proxy,
        text "all_proxy" &m.all_proxy,
    } as m;
    pb::HostIp { text "Host" &m.host, text "IP" &m.ip } as m;
    pb::Ulimit { text "Name" &m.name, number "Soft" m.soft, number "Hard" m.hard } as m;
    pb::SecretEnv { text "ID" &m.id, text "name" &m.name, flag "optional" m.optional } as m;
    pb::CdiDevice { text "name" &m.name, flag "optional" m.optional } as m;
    pb::Mount {
        number "input" m.input,
        text "selector" &m.selector,
        text "dest" &m.dest,
        number "output" m.output,
        flag "readonly" m.readonly,
        number "mountType" m.mount_type,
        message "TmpfsOpt" m.tmpfs_opt.as_ref(),
        message "cacheOpt" m.cache_opt.as_ref(),
        message "secretOpt" m.secret_opt.as_ref(),
        message "SSHOpt" m.ssh_opt.as_ref(),
        text "resultID" &m.result_id,
        number "contentCache" m.content_cache,
    } as m;
    pb::TmpfsOpt { number "size" m.size } as m;
    pb::CacheOpt { text "ID" &m.id, number "sharing" m.sharing } as m;
    pb::SecretOpt {
        text "ID" &m.id,
        number "uid" m.uid,
        number "gid" m.gid,
        number "mode" m.mode,
        flag "optional" m.optional,
    } as m;
    pb::SshOpt {
        text "ID" &m.id,
        number "uid" m.uid,
        number "gid" m.gid,
        number "mode" m.mode,
        flag "optional" m.optional,
    } as m;
    pb::SourceOp { text "identifier" &m.identifier, strings "attrs" &m.attrs } as m;
    pb::FileOp { messages "actions" &m.actions } as m;
    pb::FileActionCopy {
        text "src" &m.src,
        text "dest" &m.dest,
        message "owner" m.owner.as_ref(),
        number "mode" m.mode,
        flag "followSymlink" m.follow_symlink,
        flag "dirCopyContents" m.dir_copy_contents,
        flag "attemptUnpackDockerCompatibility" m.attempt_unpack_docker_compatibility,
        flag "createDestPath" m.create_dest_path,
        flag "allowWildcard" m.allow_wildcard,
        flag "allowEmptyWildcard" m.allow_empty_wildcard,
        number "timestamp" m.timestamp,
        plain "include_patterns" &m.include_patterns,
        plain "exclude_patterns" &m.exclude_patterns,
        flag "alwaysReplaceExistingDestPaths" m.always_replace_existing_dest_paths,
        text "modeStr" &m.mode_str,
        plain "required_paths" &m.required_paths,
    } as m;
    pb::FileActionMkFile {
        text "path" &m.path,
        number "mode" m.mode,
        bytes "data" &m.data,
        message "owner" m.owner.as_ref(),
        number "timestamp" m.timestamp,
    } as m;
    pb::FileActionMkDir {
        text "path" &m.path,
        number "mode" m.mode,
        flag "makeParents" m.make_parents,
        message "owner" m.owner.as_ref(),
        number "timestamp" m.timestamp,
    } as m;
    pb::FileActionRm {
        text "path" &m.path,
        flag "allowNotFound" m.allow_not_found,
        flag "allowWildcard" m.allow_wildcard,
    } as m;
    pb::FileActionSymlink {
        text "oldpath" &m.oldpath,
        text "newpath" &m.newpath,
        message "owner" m.owner.as_ref(),
        number "timestamp" m.timestamp,
    } as m;
    pb::ChownOpt { message "user" m.user.as_ref(), message "group" m.group.as_ref() } as m;
    pb::NamedUserOpt { text "name" &m.name, number "input" m.input } as m;
    pb::MergeOp { messages "inputs" &m.inputs } as m;
    pb::MergeInput { number "input" m.input } as m;
    pb::DiffOp { message "lower" m.lower.as_ref(), message "upper" m.upper.as_ref() } as m;
    pb::LowerDiffInput { number "input" m.input } as m;
    pb::UpperDiffInput { number "input" m.input } as m;
    pb::PassthroughOp { text "id" &m.id, plain "outputs" &m.outputs } as m;
    pb::BuildOp {
        number "builder" m.builder,
        map "inputs" &m.inputs,
        message "def" m.def.as_ref(),
        strings "attrs" &m.attrs,
    } as m;
    pb::BuildInput { number "input" m.input } as m;
    pb::Definition {
        plain "def" &m.def.iter().map(|d| STANDARD.encode(d)).collect::<Vec<_>>(),
        map "metadata" &m.metadata,
        message "Source" m.source.as_ref(),
    } as m;
    pb::OpMetadata {
        flag "ignore_cache" m.ignore_cache,
        strings "description" &m.description,
        message "export_cache" m.export_cache.as_ref(),
        caps "caps" &m.caps,
        message "progress_group" m.progress_group.as_ref(),
        message "linux_resources" m.linux_resources.as_ref(),
    } as m;
    pb::ExportCache { flag "Value" m.value } as m;
    pb::ProgressGroup { text "id" &m.id, text "name" &m.name, flag "weak" m.weak } as m;
    pb::LinuxResources {
        number "memory" m.memory,
        number "memorySwap" m.memory_swap,
        number "cpuShares" m.cpu_shares,
        number "cpuPeriod" m.cpu_period,
        number "cpuQuota" m.cpu_quota,
        text "cpusetCpus" &m.cpuset_cpus,
        text "cpusetMems" &m.cpuset_mems,
    } as m;
    pb::Source { map "locations" &m.locations, messages "infos" &m.infos } as m;
    pb::Locations { messages "locations" &m.locations } as m;
    pb::Location { number "sourceIndex" m.source_index, messages "ranges" &m.ranges } as m;
    pb::Range { message "start" m.start.as_ref(), message "end" m.end.as_ref() } as m;
    pb::Position { number "line" m.line, number "character" m.character } as m;
    pb::SourceInfo {
        text "filename" &m.filename,
        bytes "data" &m.data,
        message "definition" m.definition.as_ref(),
        text "language" &m.language,
    } as m;
}

impl<M: SerializeMap> Fields<M> {
    fn caps(&mut self, name: &'static str, map: &BTreeMap<String, bool>) -> Result<(), M::Error> {
        if map.is_empty() { Ok(()) } else { self.0.serialize_entry(name, map) }
    }
}

/// An object with at most one field.
struct One<'a, T>(Option<(&'static str, &'a T)>);

impl<'a, T> Serialize for One<'a, T>
where
    Json<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        if let Some((name, value)) = self.0 {
            map.serialize_entry(name, &Json(value))?;
        }
        map.end()
    }
}

impl Serialize for Json<'_, Option<pb::op::Op>> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use pb::op::Op;
        match self.0 {
            Some(Op::Exec(o)) => One(Some(("exec", o))).serialize(s),
            Some(Op::Source(o)) => One(Some(("source", o))).serialize(s),
            Some(Op::File(o)) => One(Some(("file", o))).serialize(s),
            Some(Op::Build(o)) => One(Some(("build", o))).serialize(s),
            Some(Op::Merge(o)) => One(Some(("merge", o))).serialize(s),
            Some(Op::Diff(o)) => One(Some(("diff", o))).serialize(s),
            Some(Op::Passthrough(o)) => One(Some(("passthrough", o))).serialize(s),
            None => One::<pb::MergeInput>(None).serialize(s),
        }
    }
}

impl Serialize for Json<'_, pb::Op> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut fields = Fields(s.serialize_map(None)?);
        fields.messages("inputs", &self.0.inputs)?;
        fields.0.serialize_entry("Op", &Json(&self.0.op))?;
        fields.message("platform", self.0.platform.as_ref())?;
        fields.message("constraints", self.0.constraints.as_ref())?;
        fields.0.end()
    }
}

impl Serialize for Json<'_, pb::FileAction> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(4))?;
        map.serialize_entry("input", &self.0.input)?;
        map.serialize_entry("secondaryInput", &self.0.secondary_input)?;
        map.serialize_entry("output", &self.0.output)?;
        match &self.0.action {
            Some(Action::Copy(a)) => map.serialize_entry("Action", &One(Some(("copy", a))))?,
            Some(Action::Mkfile(a)) => map.serialize_entry("Action", &One(Some(("mkfile", a))))?,
            Some(Action::Mkdir(a)) => map.serialize_entry("Action", &One(Some(("mkdir", a))))?,
            Some(Action::Rm(a)) => map.serialize_entry("Action", &One(Some(("rm", a))))?,
            // The reference's JSON does not know links.
            Some(Action::Symlink(_)) | None => {
                map.serialize_entry("Action", &One::<pb::MergeInput>(None))?;
            }
        }
        map.end()
    }
}

impl Serialize for Json<'_, pb::UserOpt> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        struct Inner<'a>(&'a Option<User>);
        impl Serialize for Inner<'_> {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                let mut fields = Fields(s.serialize_map(None)?);
                match self.0 {
                    Some(User::ByName(named)) => fields.message("byName", Some(named))?,
                    Some(User::ById(id)) => fields.number("byId", *id)?,
                    None => {}
                }
                fields.0.end()
            }
        }
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry("User", &Inner(&self.0.user))?;
        map.end()
    }
}
