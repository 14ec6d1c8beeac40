//! Contexts by name: what a client puts in place of a stage or an image.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::gotext::quote;
use base::reference::Reference;
use base::{Digest, Failure, Kind, Platform};
use base64::Engine as _;
use llb::build::{Differ, Http, Image as ImageSource, Later, Local, OciLayout, Options, State};

use super::context::{Client, IGNORE_FILE, git_context, parse_ignore};
use crate::convert::Image;
use crate::gateway::{ImageOptions, Layout, ResolvedImage};

/// Policy may send a name from one place to another, but not in circles.
const MAX_REDIRECTS: usize = 10;

/// What a client said of a name.
#[derive(Debug, Clone)]
pub struct NamedContext {
    /// Where it is, such as `docker-image://alpine`.
    input: String,
    name: String,
    /// The name as the client wrote it, with the platform.
    full_name: String,
    shared_key: String,
    platform: Option<Platform>,
    resolve_mode: String,
}

/// A context by name, loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its files.
    pub state: State,
    /// Its configuration, when it is an image.
    pub image: Option<Image>,
    /// What is still to be said when it is a directory of the client.
    pub pending: Option<PendingLocal>,
}

/// A directory of the client of which only some paths may be needed.
#[derive(Debug, Clone)]
pub struct PendingLocal {
    later: Arc<Later>,
    name: String,
    source: Local,
}

impl PendingLocal {
    /// These paths are needed; empty: all.
    pub fn set(&self, follow_paths: Vec<String>) {
        let source = Local { follow_paths, ..self.source.clone() };
        self.later.set(source.state(&self.name));
    }
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Unknown, text)
}

impl Client {
    /// What the client said of `name`, for this platform or for all.
    ///
    /// # Errors
    /// When it is not a name.
    pub fn named_context(
        &self,
        name: &str,
        platform: Option<Platform>,
        resolve_mode: &str,
    ) -> Result<Option<NamedContext>, Failure> {
        let reference = name
            .parse::<Reference>()
            .map_err(|e| bad(e.to_string()).context(format!("invalid context name {name}")))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let shown = platform.clone().unwrap_or_else(Platform::host).normalized().format_all();
        let opts = &self.options().opts;
        let found = [format!("{name}::{shown}"), name.to_owned()].into_iter().find_map(|full_name| {
            let input = opts.get(&format!("context:{full_name}"))?.clone();
            Some((full_name, input))
        });
        Ok(found.map(|(full_name, input)| NamedContext {
            input,
            name: name.to_owned(),
            shared_key: opts.get(&format!("sharedkey:localdir:{full_name}")).cloned().unwrap_or_default(),
            full_name,
            platform,
            resolve_mode: resolve_mode.to_owned(),
        }))
    }

    /// Loads a context by name.
    ///
    /// # Errors
    /// When it is not there, or nothing a context can be.
    pub async fn load(&self, context: &NamedContext) -> Result<Loaded, Failure> {
        let mut context = context.clone();
        for _ in 0..=MAX_REDIRECTS {
            match self.load_once(&context).await? {
                Step::Done(loaded) => return Ok(*loaded),
                Step::Redirect(input) => context.input = input,
            }
        }
        Err(bad(format!(
            "context recursion limit exceeded; this may indicate a cycle in the provided source policies: {}",
            context.input
        )))
    }

    async fn load_once(&self, context: &NamedContext) -> Result<Step, Failure> {
        let (input, shown) = (&context.input, &context.full_name);
        let Some((scheme, rest)) = input.split_once(':') else {
            return Err(bad(format!("invalid context specifier {input} for {shown}")));
        };
        let scheme = if scheme.starts_with("git@") { "git" } else { scheme };
        let loaded = match scheme {
            "docker-image" => return self.load_image(context, rest).await,
            "oci-layout" => self.load_layout(context, rest).await?,
            "git" => match git_context(input, false, false)? {
                Some(state) => plain(state),
                None => return Err(bad(format!("invalid git context {input}"))),
            },
            "http" | "https" => plain(match git_context(input, false, false)? {
                Some(state) => state,
                None => {
                    let options = Options::new().name(format!("[context {shown}] {input}"));
                    Http { filename: "context".to_owned(), options, ..Http::default() }.state(input)
                }
            }),
            "local" => self.load_local(context, rest).await?,
            "input" => self.load_input(context, rest).await?,
            other => return Err(bad(format!("unsupported context source {other} for {shown}"))),
        };
        Ok(Step::Done(Box::new(loaded)))
    }

    async fn load_image(&self, context: &NamedContext, rest: &str) -> Result<Step, Failure> {
        let given = rest.strip_prefix("//").unwrap_or(rest);
        let shown = &context.full_name;
        if given == "scratch" {
            return Ok(Step::Done(Box::new(plain(State::scratch()))));
        }
        let reference = given.parse::<Reference>().map_err(|e| bad(e.to_string()))?.tag_name_only();
        let options = ImageOptions {
            platform: context.platform.clone(),
            resolve_mode: context.resolve_mode.clone(),
            log_name: format!("[context {shown}] load metadata for {given}"),
            layout: None,
        };
        match self.resolve_image(&reference.to_string(), options).await? {
            ResolvedImage::Other { identifier } => match identifier.split_once("://") {
                Some((scheme, rest)) => Ok(Step::Redirect(format!("{scheme}:{rest}"))),
                None => Err(bad(format!("could not parse ref: {identifier}"))),
            },
            ResolvedImage::Image { reference, config, .. } => {
                let mut image = parse_config(&config)?;
                image.created = None;
                let mut options = Options::new().name(format!("[context {shown}] {given}"));
                options.platform.clone_from(&context.platform);
                let state = ImageSource { options, ..ImageSource::default() }.state(&reference)?;
                let state = state.with_image_config(&config)?;
                Ok(Step::Done(Box::new(Loaded { state, image: Some(image), pending: None })))
            }
        }
    }

    async fn load_layout(&self, context: &NamedContext, rest: &str) -> Result<Loaded, Failure> {
        let given = rest.strip_prefix("//").unwrap_or(rest);
        let shown = &context.full_name;
        // The store's name need not be an image's; only the digest counts.
        let Some((store, digest)) = given.rsplit_once('@') else {
            return Err(bad(format!("oci-layout reference {} has no digest", quote(given))));
        };
        let digest: Digest = digest.parse().map_err(|e: base::digest::ParseError| {
            bad(e.to_string()).context(format!("could not parse oci-layout reference {}", quote(given)))
        })?;
        let store = match store.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => store,
        };
        if store.is_empty() {
            return Err(bad(format!("oci-layout reference {} has no name", quote(given))));
        }
        let reference = context
            .name
            .parse::<Reference>()
            .map_err(|e| {
                let name = quote(&context.name);
                bad(e.to_string()).context(format!("could not parse oci-layout reference {name}"))
            })?
            .with_digest(digest)
            .to_string();
        let session_id = self.options().session_id.clone();
        let options = ImageOptions {
            platform: context.platform.clone(),
            resolve_mode: String::new(),
            log_name: format!("[context {shown}] load metadata for {reference}"),
            layout: Some(Layout { session_id: session_id.clone(), store_id: store.to_owned() }),
        };
        let config = match self.resolve_image(&reference, options).await? {
            ResolvedImage::Image { config, .. } => config,
            ResolvedImage::Other { identifier } => {
                return Err(bad(format!(
                    "ref mutated by policy to non-image: oci-layout://{reference} -> {identifier}"
                )));
            }
        };
        let image =
            parse_config(&config).map_err(|e| e.context("could not parse oci-layout image config"))?;
        let mut options = Options::new().name(format!("[context {shown}] OCI load from client"));
        options.platform.clone_from(&context.platform);
        let layout = OciLayout { session_id, store_id: store.to_owned(), options, ..OciLayout::default() };
        let state = layout.state(&reference).with_image_config(&config)?;
        Ok(Loaded { state, image: Some(image), pending: None })
    }

    async fn load_local(&self, context: &NamedContext, name: &str) -> Result<Loaded, Failure> {
        let shown = &context.full_name;
        let session_id = self.session(name);
        let ignore = Local {
            session_id: session_id.clone(),
            follow_paths: vec![IGNORE_FILE.to_owned()],
            shared_key_hint: format!("context:{shown}-{IGNORE_FILE}"),
            differ: Some((Differ::None, false)),
            options: Options::new().name(format!("[context {shown}] load {IGNORE_FILE}")),
            ..Local::default()
        }
        .state(name);
        let reference = self.solve(&ignore, true).await?;
        // No such file is as good as an empty one.
        let data = self.read(reference.as_ref(), IGNORE_FILE, None).await.unwrap_or_default();
        let source = Local {
            session_id,
            shared_key_hint: format!("context:{shown}-{}", context.shared_key),
            exclude_patterns: parse_ignore(IGNORE_FILE, &data)?,
            options: Options::new().name(format!("[context {shown}] load from client")),
            ..Local::default()
        };
        let later = Later::new();
        let state = State::later(&later);
        let pending = PendingLocal { later, name: name.to_owned(), source };
        Ok(Loaded { state, image: None, pending: Some(pending) })
    }

    async fn load_input(&self, context: &NamedContext, name: &str) -> Result<Loaded, Failure> {
        let shown = &context.full_name;
        let inputs = self.inputs().await?;
        let Some(definition) = inputs.get(name) else {
            return Err(bad(format!("invalid input {name} for {shown}")));
        };
        let state = State::from_definition(definition)?;
        let Some(json) = self.options().opts.get(&format!("input-metadata:{name}")) else {
            return Ok(plain(state));
        };
        let wrong = |e: &dyn std::fmt::Display| {
            bad(e.to_string()).context(format!("failed to parse input metadata {json}"))
        };
        let metadata: BTreeMap<String, String> = serde_json::from_str(json).map_err(|e| wrong(&e))?;
        let Some(config) = metadata.get("containerimage.config") else { return Ok(plain(state)) };
        let config = base64::engine::general_purpose::STANDARD.decode(config).map_err(|e| wrong(&e))?;
        let image = parse_config(&config)
            .map_err(|e| e.context(format!("failed to parse image config for {shown}")))?;
        Ok(Loaded { state: state.with_image_config(&config)?, image: Some(image), pending: None })
    }
}

enum Step {
    Done(Box<Loaded>),
    /// It is elsewhere.
    Redirect(String),
}

fn plain(state: State) -> Loaded {
    Loaded { state, image: None, pending: None }
}

fn parse_config(config: &[u8]) -> Result<Image, Failure> {
    serde_json::from_slice(config).map_err(|e| bad(e.to_string()))
}
