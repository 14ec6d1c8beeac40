//! What each instruction does to its stage.

use std::collections::BTreeSet;

use base::gopath;
use base::patterns::Matcher;
use llb::build::{EnvList, FileAction, FileOwner, Options};

use super::error::{Failed, Result};
use super::image::{DEFAULT_PATH, Empty, Healthcheck};
use super::outline::ArgInfo;
use super::plan::Converter;
use super::stage::{Id, Step};
use super::{expose, names, ospath};
use crate::dockerfile::instructions::{self, Arg, Command, CommandLine, Instruction, KeyValue, Label};
use crate::dockerfile::lint::{Linter, Violation, checks};
use crate::dockerfile::shell::{self, Lex};

/// Arguments that say whether to scan. They are no environment.
const SCAN_CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
const SCAN_STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";

impl Converter<'_> {
    /// Converts the stages that are needed, and gives the paths they use of the
    /// build context.
    pub(super) async fn dispatch_stages(
        &mut self,
        reachable: &BTreeSet<Id>,
        target: Id,
    ) -> Result<BTreeSet<String>> {
        let patterns = self.options.client.ignore_patterns().await?;
        if !patterns.is_empty() {
            let matcher = Matcher::new(&patterns).map_err(|e| Failed::new(e.to_string()))?;
            self.ignored = Some(matcher);
        }
        let mut paths = BTreeSet::new();
        for id in self.stages.order.clone() {
            if !self.options.all_stages && (!reachable.contains(&id) || self.stages[id].dispatched) {
                continue;
            }
            self.dispatch_stage(id)?;
            paths.append(&mut self.stages[id].context_paths.clone());
        }
        self.stages.use_path(target, "/".to_owned());
        Ok(paths)
    }

    fn dispatch_stage(&mut self, id: Id) -> Result<()> {
        self.stages.inherit(id);
        let config = self.options.client.config();
        let stage = &mut self.stages[id];
        stage.dispatched = true;
        let os = stage.platform.get_or_insert_with(Default::default).os.clone();
        let has_path = stage.image.config.env.iter().any(|e| e.split('=').next() == Some("PATH"));
        if !has_path && os != "windows" {
            stage.image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for env in stage.image.config.env.clone() {
            let (key, value) = env.split_once('=').unwrap_or((&env, ""));
            stage.state = stage.state.env(key, value);
        }
        if !config.hostname.is_empty() {
            stage.state = stage.state.hostname(&config.hostname);
        }
        let lines = stage.source.lines;
        if !stage.image.config.working_dir.is_empty() {
            let dir = stage.image.config.working_dir.clone();
            self.set_workdir(id, &dir).map_err(|e| e.at(lines))?;
        }
        let stage = &mut self.stages[id];
        if !stage.image.config.user.is_empty() {
            stage.state = stage.state.user(&stage.image.config.user);
        }
        stage.state = stage.state.network(config.network);

        for step in std::mem::take(&mut self.stages[id].steps) {
            let lines = step.instruction.lines;
            self.stages[id].in_trigger = step.in_trigger;
            self.dispatch(id, step).map_err(|e| e.at(lines))?;
        }
        self.note_scans(id);
        Ok(())
    }

    fn note_scans(&mut self, id: Id) {
        let wanted = |name: &str| {
            let stage = &self.stages[id];
            let mut wanted = self.global_args.get(name).is_some_and(|v| is_for_stage(&stage.title, v));
            for arg in stage.args.iter().filter(|a| a.key == name) {
                if let Some(value) = &arg.value {
                    wanted = is_for_stage(&stage.title, value);
                }
            }
            wanted
        };
        let (context, stage) = (wanted(SCAN_CONTEXT), wanted(SCAN_STAGE));
        self.stages[id].scan_context |= context;
        self.stages[id].scan |= stage;
    }

    fn dispatch(&mut self, id: Id, step: Step) -> Result<()> {
        let Step { mut instruction, sources, .. } = step;
        let lint = self.lint.for_comments(&instruction.comments);
        self.expand(id, &mut instruction, &lint)?;
        let Instruction { name, code, lines, comments, command } = instruction;
        let bare = Instruction { name, code, lines, comments, command: () };
        let epoch = self.epoch.clone();
        let epoch = epoch.as_ref();
        match command {
            Command::Maintainer(author) => {
                let image = &mut self.stages[id].image;
                image.add_history(format!("MAINTAINER {author}"), false, epoch);
                image.author = author;
            }
            Command::Env(pairs) => self.env(id, &bare, &pairs, &lint),
            Command::Run(run) => self.run_step(id, &bare, &run, &sources)?,
            Command::Workdir(path) => self.workdir(id, &bare, &path, &lint)?,
            Command::Add(add) => self.add(id, &bare, add, &lint)?,
            Command::Copy(copy) => self.copy(id, &bare, copy, sources.first().copied(), &lint)?,
            Command::Label(label) => self.label(id, &bare, &label, &lint),
            Command::Onbuild(expression) => self.stages[id].image.config.on_build.push(expression),
            Command::Cmd(line) => {
                checks::used_once(&bare, &mut self.stages[id].cmd, &lint);
                let args = self.shell_line(id, &bare, line, &lint);
                let image = &mut self.stages[id].image;
                image.add_history(format!("CMD {}", names::quoted(&args)), false, epoch);
                image.config.cmd = args;
                image.config.args_escaped = true;
            }
            Command::Entrypoint(line) => {
                checks::used_once(&bare, &mut self.stages[id].entrypoint, &lint);
                let args = self.shell_line(id, &bare, line, &lint);
                let stage = &mut self.stages[id];
                stage.image.add_history(format!("ENTRYPOINT {}", names::quoted(&args)), false, epoch);
                stage.image.config.entrypoint = args;
                if stage.cmd.is_none() {
                    stage.image.config.cmd.clear();
                }
            }
            Command::Healthcheck(check) => {
                checks::used_once(&bare, &mut self.stages[id].healthcheck, &lint);
                let check = healthcheck(check);
                let image = &mut self.stages[id].image;
                image.add_history(format!("HEALTHCHECK {}", check.text()), false, epoch);
                image.config.healthcheck = Some(check);
            }
            Command::Expose(ports) => {
                let env = self.stages[id].state.get_env();
                let mut words = Vec::new();
                for port in &ports {
                    words.extend(self.lex.words(port, env)?);
                }
                let ports = expose::ports(&words, lines, &lint)?;
                self.spend(ports.iter().map(String::len).sum())?;
                let image = &mut self.stages[id].image;
                image.add_history(format!("EXPOSE [{}]", ports.join(" ")), false, epoch);
                image.config.exposed_ports.extend(ports.into_iter().map(|p| (p, Empty {})));
            }
            Command::User(user) => {
                let stage = &mut self.stages[id];
                stage.state = stage.state.user(&user);
                stage.image.add_history(format!("USER {user}"), false, epoch);
                stage.image.config.user = user;
            }
            Command::Volume(volumes) => {
                if volumes.iter().any(String::is_empty) {
                    return Err(instructions::Problem::EmptyVolume.into());
                }
                let image = &mut self.stages[id].image;
                image.add_history(format!("VOLUME [{}]", volumes.join(" ")), false, epoch);
                image.config.volumes.extend(volumes.into_iter().map(|v| (v, Empty {})));
            }
            Command::StopSignal(signal) => {
                check_signal(&signal)?;
                let image = &mut self.stages[id].image;
                image.add_history(format!("STOPSIGNAL {signal}"), false, epoch);
                image.config.stop_signal = signal;
            }
            Command::Shell(shell) => {
                let image = &mut self.stages[id].image;
                image.add_history(format!("SHELL [{}]", shell.join(" ")), false, epoch);
                image.config.shell = shell;
            }
            Command::Arg(arg) => self.arg(id, &bare, &arg, &lint)?,
        }
        Ok(())
    }

    /// Replaces variables in an instruction.
    fn expand(&self, id: Id, instruction: &mut Instruction, lint: &Linter) -> Result<()> {
        let stage = &self.stages[id];
        let env = stage.state.get_env();
        let known: BTreeSet<String> = stage.args.iter().map(|a| a.key.clone()).collect();
        let place = Instruction {
            name: instruction.name.clone(),
            code: String::new(),
            lines: instruction.lines,
            comments: Vec::new(),
            command: (),
        };
        let replace = |lex: &Lex, word: &str| -> Result<String> {
            let expanded = lex.expand(word, env);
            let unmatched = match &expanded {
                Ok(expanded) => expanded.unmatched.clone(),
                // A variable that is demanded was looked for, too.
                Err(shell::Error { reason: shell::Reason::Required { name, .. }, .. })
                    if env.get(name).is_none() =>
                {
                    BTreeSet::from([name.clone()])
                }
                Err(_) => BTreeSet::new(),
            };
            checks::undefined_variables(&place, &unmatched, &known, env, lint);
            let text = expanded?.text;
            self.spend(text.len())?;
            Ok(text)
        };
        // An argument's default may not count, so neither may its errors.
        if !matches!(instruction.command, Command::Arg(_)) {
            instruction.command.expand(&mut |word| replace(&self.lex, word))?;
        }
        let raw = Lex { ignore_quotes: true, ..Lex::new('\\') };
        instruction.command.expand_raw(&mut |word| replace(&raw, word))
    }

    fn env(&mut self, id: Id, place: &Instruction<()>, pairs: &[KeyValue], lint: &Linter) {
        let mut text = String::from("ENV");
        let stage = &mut self.stages[id];
        for KeyValue { key, value, legacy } in pairs {
            if *legacy {
                lint.report(place.lines, &Violation::LegacyKeyValue { name: place.name.clone() });
            }
            checks::secret_name("ENV", key, place.lines, lint);
            text.push_str(&format!(" {key}={value}"));
            stage.state = stage.state.env(key, value);
            stage.image.set_env(key, value);
        }
        stage.image.add_history(text, false, self.epoch.as_ref());
    }

    fn label(&mut self, id: Id, place: &Instruction<()>, label: &Label, lint: &Linter) {
        let mut text = String::from("LABEL");
        let image = &mut self.stages[id].image;
        for KeyValue { key, value, legacy } in &label.labels {
            if *legacy {
                lint.report(place.lines, &Violation::LegacyKeyValue { name: place.name.clone() });
            }
            text.push_str(&format!(" {key}={value}"));
            image.config.labels.insert(key.clone(), value.clone());
        }
        image.add_history(text, false, self.epoch.as_ref());
    }

    fn arg(&mut self, id: Id, place: &Instruction<()>, arg: &Arg, lint: &Linter) -> Result<()> {
        let lines = place.lines;
        let mut texts = Vec::with_capacity(arg.vars.len());
        for var in &arg.vars {
            let mut var = var.clone();
            checks::secret_name("ARG", &var.key, lines, lint);
            let inherited = match (self.build_args.get(&var.key), &var.value) {
                (None, None) => self.global_args.get(&var.key).map(str::to_owned),
                _ => None,
            };
            let is_inherited = inherited.is_some();
            if is_inherited {
                var.value = inherited;
            } else if let Some(given) = self.build_args.get(&var.key) {
                var.value = Some(given.clone());
            } else if let Some(default) = &var.value {
                let stage = &self.stages[id];
                let env = stage.state.get_env();
                let expanded = self.lex.expand(default, env);
                if let Ok(expanded) = &expanded {
                    let known = stage.args.iter().map(|a| a.key.clone()).collect();
                    checks::undefined_variables(place, &expanded.unmatched, &known, env, lint);
                }
                let text = expanded?.text;
                self.spend(text.len())?;
                var.value = Some(text);
            }
            let stage = &mut self.stages[id];
            if let Some(value) = &var.value
                && var.key != SCAN_CONTEXT
                && var.key != SCAN_STAGE
            {
                stage.state = stage.state.env(&var.key, value);
            }
            if !is_inherited {
                let value = var.value.clone().unwrap_or_default();
                let info = ArgInfo { definition: var.clone(), value, needs: BTreeSet::new(), lines };
                stage.outline.args.insert(var.key.clone(), info);
            }
            stage.outline.used_args.insert(var.key.clone());
            texts.push(match &var.value {
                Some(value) => format!("{}={value}", var.key),
                None => var.key.clone(),
            });
            stage.args.push(var);
        }
        let text = format!("ARG {}", texts.join(" "));
        self.stages[id].image.add_history(text, false, self.epoch.as_ref());
        Ok(())
    }

    /// Sets the directory in the configuration and for what follows.
    fn set_workdir(&mut self, id: Id, path: &str) -> Result<String> {
        let os = self.os(id);
        let stage = &mut self.stages[id];
        let dir = ospath::workdir(&stage.image.config.working_dir, path, &os)
            .map_err(|e| Failed::new(format!("normalizing workdir: normalizing working directory: {e}")))?;
        let slashed = ospath::to_slash(&dir, &os);
        stage.image.config.working_dir = dir;
        stage.state = stage.state.dir(&slashed);
        Ok(slashed)
    }

    fn workdir(&mut self, id: Id, place: &Instruction<()>, path: &str, lint: &Linter) -> Result<()> {
        let os = self.os(id);
        if !self.stages[id].workdir_set && !ospath::is_abs(path, &os) {
            lint.report(place.lines, &Violation::RelativeWorkdir { path: path.to_owned() });
        }
        self.stages[id].workdir_set = true;
        let dir = self.set_workdir(id, path)?;
        let layer = dir != "/";
        if layer {
            let stage = &self.stages[id];
            let user = &stage.image.config.user;
            let action = FileAction::Mkdir {
                path: dir.clone(),
                mode: 0o755,
                parents: true,
                owner: (!user.is_empty()).then(|| FileOwner::parse(user)),
                created: self.epoch.as_ref().map(super::Epoch::nanos),
            };
            let text = names::expanded(&self.lex, &place.code, stage.state.get_env());
            let name = self.step_name(id, &names::uppercase(&text));
            let stage = &mut self.stages[id];
            let mut options = Options::new().name(name);
            options.platform.clone_from(&stage.platform);
            let options = names::located(options, &self.options.source, place.lines);
            stage.state = stage.state.file(vec![action], options);
        }
        let text = format!("WORKDIR {dir}");
        self.stages[id].image.add_history(text, layer, self.epoch.as_ref());
        Ok(())
    }

    /// The arguments of a command line, given to the shell if it is for it.
    fn shell_line(&self, id: Id, place: &Instruction<()>, line: CommandLine, lint: &Linter) -> Vec<String> {
        if !line.shell {
            return line.args;
        }
        if self.stages[id].image.config.shell.is_empty() {
            lint.report(place.lines, &Violation::JsonArgsRecommended { name: place.name.clone() });
        }
        self.with_shell(id, &line.args)
    }

    /// A line for the shell, as its arguments.
    pub(super) fn with_shell(&self, id: Id, args: &[String]) -> Vec<String> {
        let image = &self.stages[id].image;
        let mut words = match (image.config.shell.as_slice(), image.platform.os.as_str()) {
            ([], "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            ([], _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
            (shell, _) => shell.to_vec(),
        };
        words.push(args.join(" "));
        words
    }

    /// The system a stage is for.
    pub(super) fn os(&self, id: Id) -> String {
        self.stages[id].platform.as_ref().map(|p| p.os.clone()).unwrap_or_default()
    }

    /// Numbers and names the next step of a stage.
    pub(super) fn step_name(&mut self, id: Id, text: &str) -> String {
        let with_platform = self.options.client.config().multi_platform;
        let stage = &mut self.stages[id];
        let env: EnvList = stage.state.get_env().clone();
        let platform = stage.platform.clone();
        names::step(stage, text, with_platform, platform.as_ref(), &env)
    }
}

/// A path as it is noted that it is used.
pub(super) fn used_path(path: &str) -> String {
    gopath::join(["/", path])
}

fn healthcheck(check: instructions::Healthcheck) -> Healthcheck {
    let nanos = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    Healthcheck {
        test: check.test,
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        start_interval: nanos(check.start_interval),
        retries: check.retries.into(),
    }
}

/// Whether a value is true, or a list of stages with this one.
fn is_for_stage(title: &str, value: &str) -> bool {
    base::gotext::parse_bool(value).unwrap_or_else(|| value.split(',').any(|s| s == title))
}

/// Checks a signal: a number, or a name with or without `SIG`.
fn check_signal(text: &str) -> Result<()> {
    const NAMES: [&str; 36] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).is_some_and(|n| {
            !n.starts_with('0')
                && n.parse().is_ok_and(|n: u32| (1..=most).contains(&n))
                && !n.starts_with('+')
        })
    };
    let known = match base::gotext::parse_int(text, 64) {
        Ok(number) => number != 0,
        Err(_) => NAMES.contains(&name) || offset("RTMIN+", 15) || offset("RTMAX-", 14),
    };
    if known { Ok(()) } else { Err(Failed::new(format!("invalid signal: {text}"))) }
}
