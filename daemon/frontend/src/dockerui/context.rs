//! Where a build's files come from: the definition, the context, the ignore file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::{Digest, Failure, Kind, gopath, patterns};
use llb::build::{Copy, Defaults, Differ, FileAction, Git, Http, Local, Options, SourceMap, State};
use proto::pb;
use tokio::sync::{Mutex, OnceCell};

use super::config::Config;
use super::options::get;
use crate::gateway::{self, FileRange, Gateway, ImageOptions, RefId, ResolvedImage, Solve, resolve_image};
use crate::gitref;

pub(super) const IGNORE_FILE: &str = ".dockerignore";
const DOCKERFILE: &str = "Dockerfile";

/// One build as its frontend sees it.
pub struct Client {
    gateway: Arc<dyn Gateway>,
    config: Config,
    places: OnceCell<Places>,
    ignore: Mutex<Option<Ignore>>,
    images: Mutex<HashMap<(String, ImageOptions), Arc<Resolving>>>,
}

/// An image that is looked up once for all stages and platforms. An error is
/// remembered, too: one build sees one registry.
type Resolving = OnceCell<Result<ResolvedImage, Failure>>;

/// Where things are.
struct Places {
    /// The context, unless it is the client's.
    context: Option<State>,
    /// The definition, unless it is the client's.
    definition: Option<State>,
    context_name: String,
    definition_name: String,
    filename: String,
    force_local: bool,
}

struct Ignore {
    name: String,
    data: Vec<u8>,
}

/// The definition.
pub struct Source {
    /// Its text and how it was loaded.
    pub map: Arc<SourceMap>,
    /// The vertex that loads it: what warnings are about.
    pub vertex: Option<Digest>,
}

/// The name of a step nobody asked for.
pub(crate) fn internal(name: &str) -> Options {
    Options::new().name(format!("[internal] {name}"))
}

impl Client {
    /// Reads the options.
    ///
    /// # Errors
    /// The option that makes no sense.
    pub fn new(gateway: Arc<dyn Gateway>) -> Result<Self, Failure> {
        let config = Config::new(gateway.options())?;
        Ok(Self {
            gateway,
            config,
            places: OnceCell::new(),
            ignore: Mutex::new(None),
            images: Mutex::default(),
        })
    }

    /// What was asked for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who is asked.
    pub fn gateway(&self) -> &dyn Gateway {
        &*self.gateway
    }

    /// The named definitions the client gave as inputs.
    ///
    /// # Errors
    /// When they cannot be had, or one was left out: on the wire that is a
    /// definition without anything in it.
    pub async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, Failure> {
        let failed = |e: Failure| e.context("failed to get frontend inputs");
        let inputs = self.gateway.inputs().await.map_err(failed)?;
        if inputs.values().any(|input| input.metadata.is_empty()) {
            return Err(failed(Failure::new(Kind::Unknown, "invalid nil input definition to definition op")));
        }
        Ok(inputs)
    }

    /// What the frontend was started with.
    pub fn options(&self) -> &gateway::Options {
        self.gateway.options()
    }

    /// The configuration of the image `reference`, which is normalised.
    pub(crate) async fn resolve_image(
        &self,
        reference: &str,
        options: ImageOptions,
    ) -> Result<ResolvedImage, Failure> {
        let key = (reference.to_owned(), options.clone());
        let cell = Arc::clone(self.images.lock().await.entry(key).or_default());
        cell.get_or_init(|| resolve_image(&*self.gateway, reference, options)).await.clone()
    }

    /// How definitions that only this frontend needs are written.
    pub(crate) fn defaults(&self) -> Defaults {
        Defaults { caps: Some(self.options().caps.clone()), ..Defaults::default() }
    }

    /// Plans `state` and names the result.
    pub(crate) async fn solve(&self, state: &State, evaluate: bool) -> Result<Option<RefId>, Failure> {
        let request = Solve { evaluate, ..Solve::definition(state.marshal(&self.defaults())?) };
        Ok(self.gateway.solve(request).await?.single_ref()?.cloned())
    }

    pub(crate) async fn read(
        &self,
        reference: Option<&RefId>,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, Failure> {
        match reference {
            Some(reference) => self.gateway.read_file(reference, path, range).await,
            None => Err(Failure::new(Kind::NotFound, format!("open {path}: no such file or directory"))),
        }
    }

    /// The session that serves the local context `name`.
    pub(super) fn session(&self, name: &str) -> String {
        self.config.local_sessions.get(name).unwrap_or(&self.options().session_id).clone()
    }

    async fn places(&self) -> Result<&Places, Failure> {
        self.places.get_or_try_init(|| self.find_places()).await
    }

    async fn find_places(&self) -> Result<Places, Failure> {
        let opts = &self.options().opts;
        let mut places = Places {
            context: None,
            definition: None,
            context_name: "context".to_owned(),
            definition_name: "dockerfile".to_owned(),
            filename: opts.get("filename").cloned().unwrap_or_else(|| DOCKERFILE.to_owned()),
            force_local: false,
        };
        if let Some(name) = opts.get("dockerfilekey") {
            places.force_local = true;
            places.definition_name.clone_from(name);
        }
        let key = opts.get("contextkey").map_or("context", String::as_str);
        let remote = opts.get(key).map_or("", String::as_str);
        let keep = opts.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        let keep = keep.and_then(|v| base::gotext::parse_bool(v)) == Some(true);
        let commit_time = get(opts, "build-arg:SOURCE_DATE_EPOCH").is_some();

        if let Some(state) = git_context(remote, keep, commit_time)? {
            places.definition = Some(state.clone());
            places.context = Some(state);
        } else if remote.starts_with("http://") || remote.starts_with("https://") {
            self.http_context(remote, &mut places).await?;
        } else if self.options().caps.has(llb::caps::FRONTEND_INPUTS) {
            let inputs = self.inputs().await?;
            if !places.force_local
                && let Some(definition) = inputs.get(&places.definition_name)
            {
                places.definition = Some(State::from_definition(definition)?);
            }
            if let Some(context) = inputs.get("context") {
                places.context = Some(State::from_definition(context)?);
            }
        }
        if let (Some(context), Some(dir)) = (&places.context, opts.get("contextsubdir")) {
            let copy = Copy { contents_only: true, ..Copy::new(context, dir, "/") };
            places.context =
                Some(State::scratch().file(vec![FileAction::Copy(Box::new(copy))], Options::new()));
        }
        Ok(places)
    }

    /// A context by URL is an archive with all, or the definition alone.
    async fn http_context(&self, url: &str, places: &mut Places) -> Result<(), Failure> {
        const NAME: &str = "context";
        let options = internal("load remote build context");
        let state = Http { filename: NAME.to_owned(), options, ..Http::default() }.state(url);
        let reference =
            self.solve(&state, false).await.map_err(|e| e.context("failed to resolve httpcontext"))?;
        let range = FileRange { offset: 0, length: 1024 };
        let head = self
            .read(reference.as_ref(), NAME, Some(range))
            .await
            .map_err(|e| e.context("failed to read downloaded context"))?;
        let context = if is_archive(&head) {
            let copy = Copy { attempt_unpack: true, ..Copy::new(&state, format!("/{NAME}"), "/") };
            State::scratch().file(vec![FileAction::Copy(Box::new(copy))], Options::new())
        } else {
            NAME.clone_into(&mut places.filename);
            state
        };
        places.definition = Some(context.clone());
        places.context = Some(context);
        Ok(())
    }

    /// Loads the definition.
    ///
    /// # Errors
    /// When it cannot be found or read.
    pub async fn read_entrypoint(&self, language: &str) -> Result<Source, Failure> {
        let places = self.places().await?;
        let filename = &places.filename;
        let own_ignore = format!("{filename}{IGNORE_FILE}");
        let is_usual = gopath::base(filename) == DOCKERFILE;
        let lower = gopath::join([gopath::dir(filename).as_str(), "dockerfile"]);
        let state = match &places.definition {
            Some(state) if !places.force_local => state.clone(),
            _ => {
                let mut follow_paths = vec![filename.clone(), own_ignore.clone()];
                if is_usual {
                    follow_paths.push(lower.clone());
                }
                let name = &places.definition_name;
                Local {
                    follow_paths,
                    session_id: self.session(name),
                    shared_key_hint: name.clone(),
                    differ: Some((Differ::None, false)),
                    options: internal(&format!("load build definition from {filename}")),
                    ..Local::default()
                }
                .state(name)
            }
        };
        let definition = state.marshal(&self.defaults())?;
        let vertex = llb::build::head(&definition);
        let result = self
            .gateway
            .solve(Solve::definition(definition.clone()))
            .await
            .map_err(|e| e.context("failed to resolve dockerfile"))?;
        let reference = result.single_ref()?;
        let data = match self.read(reference, filename, None).await {
            Ok(data) => data,
            Err(e) if is_usual => match self.read(reference, &lower, None).await {
                Ok(data) => data,
                Err(_) => return Err(e.context("failed to read dockerfile")),
            },
            Err(e) => return Err(e.context("failed to read dockerfile")),
        };
        if let Ok(data) = self.read(reference, &own_ignore, None).await {
            *self.ignore.lock().await = Some(Ignore { name: own_ignore, data });
        }
        let map = SourceMap {
            filename: filename.clone(),
            language: language.to_owned(),
            data,
            definition: Some(definition),
        };
        Ok(Source { map: Arc::new(map), vertex })
    }

    /// The files of the context; of the client's only `follow_paths`, unless it
    /// is empty.
    ///
    /// # Errors
    /// When the context or its ignore file cannot be read.
    pub async fn main_context(&self, follow_paths: Vec<String>) -> Result<State, Failure> {
        let places = self.places().await?;
        if let Some(context) = &places.context {
            return Ok(context.clone());
        }
        let exclude_patterns = self
            .client_ignore_patterns(places)
            .await
            .map_err(|e| e.context("failed to read dockerignore patterns"))?;
        let name = &places.context_name;
        Ok(Local {
            session_id: self.session(name),
            exclude_patterns,
            shared_key_hint: name.clone(),
            follow_paths,
            options: internal("load build context"),
            ..Local::default()
        }
        .state(name))
    }

    /// What the ignore file of the client's context says; nothing for others.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn ignore_patterns(&self) -> Result<Vec<String>, Failure> {
        let places = self.places().await?;
        if places.context.is_some() { Ok(Vec::new()) } else { self.client_ignore_patterns(places).await }
    }

    async fn client_ignore_patterns(&self, places: &Places) -> Result<Vec<String>, Failure> {
        // Held while loading: whoever comes second waits for the first.
        let mut ignore = self.ignore.lock().await;
        if ignore.is_none() {
            let name = &places.context_name;
            let state = Local {
                session_id: self.session(name),
                follow_paths: vec![IGNORE_FILE.to_owned()],
                shared_key_hint: format!("{name}-{IGNORE_FILE}"),
                differ: Some((Differ::None, false)),
                options: internal(&format!("load {IGNORE_FILE}")),
                ..Local::default()
            }
            .state(name);
            let reference = self.solve(&state, false).await?;
            // No such file is as good as an empty one.
            let data = self.read(reference.as_ref(), IGNORE_FILE, None).await.unwrap_or_default();
            *ignore = Some(Ignore { name: IGNORE_FILE.to_owned(), data });
        }
        match &*ignore {
            Some(ignore) => parse_ignore(&ignore.name, &ignore.data),
            None => Ok(Vec::new()),
        }
    }
}

pub(super) fn parse_ignore(name: &str, data: &[u8]) -> Result<Vec<String>, Failure> {
    patterns::read_ignore_file(data)
        .map_err(|e| Failure::new(Kind::Unknown, e.to_string()).context(format!("failed parsing {name}")))
}

/// A repository as context, if the text names one.
pub(super) fn git_context(text: &str, keep: bool, commit_time: bool) -> Result<Option<State>, Failure> {
    let Some(git) = gitref::parse(text)? else { return Ok(None) };
    let mtime = match git.mtime.as_str() {
        "" if commit_time => "commit".to_owned(),
        other => other.to_owned(),
    };
    let state = Git {
        reference: git.reference,
        subdir: git.subdir,
        keep_git_dir: keep || git.keep_git_dir == Some(true),
        checksum: git.checksum,
        skip_submodules: git.submodules == Some(false),
        mtime,
        fetch_by_commit: git.fetch_by_commit,
        options: internal(&format!("load git source {text}")),
        ..Git::default()
    }
    .state(&git.remote);
    Ok(Some(state))
}

/// Whether a file that begins so is an archive, perhaps compressed.
fn is_archive(head: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    COMPRESSED.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

/// Whether this begins with the header of a file in a tar archive. A header
/// that only describes the next one does not count: that one is not there.
fn is_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    let (Some(stored), Some(kind)) = (header.get(148..156), header.get(156)) else { return false };
    let text: String = stored
        .iter()
        .map(|b| char::from(*b))
        .skip_while(|c| *c == ' ')
        .take_while(|c| c.is_digit(8))
        .collect();
    let Ok(stored) = i64::from_str_radix(&text, 8) else { return false };
    let bytes = || header.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    let empty = header.iter().all(|b| *b == 0);
    !empty && (stored == unsigned || stored == signed) && !matches!(kind, b'x' | b'L' | b'K')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_archives() {
        assert!(is_archive(&[0x1f, 0x8b, 0x08, 0]));
        assert!(!is_archive(b"FROM scratch\n"));
        let mut header = [0_u8; 512];
        header[..4].copy_from_slice(b"file");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(is_archive(&header));
        header[0] = b'x';
        assert!(!is_archive(&header) && !is_archive(&[0; 512]));
    }
}
