//! Operations in the canonical JSON of protobuf.
//!
//! Names are in camel case, numbers of 64 bits are text, enumerations are names,
//! bytes are base64 and a one-of is the field that is set.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::pb;
use serde::{Serialize, Serializer};

/// A value whose objects keep the order of their fields.
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => s.serialize_str(text),
            Self::Number(number) => s.serialize_i64(*number),
            Self::Flag(flag) => s.serialize_bool(*flag),
            Self::List(list) => s.collect_seq(list),
            Self::Object(fields) => s.collect_map(fields.iter().map(|(k, v)| (k, v))),
        }
    }
}

/// An object in the making, of the fields that are not zero.
#[derive(Default)]
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn put(mut self, name: &str, value: Option<Value>) -> Self {
        if let Some(value) = value {
            self.0.push((name.to_owned(), value));
        }
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        self.put(name, (!value.is_empty()).then(|| text(value)))
    }

    fn texts(self, name: &str, values: &[String]) -> Self {
        self.many(name, values, |v| text(v))
    }

    fn small(self, name: &str, value: impl Into<i64>) -> Self {
        let value = value.into();
        self.put(name, (value != 0).then_some(Value::Number(value)))
    }

    fn big(self, name: &str, value: i64) -> Self {
        self.put(name, (value != 0).then(|| Value::Text(value.to_string())))
    }

    fn ubig(self, name: &str, value: u64) -> Self {
        self.put(name, (value != 0).then(|| Value::Text(value.to_string())))
    }

    fn flag(self, name: &str, value: bool) -> Self {
        self.put(name, value.then_some(Value::Flag(true)))
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.put(name, (!value.is_empty()).then(|| Value::Text(STANDARD.encode(value))))
    }

    fn choice(self, name: &str, number: i32, text: Option<&'static str>) -> Self {
        let value = || text.map_or(Value::Number(number.into()), self::text);
        self.put(name, (number != 0).then(value))
    }

    fn one<T>(self, name: &str, value: Option<&T>, write: fn(&T) -> Value) -> Self {
        self.put(name, value.map(write))
    }

    fn many<T>(self, name: &str, values: &[T], write: fn(&T) -> Value) -> Self {
        self.put(name, (!values.is_empty()).then(|| Value::List(values.iter().map(write).collect())))
    }

    fn map<T>(self, name: &str, map: &BTreeMap<String, T>, write: fn(&T) -> Value) -> Self {
        let object = || Value::Object(map.iter().map(|(k, v)| (k.clone(), write(v))).collect());
        self.put(name, (!map.is_empty()).then(object))
    }

    fn end(self) -> Value {
        Value::Object(self.0)
    }
}

fn fields() -> Fields {
    Fields::default()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

pub(crate) fn op(op: &pb::Op) -> Value {
    use pb::op::Op;
    let fields = fields()
        .many("inputs", &op.inputs, |i| fields().text("digest", &i.digest).big("index", i.index).end());
    let fields = match &op.op {
        Some(Op::Exec(o)) => fields.one("exec", Some(o), exec),
        Some(Op::Source(o)) => fields.one("source", Some(o), |o| {
            self::fields().text("identifier", &o.identifier).map("attrs", &o.attrs, |v| text(v)).end()
        }),
        Some(Op::File(o)) => {
            fields.one("file", Some(o), |o| self::fields().many("actions", &o.actions, file_action).end())
        }
        Some(Op::Build(o)) => fields.one("build", Some(o), build),
        Some(Op::Merge(o)) => fields.one("merge", Some(o), |o| {
            self::fields().many("inputs", &o.inputs, |i| self::fields().big("input", i.input).end()).end()
        }),
        Some(Op::Diff(o)) => fields.one("diff", Some(o), |o| {
            self::fields()
                .one("lower", o.lower.as_ref(), |i| self::fields().big("input", i.input).end())
                .one("upper", o.upper.as_ref(), |i| self::fields().big("input", i.input).end())
                .end()
        }),
        Some(Op::Passthrough(o)) => fields.one("passthrough", Some(o), |o| {
            self::fields().text("id", &o.id).many("outputs", &o.outputs, |n| Value::Text(n.to_string())).end()
        }),
        None => fields,
    };
    fields
        .one("platform", op.platform.as_ref(), |p| {
            self::fields()
                .text("Architecture", &p.architecture)
                .text("OS", &p.os)
                .text("Variant", &p.variant)
                .text("OSVersion", &p.os_version)
                .texts("OSFeatures", &p.os_features)
                .end()
        })
        .one("constraints", op.constraints.as_ref(), |c| self::fields().texts("filter", &c.filter).end())
        .end()
}

fn exec(o: &pb::ExecOp) -> Value {
    fields()
        .one("meta", o.meta.as_ref(), meta)
        .many("mounts", &o.mounts, mount)
        .choice("network", o.network, pb::NetMode::try_from(o.network).ok().map(|e| e.as_str_name()))
        .choice("security", o.security, pb::SecurityMode::try_from(o.security).ok().map(|e| e.as_str_name()))
        .many("secretenv", &o.secretenv, |s| {
            fields().text("ID", &s.id).text("name", &s.name).flag("optional", s.optional).end()
        })
        .many("cdiDevices", &o.cdi_devices, |d| {
            fields().text("name", &d.name).flag("optional", d.optional).end()
        })
        .end()
}

fn meta(m: &pb::Meta) -> Value {
    fields()
        .texts("args", &m.args)
        .texts("env", &m.env)
        .text("cwd", &m.cwd)
        .text("user", &m.user)
        .one("proxyEnv", m.proxy_env.as_ref(), |p| {
            fields()
                .text("httpProxy", &p.http_proxy)
                .text("httpsProxy", &p.https_proxy)
                .text("ftpProxy", &p.ftp_proxy)
                .text("noProxy", &p.no_proxy)
                .text("allProxy", &p.all_proxy)
                .end()
        })
        .many("extraHosts", &m.extra_hosts, |h| fields().text("Host", &h.host).text("IP", &h.ip).end())
        .text("hostname", &m.hostname)
        .many("ulimit", &m.ulimit, |u| {
            fields().text("Name", &u.name).big("Soft", u.soft).big("Hard", u.hard).end()
        })
        .text("cgroupParent", &m.cgroup_parent)
        .flag("removeMountStubsRecursive", m.remove_mount_stubs_recursive)
        .many("validExitCodes", &m.valid_exit_codes, |n| Value::Number((*n).into()))
        .end()
}

fn mount(m: &pb::Mount) -> Value {
    let name = pb::MountType::try_from(m.mount_type).ok().map(|e| e.as_str_name());
    let content = pb::MountContentCache::try_from(m.content_cache).ok().map(|e| e.as_str_name());
    fields()
        .big("input", m.input)
        .text("selector", &m.selector)
        .text("dest", &m.dest)
        .big("output", m.output)
        .flag("readonly", m.readonly)
        .choice("mountType", m.mount_type, name)
        .one("TmpfsOpt", m.tmpfs_opt.as_ref(), |o| fields().big("size", o.size).end())
        .one("cacheOpt", m.cache_opt.as_ref(), |o| {
            let sharing = pb::CacheSharingOpt::try_from(o.sharing).ok().map(|e| e.as_str_name());
            fields().text("ID", &o.id).choice("sharing", o.sharing, sharing).end()
        })
        .one("secretOpt", m.secret_opt.as_ref(), |o| {
            fields()
                .text("ID", &o.id)
                .small("uid", o.uid)
                .small("gid", o.gid)
                .small("mode", o.mode)
                .flag("optional", o.optional)
                .end()
        })
        .one("SSHOpt", m.ssh_opt.as_ref(), |o| {
            fields()
                .text("ID", &o.id)
                .small("uid", o.uid)
                .small("gid", o.gid)
                .small("mode", o.mode)
                .flag("optional", o.optional)
                .end()
        })
        .text("resultID", &m.result_id)
        .choice("contentCache", m.content_cache, content)
        .end()
}

fn file_action(a: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let fields =
        fields().big("input", a.input).big("secondaryInput", a.secondary_input).big("output", a.output);
    match &a.action {
        Some(Action::Copy(a)) => fields.one("copy", Some(a), copy),
        Some(Action::Mkfile(a)) => fields.one("mkfile", Some(a), |a| {
            self::fields()
                .text("path", &a.path)
                .small("mode", a.mode)
                .bytes("data", &a.data)
                .one("owner", a.owner.as_ref(), owner)
                .big("timestamp", a.timestamp)
                .end()
        }),
        Some(Action::Mkdir(a)) => fields.one("mkdir", Some(a), |a| {
            self::fields()
                .text("path", &a.path)
                .small("mode", a.mode)
                .flag("makeParents", a.make_parents)
                .one("owner", a.owner.as_ref(), owner)
                .big("timestamp", a.timestamp)
                .end()
        }),
        Some(Action::Rm(a)) => fields.one("rm", Some(a), |a| {
            self::fields()
                .text("path", &a.path)
                .flag("allowNotFound", a.allow_not_found)
                .flag("allowWildcard", a.allow_wildcard)
                .end()
        }),
        Some(Action::Symlink(a)) => fields.one("symlink", Some(a), |a| {
            self::fields()
                .text("oldpath", &a.oldpath)
                .text("newpath", &a.newpath)
                .one("owner", a.owner.as_ref(), owner)
                .big("timestamp", a.timestamp)
                .end()
        }),
        None => fields,
    }
    .end()
}

fn copy(a: &pb::FileActionCopy) -> Value {
    fields()
        .text("src", &a.src)
        .text("dest", &a.dest)
        .one("owner", a.owner.as_ref(), owner)
        .small("mode", a.mode)
        .flag("followSymlink", a.follow_symlink)
        .flag("dirCopyContents", a.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", a.attempt_unpack_docker_compatibility)
        .flag("createDestPath", a.create_dest_path)
        .flag("allowWildcard", a.allow_wildcard)
        .flag("allowEmptyWildcard", a.allow_empty_wildcard)
        .big("timestamp", a.timestamp)
        .texts("includePatterns", &a.include_patterns)
        .texts("excludePatterns", &a.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", a.always_replace_existing_dest_paths)
        .text("modeStr", &a.mode_str)
        .texts("requiredPaths", &a.required_paths)
        .end()
}

fn owner(o: &pb::ChownOpt) -> Value {
    fields().one("user", o.user.as_ref(), user).one("group", o.group.as_ref(), user).end()
}

fn user(u: &pb::UserOpt) -> Value {
    use pb::user_opt::User;
    match &u.user {
        Some(User::ByName(n)) => {
            fields().one("byName", Some(n), |n| fields().text("name", &n.name).big("input", n.input).end())
        }
        // A member of a one-of is there even when it is zero.
        Some(User::ById(id)) => fields().put("byID", Some(Value::Number((*id).into()))),
        None => fields(),
    }
    .end()
}

fn build(o: &pb::BuildOp) -> Value {
    fields()
        .big("builder", o.builder)
        .map("inputs", &o.inputs, |i| fields().big("input", i.input).end())
        .one("def", o.def.as_ref(), definition)
        .map("attrs", &o.attrs, |v| text(v))
        .end()
}

fn definition(d: &pb::Definition) -> Value {
    fields()
        .many("def", &d.def, |bytes| Value::Text(STANDARD.encode(bytes)))
        .map("metadata", &d.metadata, op_metadata)
        .one("Source", d.source.as_ref(), source)
        .end()
}

fn op_metadata(m: &pb::OpMetadata) -> Value {
    fields()
        .flag("ignoreCache", m.ignore_cache)
        .map("description", &m.description, |v| text(v))
        .one("exportCache", m.export_cache.as_ref(), |e| fields().flag("Value", e.value).end())
        .map("caps", &m.caps, |b| Value::Flag(*b))
        .one("progressGroup", m.progress_group.as_ref(), |g| {
            fields().text("id", &g.id).text("name", &g.name).flag("weak", g.weak).end()
        })
        .one("linuxResources", m.linux_resources.as_ref(), |r| {
            fields()
                .big("memory", r.memory)
                .big("memorySwap", r.memory_swap)
                .ubig("cpuShares", r.cpu_shares)
                .ubig("cpuPeriod", r.cpu_period)
                .big("cpuQuota", r.cpu_quota)
                .text("cpusetCpus", &r.cpuset_cpus)
                .text("cpusetMems", &r.cpuset_mems)
                .end()
        })
        .end()
}

pub(crate) fn source(s: &pb::Source) -> Value {
    fields()
        .map("locations", &s.locations, |l| {
            fields()
                .many("locations", &l.locations, |l| {
                    fields()
                        .small("sourceIndex", l.source_index)
                        .many("ranges", &l.ranges, |r| {
                            fields()
                                .one("start", r.start.as_ref(), position)
                                .one("end", r.end.as_ref(), position)
                                .end()
                        })
                        .end()
                })
                .end()
        })
        .many("infos", &s.infos, |i| {
            fields()
                .text("filename", &i.filename)
                .bytes("data", &i.data)
                .one("definition", i.definition.as_ref(), definition)
                .text("language", &i.language)
                .end()
        })
        .end()
}

fn position(p: &pb::Position) -> Value {
    fields().small("line", p.line).small("character", p.character).end()
}
