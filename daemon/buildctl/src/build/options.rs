//! What the values of the flags mean.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base::{Failure, Kind, Secret, gotext};
use session::client::{Agent, SecretSource, Target};

/// Attributes by name.
pub(crate) type Attrs = BTreeMap<String, String>;

/// Something with a type and attributes: an exporter, a remote cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) attrs: Attrs,
}

/// Where an exporter's result goes on this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it stays with the daemon or goes to a registry.
    None,
    /// Into a directory; what is there and not in the result goes away if `delete`.
    Dir { path: PathBuf, delete: bool },
    /// Into an OCI layout.
    Store(PathBuf),
    /// Into a file.
    File(PathBuf),
    /// To standard output.
    Stdout,
}

impl Place {
    /// The target that takes the result, unless it is a store.
    pub(crate) fn target(&self) -> Option<Target> {
        match self {
            Self::None | Self::Store(_) => None,
            Self::Dir { path, delete } => Some(Target::Dir { path: path.clone(), delete: *delete }),
            Self::File(path) => Some(Target::file(path.clone())),
            Self::Stdout => Some(Target::File(Box::new(|_| Ok(Some(Box::new(std::io::stdout())))))),
        }
    }
}

/// The fields of one line of comma separated values.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, Failure> {
    let bad = |what: &str| Failure::invalid(format!("parse {}: {what}", gotext::quote(line)));
    let mut rest = line.strip_suffix('\n').unwrap_or(line);
    if rest.is_empty() {
        return Err(bad("empty value"));
    }
    let mut out = Vec::new();
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(f, a)| (f, Some(a)));
            if field.contains('"') {
                return Err(bad("bare \" in non-quoted field"));
            }
            out.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(out),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (text, after) =
                quoted.split_once('"').ok_or_else(|| bad("extraneous or missing \" in quoted field"))?;
            field.push_str(text);
            match after.strip_prefix('"') {
                // Two quotes are one.
                Some(after) => {
                    field.push('"');
                    quoted = after;
                }
                None => {
                    quoted = after;
                    break;
                }
            }
        }
        out.push(field);
        match quoted.strip_prefix(',') {
            Some(after) => rest = after,
            None if quoted.is_empty() => return Ok(out),
            None => return Err(bad("extraneous or missing \" in quoted field")),
        }
    }
}

fn pair(field: &str) -> Result<(String, String), Failure> {
    let (key, value) =
        field.split_once('=').ok_or_else(|| Failure::invalid(format!("invalid value {field}")))?;
    Ok((key.to_ascii_lowercase(), value.to_owned()))
}

fn entry(text: &str, flag: &str) -> Result<Entry, Failure> {
    let mut entry = Entry { kind: String::new(), attrs: Attrs::new() };
    for field in fields(text)? {
        match pair(&field)? {
            (key, value) if key == "type" => entry.kind = value,
            (key, value) => drop(entry.attrs.insert(key, value)),
        }
    }
    if entry.kind.is_empty() {
        return Err(Failure::invalid(format!("{flag} requires type=<type>")));
    }
    Ok(entry)
}

/// `name=value` flags.
pub(crate) fn attrs(list: &[String]) -> Result<Attrs, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Failure::invalid(format!("invalid value {text}"))),
    };
    list.iter().map(pair).collect()
}

/// `--output`. `terminal`: standard output is one.
pub(crate) fn output(text: &str, terminal: bool) -> Result<(Entry, Place), Failure> {
    let mut entry = entry(text, "--output")?;
    if let Some(v) = entry.attrs.get("output") {
        return Err(Failure::invalid(format!("output={v} not supported for --output, you meant dest={v}?")));
    }
    let place = place(&entry, terminal).map_err(|e| e.context("invalid output option: output"))?;
    if place != Place::None {
        entry.attrs.remove("dest");
    }
    Ok((entry, place))
}

fn place(entry: &Entry, terminal: bool) -> Result<Place, Failure> {
    let dest = entry.attrs.get("dest").map_or("", String::as_str);
    let kind = entry.kind.as_str();
    let attr = |name: &str| entry.attrs.get(name).map_or("", String::as_str);
    let tar = gotext::parse_bool(attr("tar")).unwrap_or(true);
    match kind {
        "local" | "oci" | "docker" if kind == "local" || !tar => {
            if dest.is_empty() {
                return Err(Failure::invalid(format!("output directory is required for {kind} exporter")));
            }
            if kind != "local" {
                return Ok(Place::Store(dest.into()));
            }
            let delete = match attr("mode").trim().to_ascii_lowercase().as_str() {
                "" | "copy" => false,
                "delete" => true,
                other => {
                    let text = format!("invalid local exporter mode {}", gotext::quote(other));
                    return Err(Failure::invalid(text));
                }
            };
            Ok(Place::Dir { path: dest.into(), delete })
        }
        "tar" | "oci" | "docker" => match dest {
            "" | "-" if terminal => Err(Failure::invalid(format!(
                "output file is required for {kind} exporter. refusing to write to console"
            ))),
            "" | "-" => Ok(Place::Stdout),
            path => match std::fs::metadata(path) {
                Ok(meta) if meta.is_dir() => Err(Failure::invalid("destination file is a directory")),
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Failure::invalid(format!("invalid destination file: {path}: {e}")))
                }
                _ => Ok(Place::File(path.into())),
            },
        },
        _ if !dest.is_empty() => {
            Err(Failure::invalid(format!("output {dest} is not supported by {kind} exporter")))
        }
        _ => Ok(Place::None),
    }
}

/// The environment, for what is taken from it.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `--export-cache`.
pub(crate) fn export_cache(text: &str, env: Env<'_>) -> Result<Entry, Failure> {
    let mut entry = if text.contains("type=") {
        entry(text, "--export-cache")?
    } else {
        tracing::warn!("--export-cache <ref> is deprecated, use --export-cache type=registry,ref=<ref>");
        Entry { kind: "registry".into(), attrs: [("ref".to_owned(), text.to_owned())].into() }
    };
    entry.attrs.entry("mode".into()).or_insert_with(|| "min".into());
    github(entry, env)
}

/// `--import-cache`.
pub(crate) fn import_cache(text: &str, env: Env<'_>) -> Result<Entry, Failure> {
    if text.contains("type=") {
        return github(entry(text, "--import-cache")?, env);
    }
    tracing::warn!("--import-cache <ref> is deprecated, use --import-cache type=registry,ref=<ref>");
    Ok(Entry { kind: "registry".into(), attrs: [("ref".to_owned(), text.to_owned())].into() })
}

/// What GitHub's runners say about their cache.
fn github(mut entry: Entry, env: Env<'_>) -> Result<Entry, Failure> {
    if entry.kind != "gha" {
        return Ok(entry);
    }
    let attrs = &mut entry.attrs;
    let second = match attrs.get("version") {
        Some(version) => version == "2",
        None => env("ACTIONS_CACHE_SERVICE_V2").and_then(|v| gotext::parse_bool(&v)).unwrap_or(false),
    };
    let results = env("ACTIONS_RESULTS_URL");
    if let (true, false, Some(url)) = (second, attrs.contains_key("url_v2"), &results) {
        attrs.insert("url_v2".into(), url.clone());
    }
    if let (false, Some(url)) = (attrs.contains_key("url"), env("ACTIONS_CACHE_URL").or(results)) {
        attrs.insert("url".into(), url);
    }
    if !attrs.contains_key("url") && !attrs.contains_key("url_v2") {
        return Err(Failure::invalid("cache with type gha requires url parameter to be set"));
    }
    if !attrs.contains_key("token") {
        let token = env("ACTIONS_RUNTIME_TOKEN").ok_or_else(|| {
            Failure::invalid("cache with type gha requires token parameter or $ACTIONS_RUNTIME_TOKEN")
        })?;
        attrs.insert("token".into(), token);
    }
    Ok(entry)
}

/// `--opt`, over what the environment says.
pub(crate) fn opts(list: &[String], env: Env<'_>) -> Result<Attrs, Failure> {
    let mut out = Attrs::new();
    if let Some(epoch) = env("SOURCE_DATE_EPOCH") {
        out.insert("build-arg:SOURCE_DATE_EPOCH".into(), epoch);
    }
    out.extend(attrs(list).map_err(|e| e.context("invalid opt"))?);
    Ok(out)
}

/// `--secret`.
pub(crate) fn secret(text: &str, env: Env<'_>) -> Result<(String, SecretSource), Failure> {
    let (mut id, mut file, mut variable, mut kind) =
        (String::new(), String::new(), String::new(), String::new());
    for field in fields(text).map_err(|e| e.context("failed to parse csv secret"))? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Failure::invalid(format!("invalid field '{field}' must be a key=value pair")));
        };
        let slot = match key.to_ascii_lowercase().as_str() {
            "type" if value == "file" || value == "env" => &mut kind,
            "type" => {
                return Err(Failure::invalid(format!("unsupported secret type {}", gotext::quote(value))));
            }
            "id" => &mut id,
            "source" | "src" => &mut file,
            "env" => &mut variable,
            key => return Err(Failure::invalid(format!("unexpected key '{key}' in '{field}'"))),
        };
        value.clone_into(slot);
    }
    if kind == "env" && variable.is_empty() {
        variable = std::mem::take(&mut file);
    }
    if id.is_empty() {
        return Err(Failure::invalid("secret missing ID"));
    }
    if variable.is_empty() && file.is_empty() {
        if env(&id).is_some() { variable.clone_from(&id) } else { file.clone_from(&id) }
    }
    if !variable.is_empty() {
        return Ok((id, SecretSource::Value(Secret::new(env(&variable).unwrap_or_default()))));
    }
    let meta = std::fs::metadata(&file)
        .map_err(|e| Failure::new(Kind::NotFound, format!("failed to stat {file}: {e}")))?;
    if meta.len() > 500 * 1024 {
        return Err(Failure::invalid(format!("secret {id} too big. max size 500KiB")));
    }
    Ok((id, SecretSource::File(file.into())))
}

/// `--ssh`.
pub(crate) fn ssh(text: &str, env: Env<'_>) -> Result<(String, SshSource), Failure> {
    use std::os::unix::fs::FileTypeExt;
    let (id, rest) = text.split_once('=').map_or((text, ""), |(id, rest)| (id, rest));
    let id = if id.is_empty() { "default" } else { id };
    let (mut paths, mut raw) = (Vec::new(), false);
    for part in rest.split(',').filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some(("raw", value)) => {
                raw = gotext::parse_bool(value)
                    .ok_or_else(|| Failure::invalid(format!("invalid value for 'raw': {value}")))?;
            }
            _ => paths.push(part.to_owned()),
        }
    }
    if raw && paths.len() != 1 {
        let text = format!("raw mode must supply exactly one socket path for {}", gotext::quote(id));
        return Err(Failure::invalid(text));
    }
    if paths.is_empty() {
        let socket = env("SSH_AUTH_SOCK").filter(|p| !p.is_empty()).ok_or_else(|| {
            Failure::invalid("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
        })?;
        paths.push(socket);
    }
    let (mut keys, mut sockets) = (Vec::new(), Vec::new());
    for path in paths {
        let meta = std::fs::metadata(&path)
            .map_err(|e| Failure::new(Kind::NotFound, format!("stat {path}: {e}")))?;
        let kind = if meta.file_type().is_socket() { &mut sockets } else { &mut keys };
        kind.push(PathBuf::from(path));
    }
    let source = match (sockets.as_slice(), keys.is_empty()) {
        ([], _) if raw => return Err(Failure::invalid("raw mode only supported with socket paths")),
        ([], _) => SshSource::Keys(keys),
        ([socket], true) => SshSource::Agent(Agent { socket: socket.clone(), raw }),
        (_, true) => return Err(Failure::invalid("only single socket allowed")),
        (_, false) => return Err(Failure::invalid("invalid combination of keys and sockets")),
    };
    Ok((id.to_owned(), source))
}

/// Who signs for a build.
#[derive(Debug)]
pub(crate) enum SshSource {
    /// An agent that is there.
    Agent(Agent),
    /// One that has yet to be started, for these private keys.
    Keys(Vec<PathBuf>),
}

/// `--allow`.
pub(crate) fn allow(text: &str) -> Result<(), Failure> {
    let known = matches!(text, "security.insecure" | "network.host" | "device");
    match text.strip_prefix("device=") {
        Some(device) => {
            for field in fields(device)?.iter().skip(1) {
                match field.split_once('=') {
                    Some(("alias", _)) => {}
                    Some((key, _)) => {
                        let text = format!("unknown device config key {}", gotext::quote(key));
                        return Err(Failure::invalid(text));
                    }
                    None => {
                        return Err(Failure::invalid(format!(
                            "invalid device config {}",
                            gotext::quote(field)
                        )));
                    }
                }
            }
            Ok(())
        }
        None if known => Ok(()),
        None => Err(Failure::invalid(format!("unknown entitlement {text}"))),
    }
}

/// `id=path` of `--oci-layout`.
pub(crate) fn layout(text: &str) -> Result<(String, PathBuf), Failure> {
    match text.split_once('=') {
        Some((id, path)) => Ok((id.to_owned(), path.into())),
        None => Err(Failure::invalid(format!(
            "oci-layout option must be 'id=path/to/layout', instead had invalid {text}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn error<T>(result: Result<T, Failure>) -> String {
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn lines_split_as_csv() {
        let list = |text: &str| fields(text).unwrap();
        assert_eq!(list("a=b,c=d"), ["a=b", "c=d"]);
        assert_eq!(list("type=image,\"name=a,b\",x="), ["type=image", "name=a,b", "x="]);
        assert_eq!(list("\"a\"\"b\""), ["a\"b"]);
        for bad in ["", "a\"b", "\"a", "\"a\"b"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn outputs_know_their_place() {
        let place = |text: &str| output(text, false).unwrap().1;
        assert_eq!(place("type=image,name=x"), Place::None);
        assert_eq!(place("type=local,dest=out"), Place::Dir { path: "out".into(), delete: false });
        assert_eq!(place("type=local,dest=out,mode=delete"), Place::Dir { path: "out".into(), delete: true });
        assert_eq!(place("type=oci,dest=x.tar"), Place::File("x.tar".into()));
        assert_eq!(place("type=oci,tar=false,dest=x"), Place::Store("x".into()));
        assert_eq!(place("type=docker"), Place::Stdout);
        assert_eq!(place("type=tar,dest=-"), Place::Stdout);
        assert!(!output("type=tar,dest=x.tar", false).unwrap().0.attrs.contains_key("dest"));
    }

    #[test]
    fn bad_outputs_are_explained() {
        for (text, why) in [
            ("x", "invalid value x"),
            ("dest=x", "--output requires type=<type>"),
            ("type=local,output=x", "output=x not supported for --output, you meant dest=x?"),
            ("type=local", "invalid output option: output: output directory is required for local exporter"),
            ("type=oci,tar=false", "output directory is required for oci exporter"),
            ("type=image,dest=x", "output x is not supported by image exporter"),
            ("type=tar,dest=/", "destination file is a directory"),
            ("type=local,dest=x,mode=other", "invalid local exporter mode \"other\""),
        ] {
            let e = error(output(text, false));
            assert!(e.contains(why), "{text}: {e}");
        }
        let e = error(output("type=oci", true));
        assert!(e.contains("output file is required for oci exporter. refusing to write to console"), "{e}");
    }

    #[test]
    fn caches_have_types() {
        let attr = |e: &Entry, key: &str| e.attrs.get(key).cloned().unwrap_or_default();
        let old = export_cache("example.com/a", &none).unwrap();
        assert_eq!(
            (old.kind.as_str(), attr(&old, "ref").as_str(), attr(&old, "mode").as_str()),
            ("registry", "example.com/a", "min")
        );
        let new = export_cache("type=local,dest=x,mode=max", &none).unwrap();
        assert_eq!((new.kind.as_str(), attr(&new, "mode").as_str()), ("local", "max"));
        assert!(!import_cache("type=local,src=x", &none).unwrap().attrs.contains_key("mode"));
        let runner = |name: &str| match name {
            "ACTIONS_CACHE_SERVICE_V2" => Some("True".to_owned()),
            "ACTIONS_RESULTS_URL" => Some("https://two".to_owned()),
            "ACTIONS_RUNTIME_TOKEN" => Some("t".to_owned()),
            _ => None,
        };
        let gha = import_cache("type=gha", &runner).unwrap();
        assert_eq!(
            (attr(&gha, "url").as_str(), attr(&gha, "url_v2").as_str(), attr(&gha, "token").as_str()),
            ("https://two", "https://two", "t")
        );
        assert!(error(import_cache("type=gha", &none)).contains("requires url"));
        assert!(error(import_cache("type=,x=y", &none)).contains("requires type"));
    }

    #[test]
    fn secrets_come_from_files_and_the_environment() {
        let env = |name: &str| (name == "TOKEN").then(|| "value".to_owned());
        for text in ["id=TOKEN", "id=x,env=TOKEN", "id=x,type=env,src=TOKEN"] {
            assert!(
                matches!(secret(text, &env).unwrap().1, SecretSource::Value(v) if v.expose() == "value"),
                "{text}"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("id=x,src={}", file.path().display());
        assert!(matches!(secret(&text, &env).unwrap().1, SecretSource::File(_)));
        assert!(error(secret("src=x", &env)).contains("missing ID"));
        assert!(error(secret("id=x,src=/no/such/file", &env)).contains("failed to stat"));
        assert!(error(secret("id=x,typ=env", &env)).contains("unexpected key 'typ'"));
    }

    #[test]
    fn agents_are_sockets_or_made_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = path.to_str().unwrap().to_owned();
        let env = |_: &str| Some(socket.clone());
        assert_eq!(ssh("default", &env).unwrap().0, "default");
        let raw = ssh(&format!("x={socket},raw=true"), &none).unwrap();
        assert!(matches!(&raw, (id, SshSource::Agent(agent)) if id == "x" && agent.raw), "{raw:?}");
        let key = tempfile::NamedTempFile::new().unwrap();
        let key = key.path().to_str().unwrap();
        let keys = ssh(&format!("={key},{key}"), &none).unwrap();
        assert!(matches!(&keys, (id, SshSource::Keys(k)) if id == "default" && k.len() == 2), "{keys:?}");
        assert!(error(ssh(&format!("x={socket},{key}"), &none)).contains("combination of keys and sockets"));
        assert!(error(ssh(&format!("x={socket},{socket}"), &none)).contains("single socket"));
        assert!(error(ssh(&format!("x={key},raw=true"), &none)).contains("only supported with socket paths"));
        assert!(error(ssh("default", &none)).contains("SSH_AUTH_SOCK"));
        assert!(error(ssh("x=raw=true", &none)).contains("exactly one socket path"));
    }

    #[test]
    fn entitlements_are_known() {
        for good in ["network.host", "security.insecure", "device", "device=vendor.com/x=all,alias=y"] {
            allow(good).unwrap();
        }
        assert_eq!(error(allow("root")), "unknown entitlement root");
        assert!(error(allow("device=x,other=1")).contains("unknown device config key"));
    }
}
