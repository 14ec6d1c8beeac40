//! `RUN --mount`, `--device`, `--network` and `--security`.

use base::gotext::{parse_bool, parse_uint};

use super::super::suggest::suggest;
use super::csv;
use super::{Device, Mount, MountKind, Network, Problem, Security, Sharing};

/// Replaces the variables of one word.
pub(super) type Expander<'a, E> = &'a mut dyn FnMut(&str) -> Result<String, E>;

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountKind {
    const ALL: [Self; 5] = [Self::Bind, Self::Cache, Self::Tmpfs, Self::Secret, Self::Ssh];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }

    fn parse(value: &str) -> Result<Self, Problem> {
        let lower = value.to_lowercase();
        Self::ALL.into_iter().find(|kind| kind.as_str() == lower).ok_or_else(|| Problem::MountKind {
            kind: value.to_owned(),
            suggestion: suggest(value, Self::ALL.map(Self::as_str), true),
        })
    }
}

impl Sharing {
    const ALL: [Self; 3] = [Self::Shared, Self::Private, Self::Locked];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
            Self::Locked => "locked",
        }
    }

    fn parse(value: &str) -> Result<Self, Problem> {
        let lower = value.to_lowercase();
        Self::ALL.into_iter().find(|mode| mode.as_str() == lower).ok_or_else(|| Problem::Sharing {
            value: value.to_owned(),
            suggestion: suggest(value, Self::ALL.map(Self::as_str), true),
        })
    }
}

impl Network {
    pub(super) fn parse(value: &str) -> Result<Self, Problem> {
        match value {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            _ => Err(Problem::Network(value.to_owned())),
        }
    }
}

impl Security {
    pub(super) fn parse(value: &str) -> Result<Self, Problem> {
        match value {
            "sandbox" => Ok(Self::Sandbox),
            "insecure" => Ok(Self::Insecure),
            _ => Err(Problem::Security(value.to_owned())),
        }
    }
}

impl Device {
    /// Reads `name[,required]` or `name=…,required=…`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let fields = csv::fields(text).map_err(|source| Problem::Csv { what: "devices", source })?;
        let mut device = Self::default();
        for field in fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => {
                    device.required = parse_bool(value)
                        .ok_or_else(|| Problem::FieldValue { key, value: value.to_owned() })?;
                }
                ("name", Some(_)) if !device.name.is_empty() => {
                    return Err(Problem::DeviceNamed(device.name));
                }
                ("name", Some(value)) => device.name = value.to_owned(),
                _ if device.name.is_empty() => device.name = field,
                (_, None) => return Err(Problem::FieldWithoutValue(field)),
                (_, Some(_)) => {
                    let suggestion = suggest(&key, ["name", "required"], true);
                    return Err(Problem::UnknownKey { key, field, suggestion });
                }
            }
        }
        Ok(device)
    }
}

/// Reads a mount without replacing variables: only `from` is known then, which
/// may have none. The rest waits for [`expand`].
pub(super) fn parse(text: &str) -> Result<Mount, Problem> {
    let mut mount = Mount::default();
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        let key = key.to_lowercase();
        if key != "from" {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            return Err(Problem::FromVariable(key));
        }
        value.clone_into(&mut mount.from);
    }
    mount.read_only = true;
    Ok(mount)
}

/// Reads a mount, replacing variables.
pub(super) fn expand<E: From<Problem>>(text: &str, expander: Expander<'_, E>) -> Result<Mount, E> {
    let mut mount = Mount::default();
    let mut read_only = None;
    for field in fields(text)? {
        match field.split_once('=') {
            Some((key, value)) => {
                let value = expander(value)?;
                set(&mut mount, &mut read_only, key.to_lowercase(), value, &field)?;
            }
            None => set_bare(&mut mount, &mut read_only, &field)?,
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    check(&mount)?;
    Ok(mount)
}

fn fields(text: &str) -> Result<Vec<String>, Problem> {
    csv::fields(text).map_err(|source| Problem::Csv { what: "mounts", source })
}

fn takes_required(kind: MountKind) -> bool {
    matches!(kind, MountKind::Secret | MountKind::Ssh)
}

/// A field without a value.
fn set_bare(mount: &mut Mount, read_only: &mut Option<bool>, field: &str) -> Result<(), Problem> {
    match field.to_lowercase().as_str() {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" if takes_required(mount.kind) => mount.required = true,
        "required" => {
            return Err(Problem::KeyForMount { key: "required".to_owned(), kind: mount.kind.as_str() });
        }
        _ => return Err(Problem::FieldWithoutValue(field.to_owned())),
    }
    Ok(())
}

fn set(
    mount: &mut Mount,
    read_only: &mut Option<bool>,
    key: String,
    value: String,
    field: &str,
) -> Result<(), Problem> {
    let kind = mount.kind;
    let bad = |key: &str, value: &str| Problem::FieldValue { key: key.to_owned(), value: value.to_owned() };
    let flag = |key: &str, value: &str| parse_bool(value).ok_or_else(|| bad(key, value));
    let number = |key: &'static str, base: u32, value: &str| {
        parse_uint(value, base, 32)
            .and_then(|n| u32::try_from(n).ok())
            .map(Some)
            .ok_or_else(|| Problem::MountNumber { key, value: value.to_owned() })
    };
    match key.as_str() {
        "type" => mount.kind = MountKind::parse(&value)?,
        "from" => mount.from = value,
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "readonly" | "ro" => *read_only = Some(flag(&key, &value)?),
        "readwrite" | "rw" => *read_only = Some(!flag(&key, &value)?),
        "required" if takes_required(kind) => mount.required = flag(&key, &value)?,
        "size" if kind == MountKind::Tmpfs => {
            mount.size_limit = base::size::ram_in_bytes(&value).ok_or_else(|| bad(&key, &value))?;
        }
        "required" | "size" => return Err(Problem::KeyForMount { key, kind: kind.as_str() }),
        "id" => mount.id = value,
        "sharing" => mount.sharing = Some(Sharing::parse(&value)?),
        "mode" => mount.mode = number("mode", 8, &value)?,
        "uid" => mount.uid = number("uid", 10, &value)?,
        "gid" => mount.gid = number("gid", 10, &value)?,
        "env" => mount.env = Some(value),
        _ => {
            let suggestion = suggest(&key, KEYS, true);
            return Err(Problem::UnknownKey { key, field: field.to_owned(), suggestion });
        }
    }
    Ok(())
}

/// What fits together.
fn check(mount: &Mount) -> Result<(), Problem> {
    let kind = mount.kind;
    if matches!(kind, MountKind::Bind | MountKind::Tmpfs) {
        let owners = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
        if let Some((key, _)) = owners.into_iter().find(|(_, value)| value.is_some()) {
            return Err(Problem::OwnerForMount { key, kind: kind.as_str() });
        }
    }
    if kind == MountKind::Secret {
        if !mount.from.is_empty() {
            return Err(Problem::SecretFrom);
        }
        if mount.sharing.is_some() {
            return Err(Problem::SecretSharing);
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return Err(Problem::SecretName);
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return Err(Problem::SecretSourceAndId);
        }
    }
    if mount.sharing.is_some() && kind != MountKind::Cache {
        return Err(Problem::SharingForMount(kind.as_str()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        parse(text).map_err(|e| e.to_string())?;
        expand(text, &mut |word: &str| Ok::<_, Problem>(word.replace("$x", "7"))).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_mounts() {
        let m = mount("type=cache,target=/a$x,id=$x,sharing=LOCKED,mode=0755,uid=$x,gid=8").unwrap();
        assert_eq!((m.kind, m.target.as_str(), m.id.as_str()), (MountKind::Cache, "/a7", "7"));
        assert_eq!((m.mode, m.uid, m.gid), (Some(0o755), Some(7), Some(8)));
        assert_eq!((m.sharing, m.read_only), (Some(Sharing::Locked), false));
        let m = mount("from=s,src=/a,dst=/b").unwrap();
        assert_eq!((m.kind, m.from.as_str(), m.read_only), (MountKind::Bind, "s", true));
        assert!(!mount("dst=/b,rw").unwrap().read_only);
        assert!(mount("type=tmpfs,dst=/b,readwrite=false").unwrap().read_only);
        assert_eq!(mount("type=tmpfs,size=1.5k").unwrap().size_limit, 1536);
        let m = mount("type=secret,\"id=a,b\",env=,required").unwrap();
        assert_eq!((m.id.as_str(), m.env.as_deref(), m.required), ("a,b", Some(""), true));
        assert_eq!(mount("from=a$").unwrap().from, "a$");
        let early = parse("type=nonsense,from=a,ro").unwrap();
        assert_eq!((early.kind, early.from.as_str()), (MountKind::Bind, "a"));
    }

    #[test]
    fn refuses_mounts() {
        for (text, want) in [
            ("", "failed to parse csv mounts: EOF"),
            ("type=foo", "unsupported mount type \"foo\""),
            ("type=cahe", "unsupported mount type \"cahe\" (did you mean cache?)"),
            ("sharing=locke", "unsupported sharing value \"locke\" (did you mean locked?)"),
            ("from=$x", "'from' doesn't support variable expansion, define alias stage instead"),
            ("foobar", "invalid field 'foobar' must be a key=value pair"),
            ("Tagret=/x", "unexpected key 'tagret' in 'Tagret=/x' (did you mean target?)"),
            ("required", "unexpected key 'required' for mount type 'bind'"),
            ("required=1", "unexpected key 'required' for mount type 'bind'"),
            ("size=1", "unexpected key 'size' for mount type 'bind'"),
            ("type=tmpfs,size=x", "invalid value for size: x"),
            ("ro=x", "invalid value for ro: x"),
            ("mode=8", "invalid value 8 for mode"),
            ("uid=-1", "invalid value -1 for uid"),
            ("uid=1", "uid not allowed for \"bind\" type mounts"),
            ("type=secret,from=a", "secret mount should not have a from"),
            ("type=secret,sharing=locked", "secret mount should not define sharing"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,src=a,id=b", "both source and id can't be set"),
            ("sharing=locked", "invalid cache sharing set for bind mount"),
        ] {
            assert_eq!(mount(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn reads_devices() {
        let ok = |s: &str| Device::parse(s).map(|d| (d.name, d.required)).map_err(|e| e.to_string());
        assert_eq!(ok("vendor.com/gpu=0"), Ok(("vendor.com/gpu=0".into(), false)));
        assert_eq!(ok("a,required"), Ok(("a".into(), true)));
        assert_eq!(ok("Required=0,NAME=b"), Ok(("b".into(), false)));
        assert_eq!(ok("a,b"), Err("invalid field 'b' must be a key=value pair".into()));
        assert_eq!(ok("a,name=b"), Err("device name already set to a".into()));
        assert_eq!(ok("a,nam=b"), Err("unexpected key 'nam' in 'nam=b' (did you mean name?)".into()));
        assert_eq!(ok("a,required=x"), Err("invalid value for required: x".into()));
        assert_eq!(ok(""), Err("failed to parse csv devices: EOF".into()));
    }
}
