//! From the parsed file to stages that know what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::patterns::Matcher;
use base::reference::Reference;
use llb::build::{EnvList, Later, ProxyEnv, State};
use llb::caps::CapSet;

use super::error::{Failed, Result};
use super::outline::{ArgInfo, Captured};
use super::platform::{self, Platforms};
use super::stage::{Id, Stages, Step};
use super::{Converted, Options, defaults, epoch, outline, parse};
use crate::dockerfile::Lines;
use crate::dockerfile::instructions::{self, Arg, Command, Instruction};
use crate::dockerfile::lint::{Linter, checks};
use crate::dockerfile::shell::{Lex, NoEnv};
use crate::dockerfile::suggest::suggest;
use crate::dockerui::NamedContext;

/// The image without anything in it.
pub(super) const SCRATCH: &str = "scratch";

/// A Dockerfile on its way to LLB.
pub(super) struct Converter<'a> {
    pub(super) options: &'a Options,
    pub(super) platforms: Platforms,
    /// Variables of `FROM`.
    pub(super) global_args: EnvList,
    /// What the client gave.
    pub(super) build_args: BTreeMap<String, String>,
    pub(super) epoch: Option<epoch::Epoch>,
    pub(super) lex: Lex,
    /// Arguments before the first `FROM`.
    pub(super) outline: Captured,
    pub(super) lint: Linter,
    pub(super) stages: Stages,
    pub(super) proxy: Option<ProxyEnv>,
    /// The build context, known when all its paths are.
    pub(super) context: Arc<Later>,
    pub(super) ignored: Option<Matcher>,
    /// How many bytes variables and ranges have become so far.
    spent: AtomicUsize,
}

/// What variables and ranges of one file may become, in bytes: a few lines can
/// double a value until nothing else fits into memory.
const MAX_EXPANDED: usize = 128 << 20;

impl<'a> Converter<'a> {
    /// Reads the file and makes its stages.
    pub(super) async fn new(options: &'a Options, lint: Linter) -> Result<Self> {
        let config = options.client.config();
        let parsed = parse(&options.source.data)?;
        checks::empty_continuations(&parsed.warnings, &lint);
        let file = instructions::parse(&parsed.nodes, &lint)?;
        let Some(last) = file.stages.last() else {
            return Err(Failed::new("dockerfile contains no stages to build"));
        };
        checks::stage_names(&file.stages, &lint);
        checks::instruction_casing(&file.stages, &lint);

        let platforms = Platforms::new(options.platform.as_ref(), &config.build_platforms);
        let target = if config.target.is_empty() { last.name.clone() } else { config.target.clone() };
        let args = platforms.args(&config.build_args, &target);
        let lex = Lex::new(parsed.escape);
        check_default_names(&file, &lex, &args, &lint);
        let mut build_args = config.build_args.clone();
        let mut outline = Captured::default();
        let mut global_args = meta_args(args, &lex, &file.args, &build_args, &mut outline)?;

        let mut resolved = None;
        if let Some(value) = epoch::wanted(&build_args, &global_args) {
            resolved = epoch::resolve(&value, options, &file.stages, &global_args, &build_args, &lex).await?;
            epoch::settle(resolved.as_ref(), &mut build_args, &mut global_args);
        }
        let proxy = proxy(&build_args);
        let mut converter = Self {
            options,
            platforms,
            global_args,
            build_args,
            epoch: resolved,
            lex,
            outline,
            lint,
            stages: Stages::default(),
            proxy,
            context: Later::new(),
            ignored: None,
            spent: AtomicUsize::new(0),
        };
        for (at, stage) in file.stages.into_iter().enumerate() {
            converter.add_stage(at, stage)?;
        }
        Ok(converter)
    }

    /// Does it all.
    pub(super) async fn run(mut self) -> Result<Converted> {
        let config = self.options.client.config();
        let target = self.target()?;
        self.add_steps()?;
        let reachable = self.resolve_stages(target).await?;
        let paths = self.dispatch_stages(&reachable, target).await?;

        let image = &mut self.stages[target].image;
        image.config.labels.extend(config.labels.clone());
        self.lint.verdict()?;
        let context = self.options.client.main_context(follow(&paths)).await?;
        self.context.set(context);
        for id in self.stages.ids() {
            if let Some(pending) = &self.stages[id].pending {
                pending.set(follow(self.stages.used_paths(id)));
            }
        }
        Ok(self.finish(target))
    }

    fn finish(mut self, target: Id) -> Converted {
        let outline = outline::of(&self.stages, target, &self.options.source.data);
        if !self.platforms.implicit {
            let (wanted, has) = (&self.platforms.target, &mut self.stages[target].image.platform);
            let same = wanted.os == has.os && wanted.architecture == has.architecture;
            has.os.clone_from(&wanted.os);
            has.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                has.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                has.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                has.os_features.clone_from(&wanted.os_features);
            }
        }
        let mut image = self.stages[target].image.clone();
        image.set_platform(image.runs_on().normalized());

        let mut scan = BTreeMap::new();
        let mut ignore_cache = self.stages[target].ignore_cache;
        if self.stages[target].scan_context {
            scan.insert("context".to_owned(), State::later(&self.context));
        }
        for id in self.stages.reachable(target) {
            let stage = &self.stages[id];
            if id != target && stage.scan {
                scan.insert(stage.title.clone(), stage.state.clone());
                ignore_cache |= stage.ignore_cache;
            }
        }
        let stage = &self.stages[target];
        Converted {
            state: stage.state.clone(),
            defaults: defaults(self.llb_caps(), &self.platforms.target),
            image,
            base_image: stage.base_image.clone(),
            epoch: self.epoch.clone(),
            scan,
            ignore_cache,
            outline,
        }
    }

    /// Notes that something became `bytes` long.
    pub(super) fn spend(&self, bytes: usize) -> Result<()> {
        let before = self.spent.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= MAX_EXPANDED {
            return Ok(());
        }
        Err(Failed::new(format!("variables of this Dockerfile expand to more than {MAX_EXPANDED} bytes")))
    }

    /// What LLB may be written.
    pub(super) fn llb_caps(&self) -> &CapSet {
        &self.options.client.options().llb_caps
    }

    /// What a client put in place of `name`. Two names are always what they are.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&base::Platform>,
    ) -> Result<Option<NamedContext>> {
        let lower = name.to_lowercase();
        if lower == SCRATCH || lower == "context" {
            return Ok(None);
        }
        let client = &self.options.client;
        let platform = platform.or(self.options.platform.as_ref()).cloned();
        Ok(client.named_context(name, platform, client.config().resolve_mode.as_str())?)
    }

    fn add_stage(&mut self, at: usize, mut source: instructions::Stage) -> Result<()> {
        let lint = self.lint.for_comments(&source.comments);
        let lines = source.lines;
        let declared: BTreeSet<String> = self
            .outline
            .args
            .keys()
            .cloned()
            .chain(self.global_args.iter().map(|(name, _)| name.to_owned()))
            .collect();
        let at_stage = |e: crate::dockerfile::shell::Error| Failed::from(e).at(lines);
        let base = self.lex.expand(&source.base_name, &self.global_args).map_err(at_stage)?;
        checks::undefined_from_args(&declared, &base.unmatched, lines, &lint);
        if base.text.is_empty() {
            let text = format!("base name ({}) should not be blank", source.base_name);
            return Err(Failed::new(text).at(lines));
        }
        source.base_name = base.text;
        let mut used = base.matched;
        let mut for_platform = None;
        if !source.platform.is_empty() {
            let expanded = self.lex.expand(&source.platform, &self.global_args).map_err(|e| {
                Failed::from(e).context("failed to process arguments for platform ").at(lines)
            })?;
            checks::undefined_from_args(&declared, &expanded.unmatched, lines, &lint);
            checks::redundant_platform(&source.platform, &expanded, lines, &self.global_args, &lint);
            checks::constant_platform(&source.name, &expanded, lines, &lint);
            let meant = expanded
                .unmatched
                .iter()
                .map(|name| suggest(name, self.global_args.iter().map(|(n, _)| n), true).to_string())
                .find(|s| !s.is_empty())
                .unwrap_or_default();
            if expanded.text.is_empty() {
                let text = format!("empty platform value from expression {}{meant}", source.platform);
                return Err(Failed::new(text).at(lines));
            }
            let parsed = platform::parse(&expanded.text).map_err(|e| {
                Failed::new(format!("failed to parse platform {}: {e}{meant}", source.platform))
                    .at(lines)
                    .at(lines)
            })?;
            used.extend(expanded.matched);
            for_platform = Some(parsed);
        }

        let name = source.name.clone();
        let id = self.stages.add(source, self.outline.clone());
        self.stages[id].platform = for_platform;
        if !name.is_empty() {
            let named = self.named_context(&name, self.stages[id].platform.as_ref())?;
            if named.is_some() {
                self.stages[id].named = named;
                self.stages.register(id);
                self.stages[id].base = None;
                return Ok(());
            }
        }
        if name.is_empty() {
            self.stages[id].title = format!("stage-{at}");
        }
        self.stages.register(id);
        let stage = &mut self.stages[id];
        stage.outline.used_args.extend(used);
        let own_base = stage.source.base_name != SCRATCH && stage.base.is_none();
        let makes_layer = |i: &&Instruction| {
            matches!(i.command, Command::Add(_) | Command::Copy(_) | Command::Run(_) | Command::Workdir(_))
        };
        let count = stage.source.instructions.iter().filter(makes_layer).count();
        stage.total = i64::try_from(count).unwrap_or(i64::MAX - 1) + i64::from(own_base);
        stage.ignore_cache = self.options.client.config().is_no_cache(&name);
        Ok(())
    }

    fn target(&self) -> Result<Id> {
        let name = &self.options.client.config().target;
        if name.is_empty() {
            let last = self.stages.order.last().copied();
            return last.ok_or_else(|| Failed::new("dockerfile contains no stages to build"));
        }
        self.stages.find(name).ok_or_else(|| {
            let titles = self.stages.titles();
            let meant = suggest(name, titles.iter().map(String::as_str), true);
            let name = base::gotext::quote(name);
            Failed::new(format!("target stage {name} could not be found{meant}"))
        })
    }

    /// Finds out which stages each instruction reads.
    fn add_steps(&mut self) -> Result<()> {
        for id in self.stages.order.clone() {
            let instructions = std::mem::take(&mut self.stages[id].source.instructions);
            for instruction in instructions {
                let step = self.step(instruction, false)?;
                self.need(id, &step);
                self.stages[id].steps.push(step);
            }
        }
        if let Some((id, places)) = self.stages.circle() {
            let text = format!("circular dependency detected on stage: {}", self.stages[id].title);
            return Err(Failed { places, ..Failed::new(text) });
        }
        if let [only] = self.stages.order.as_slice() {
            let only = *only;
            self.stages[only].title.clear();
        }
        Ok(())
    }

    fn need(&mut self, id: Id, step: &Step) {
        for &source in &step.sources {
            self.stages[id].needs.insert(source, step.instruction.lines);
            if self.stages[source].unregistered {
                self.stages.register(source);
            }
        }
    }

    fn step(&mut self, instruction: Instruction, in_trigger: bool) -> Result<Step> {
        let lines = instruction.lines;
        let mut sources = Vec::new();
        match &instruction.command {
            Command::Copy(copy) if !copy.from.is_empty() => {
                let from = copy.from.clone();
                if self.lex.expand(&from, &NoEnv)?.text != from {
                    return Err(Failed::new(
                        "variable expansion is not supported for --from, define a new stage with FROM \
                         using ARG from global scope as a workaround",
                    ));
                }
                sources.push(match base::gotext::parse_int(&from, 64) {
                    Ok(index) => usize::try_from(index)
                        .ok()
                        .and_then(|i| self.stages.order.get(i).copied())
                        .ok_or_else(|| Failed::new(format!("invalid stage index {index}")))?,
                    Err(_) => self.find_or_add(&from, lines),
                });
            }
            Command::Run(run) => {
                for from in run.mounts.iter().map(|m| m.from.clone()).collect::<Vec<_>>() {
                    // Without a source it is the context; nobody asks for this one.
                    let from = if from.is_empty() { SCRATCH } else { from.as_str() };
                    sources.push(self.find_or_add(from, Lines::default()));
                }
            }
            _ => {}
        }
        Ok(Step { instruction, sources, in_trigger })
    }

    /// The stage called `name`, or the image of that name as if it were one.
    fn find_or_add(&mut self, name: &str, lines: Lines) -> Id {
        if let Some(id) = self.stages.find(name) {
            return id;
        }
        let source =
            instructions::Stage { base_name: name.to_owned(), lines, ..instructions::Stage::default() };
        let id = self.stages.add(source, Captured::default());
        self.stages[id].unregistered = true;
        id
    }

    /// Adds the triggers of a stage's base in front of its instructions, and
    /// says whether they read anything.
    pub(super) fn add_triggers(&mut self, id: Id, triggers: &[String]) -> Result<bool> {
        let lines = self.stages[id].source.lines;
        let mut steps = Vec::with_capacity(triggers.len());
        for trigger in triggers {
            let instruction = instructions::parse_trigger(trigger, lines)?;
            steps.push(self.step(instruction, true)?);
        }
        let reads = steps.iter().any(|s| !s.sources.is_empty());
        for step in &steps {
            self.need(id, step);
        }
        let stage = &mut self.stages[id];
        stage.total += i64::try_from(steps.len()).unwrap_or(0);
        stage.steps.splice(0..0, steps);
        Ok(reads)
    }
}

/// Global arguments with the client's values, in the order of the file.
fn meta_args(
    mut env: EnvList,
    lex: &Lex,
    args: &[Instruction<Arg>],
    given: &BTreeMap<String, String>,
    outline: &mut Captured,
) -> Result<EnvList> {
    for instruction in args {
        let lines = instruction.lines;
        for var in &instruction.command.vars {
            let mut var = var.clone();
            let mut needs = BTreeSet::new();
            match (given.get(&var.key), &var.value) {
                (Some(value), _) => var.value = Some(value.clone()),
                (None, Some(default)) => {
                    let expanded = lex.expand(default, &env).map_err(|e| Failed::from(e).at(lines))?;
                    needs = expanded.matched;
                    if needs.remove(&var.key)
                        && let Some(old) = outline.args.get(&var.key)
                    {
                        needs.extend(old.needs.iter().cloned());
                    }
                    var.value = Some(expanded.text);
                }
                (None, None) => {}
            }
            let value = var.value.clone();
            if let Some(value) = &value {
                env.set(&var.key, value.as_str());
            }
            let info = ArgInfo { value: value.unwrap_or_default(), needs, lines, definition: var.clone() };
            outline.args.insert(var.key, info);
        }
    }
    Ok(env)
}

/// Base images that only have a name when an argument is given.
fn check_default_names(file: &instructions::Dockerfile, lex: &Lex, args: &EnvList, lint: &Linter) {
    // What fails here fails again where it counts.
    let none = BTreeMap::new();
    let Ok(env) = meta_args(args.clone(), lex, &file.args, &none, &mut Captured::default()) else { return };
    checks::default_base_names(
        &file.stages,
        |name| lex.expand(name, &env).ok().map(|e| e.text),
        |name| name.parse::<Reference>().is_ok(),
        lint,
    );
}

/// Proxy settings among the build arguments, in any case.
fn proxy(args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut found = false;
    for (key, value) in args {
        let field = match key.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http,
            "https_proxy" => &mut proxy.https,
            "ftp_proxy" => &mut proxy.ftp,
            "no_proxy" => &mut proxy.no,
            "all_proxy" => &mut proxy.all,
            _ => continue,
        };
        field.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}

/// Which paths to ask the client for; none means all.
pub(super) fn follow(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut paths: Vec<String> = paths.iter().map(|p| base::gopath::join([".", p.as_str()])).collect();
    paths.sort();
    paths
}
