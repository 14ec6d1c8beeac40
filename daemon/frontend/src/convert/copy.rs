//! `COPY` and `ADD`.

use base::gourl::Url;
use base::{Digest, gopath};
use llb::build::{Chmod, Copy as CopyFiles, FileAction, FileOwner, Git, Http, Options, State};
use llb::caps;

use super::dispatch::used_path;
use super::error::{Failed, Result};
use super::names;
use super::ospath;
use super::plan::Converter;
use super::stage::Id;
use crate::dockerfile::giturl::GitRef;
use crate::dockerfile::instructions::{Add, Copy, Instruction, Sources};
use crate::dockerfile::lint::{Linter, checks};
use crate::dockerui::internal;
use crate::gitref;

/// What both have in common.
struct Plan {
    sources: Sources,
    from: State,
    add: bool,
    chown: String,
    chmod: String,
    link: bool,
    exclude: Vec<String>,
    parents: bool,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
    /// The files come from the context, of which some may be left out.
    checked: bool,
}

impl Converter<'_> {
    pub(super) fn add(&mut self, id: Id, place: &Instruction<()>, add: Add, lint: &Linter) -> Result<()> {
        let paths = add.sources.paths.clone();
        let plan = Plan {
            sources: add.sources,
            from: State::later(&self.context),
            add: true,
            chown: add.chown,
            chmod: add.chmod,
            link: add.link,
            exclude: add.exclude,
            parents: false,
            keep_git_dir: add.keep_git_dir,
            checksum: add.checksum,
            unpack: add.unpack,
            checked: true,
        };
        self.copy_files(id, place, plan, lint)?;
        let local = paths.iter().filter(|p| !p.starts_with("http://") && !p.starts_with("https://"));
        self.stages[id].context_paths.extend(local.map(|p| used_path(p)));
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        id: Id,
        place: &Instruction<()>,
        copy: Copy,
        source: Option<Id>,
        lint: &Linter,
    ) -> Result<()> {
        let from = match source {
            None => State::later(&self.context),
            Some(source) if self.stages[source].dispatched => self.stages[source].state.clone(),
            Some(_) => {
                return Err(Failed::new(format!(
                    "cannot copy from stage {}, it needs to be defined before current stage {}",
                    base::gotext::quote(&copy.from),
                    base::gotext::quote(&self.stages[id].title)
                )));
            }
        };
        let paths: Vec<String> = copy.sources.paths.iter().map(|p| used_path(p)).collect();
        let plan = Plan {
            sources: copy.sources,
            from,
            add: false,
            chown: copy.chown,
            chmod: copy.chmod,
            link: copy.link,
            exclude: copy.exclude,
            parents: copy.parents,
            keep_git_dir: None,
            checksum: String::new(),
            unpack: None,
            checked: source.is_none(),
        };
        self.copy_files(id, place, plan, lint)?;
        match source {
            None => self.stages[id].context_paths.extend(paths),
            Some(source) => paths.into_iter().for_each(|p| self.stages.use_path(source, p)),
        }
        Ok(())
    }

    fn copy_files(&mut self, id: Id, place: &Instruction<()>, mut plan: Plan, lint: &Linter) -> Result<()> {
        let os = self.os(id);
        let dest = destination(self.stages[id].state.get_dir(), &plan.sources.dest, &os)?;
        let chmod = if plan.chmod.is_empty() { None } else { Some(parse_chmod(&plan.chmod)?) };
        check_checksum(&plan)?;
        let mut history = String::from(if plan.add { "ADD" } else { "COPY" });
        for (given, flag) in [
            (plan.parents, "--parents".to_owned()),
            (!plan.chown.is_empty(), format!("--chown={}", plan.chown)),
            (!plan.chmod.is_empty(), format!("--chmod={}", plan.chmod)),
        ] {
            if given {
                history.push(' ');
                history.push_str(&flag);
            }
        }
        let text = names::expanded(&self.lex, &place.code, self.stages[id].state.get_env());
        let text = names::uppercase(&text);
        let name = self.step_name(id, &text);
        let base = |from: &State, src: &str| CopyFiles {
            chmod: chmod.clone(),
            owner: (!plan.chown.is_empty()).then(|| FileOwner::parse(&plan.chown)),
            exclude_patterns: plan.exclude.clone(),
            create_dest_path: true,
            ..CopyFiles::new(from, src, dest.clone())
        };
        let mut actions = Vec::new();
        let mut keep_git_dir = plan.keep_git_dir;
        let mut checksum = std::mem::take(&mut plan.checksum);
        for src in &plan.sources.paths {
            history.push(' ');
            history.push_str(src);
            let git = gitref::parse(src)?.filter(|g| !g.like_a_path);
            let action = if let Some(git) = git {
                if !plan.add {
                    return Err(Failed::new("source can't be a git ref for COPY"));
                }
                let state = git_source(git, &mut keep_git_dir, &mut checksum, &name)?;
                base(&state, "/")
            } else if is_http(src) {
                if !plan.add {
                    return Err(Failed::new("source can't be a URL for COPY"));
                }
                let file = http_filename(src);
                let checksum = match checksum.as_str() {
                    "" => None,
                    text => Some(text.parse::<Digest>().map_err(|e| Failed::new(e.to_string()))?),
                };
                let options = names::command("").name(name.clone());
                let state = Http { filename: file.clone(), checksum, options, ..Http::default() }.state(src);
                CopyFiles { attempt_unpack: plan.unpack.unwrap_or(false), ..base(&state, &file) }
            } else {
                if plan.checked
                    && let Some(ignored) = &self.ignored
                {
                    // A pattern that cannot be matched is no reason to fail here.
                    _ = checks::copied_ignored(src, plan.add, ignored, place.lines, lint);
                }
                let (src, include_patterns, required_paths) = match plan.parents {
                    true => with_parents(src, &os)?,
                    false => (src.clone(), Vec::new(), Vec::new()),
                };
                let src = normalized(&src, &os)?;
                CopyFiles {
                    follow_symlinks: true,
                    contents_only: true,
                    include_patterns,
                    required_paths,
                    attempt_unpack: plan.unpack.unwrap_or(plan.add),
                    allow_wildcard: true,
                    allow_empty_wildcard: true,
                    ..base(&plan.from, &src)
                }
            };
            actions.push(FileAction::Copy(Box::new(action)));
        }
        for content in &plan.sources.contents {
            history.push_str(" <<");
            history.push_str(&content.path);
            let path = ospath::without_drive(&content.path, &os, false).map_err(drive)?;
            let mut options = internal("preparing inline document");
            options.platform.clone_from(&self.stages[id].platform);
            let file = FileAction::Mkfile {
                path: path.clone(),
                mode: 0o644,
                data: content.data.clone(),
                owner: None,
                created: None,
            };
            let state = State::scratch().file(vec![file], options);
            actions.push(FileAction::Copy(Box::new(base(&state, &ospath::to_slash(&path, &os)))));
        }
        history.push(' ');
        history.push_str(&plan.sources.dest);

        let mut options = names::located(Options::new().name(name), &self.options.source, place.lines);
        if self.stages[id].ignore_cache {
            options = options.ignore_cache();
        }
        if plan.link && plan.chmod.is_empty() && self.llb_caps().has(caps::MERGEOP) {
            self.link(id, actions, &text, options);
        } else {
            let stage = &mut self.stages[id];
            stage.state = stage.state.file(actions, options);
        }
        let history = format!("{history} # buildkit");
        self.stages[id].image.add_history(history, true, self.epoch.as_ref());
        Ok(())
    }

    /// Copies into nothing, and lays the result on top: what is below may change
    /// without copying again.
    fn link(&mut self, id: Id, actions: Vec<FileAction>, text: &str, options: Options) {
        let group = base::id::fresh();
        self.stages[id].index -= 1;
        let shown = self.step_name(id, text);
        let mut copy = options.clone().group(&group, &shown, true);
        copy.platform.clone_from(&self.stages[id].platform);
        self.stages[id].index -= 1;
        let linked = self.step_name(id, &format!("LINK {text}"));
        let merge = options.group(&group, &shown, false).name(linked);
        let stage = &mut self.stages[id];
        let copied = State::scratch().file(actions, copy);
        let merged = State::merge(&[stage.state.clone(), copied], merge);
        stage.state = stage.state.with_output(merged.output().cloned());
    }
}

fn destination(dir: &str, dest: &str, os: &str) -> Result<String> {
    let dest = ospath::without_drive(dest, os, true).map_err(drive)?;
    let path = match dest.as_str() {
        dest if ospath::is_abs(dest, os) => ospath::normalize("/", dest, os, true),
        "." | "" => ospath::normalize(dir, "./", os, true),
        dest => ospath::normalize(dir, dest, os, true),
    };
    path.map_err(drive)
}

fn drive(e: ospath::BadPath) -> Failed {
    Failed::new(e.to_string()).context("removing drive letter")
}

fn normalized(path: &str, os: &str) -> Result<String> {
    ospath::normalize("/", path, os, false).map_err(drive)
}

fn check_checksum(plan: &Plan) -> Result<()> {
    if plan.checksum.is_empty() {
        return Ok(());
    }
    if !plan.add {
        return Err(Failed::new("checksum can't be specified for COPY"));
    }
    let [source] = plan.sources.paths.as_slice() else {
        return Err(Failed::new("checksum can't be specified for multiple sources"));
    };
    let is_git = matches!(GitRef::parse(source), Ok(Some(_)));
    if !is_git && !is_http(source) {
        return Err(Failed::new("checksum requires HTTP(S) or Git sources"));
    }
    Ok(())
}

/// Whether it is a file by URL, and not a repository.
pub(super) fn is_http(source: &str) -> bool {
    let by_url = source.starts_with("http://") || source.starts_with("https://");
    by_url && !matches!(GitRef::parse(source), Ok(Some(_)))
}

/// What a file by URL is called.
pub(super) fn http_filename(url: &str) -> String {
    let path = Url::parse(url).map(|u| u.path).unwrap_or_default();
    match gopath::base(&path) {
        "." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

fn git_source(
    git: GitRef,
    keep_git_dir: &mut Option<bool>,
    checksum: &mut String,
    name: &str,
) -> Result<State> {
    if let (Some(flag), Some(query)) = (*keep_git_dir, git.keep_git_dir)
        && flag != query
    {
        return Err(Failed::new("inconsistent keep-git-dir configuration"));
    }
    // What one source says holds for those after it.
    *keep_git_dir = git.keep_git_dir.or(*keep_git_dir);
    if !git.checksum.is_empty() {
        if !checksum.is_empty() && *checksum != git.checksum {
            let (one, other) = (base::gotext::quote(checksum), base::gotext::quote(&git.checksum));
            return Err(Failed::new(format!("checksum mismatch {one} != {other}")));
        }
        checksum.clone_from(&git.checksum);
    }
    Ok(Git {
        reference: git.reference,
        subdir: git.subdir,
        keep_git_dir: *keep_git_dir == Some(true),
        checksum: checksum.clone(),
        skip_submodules: git.submodules == Some(false),
        fetch_by_commit: git.fetch_by_commit,
        options: Options::new().name(name),
        ..Git::default()
    }
    .state(&git.remote))
}

/// `--parents`: where to look, what to take from there, and what must be there.
/// `/./` in a path says from where on directories are made.
fn with_parents(src: &str, os: &str) -> Result<(String, Vec<String>, Vec<String>)> {
    let (dir, pattern) = src.split_once("/./").unwrap_or(("/", src));
    let pattern = normalized(pattern, os)?;
    let mut required = Vec::new();
    if !has_wildcards(dir) && !has_wildcards(&pattern) {
        required.push(normalized(&gopath::join([dir, pattern.as_str()]), os)?);
    }
    let include = pattern.strip_prefix('/').unwrap_or(&pattern).to_owned();
    Ok((dir.to_owned(), vec![include], required))
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}

/// Octal permissions, or a change such as `u=rwX,go=rX`.
fn parse_chmod(text: &str) -> Result<Chmod> {
    let wrong = || {
        Failed::new(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))
    };
    if let Some(mode) = base::gotext::parse_uint(text, 8, 32) {
        return match u32::try_from(mode) {
            Ok(mode) if mode <= 0o7777 => Ok(Chmod::Mode(mode)),
            _ => Err(wrong()),
        };
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let clause = |clause: &str| {
        let ops = clause.trim_start_matches(['a', 'u', 'g', 'o']);
        ops.starts_with(['+', '-', '=']) && ops.chars().all(|c| "+-=rstwXxugo".contains(c))
    };
    if !text.split(',').all(clause) {
        return Err(Failed::new("invalid syntax"));
    }
    Ok(Chmod::Symbolic(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_permissions() {
        assert_eq!(parse_chmod("0755").unwrap(), Chmod::Mode(0o755));
        assert_eq!(parse_chmod("u=rwX,go=rX").unwrap(), Chmod::Symbolic("u=rwX,go=rX".into()));
        for bad in ["10000", "0999", "x", "u", "u+q", "u+x,", ""] {
            assert!(parse_chmod(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn finds_the_pivot() {
        assert_eq!(
            with_parents("a/./b/c", "linux").unwrap(),
            ("a".into(), vec!["b/c".into()], vec!["/a/b/c".into()])
        );
        assert_eq!(with_parents("a/*.go", "linux").unwrap(), ("/".into(), vec!["a/*.go".into()], vec![]));
    }
}
