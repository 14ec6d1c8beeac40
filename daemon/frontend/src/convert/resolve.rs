//! Base images: what they are, and which triggers they bring.

use std::collections::BTreeSet;

use base::reference::Reference;
use base::{Failure, Kind, Platform};
use futures_util::future::join_all;
use llb::build::{EnvList, Image as ImageSource, State};

use super::error::{Failed, Result};
use super::image::Image;
use super::names;
use super::plan::{Converter, SCRATCH};
use super::stage::Id;
use crate::dockerfile::instructions::Command;
use crate::dockerfile::lint::checks;
use crate::dockerfile::suggest::suggest;
use crate::dockerui::Loaded;
use crate::gateway::{ImageOptions, ResolvedImage};

/// What a base image turned out to be.
enum Base {
    /// What a client put in the place of the whole stage.
    Stage(Box<Loaded>),
    /// What a client put in the place of the image.
    Context(Box<Loaded>),
    /// An image of a registry.
    Image { reference: Reference, image: Box<Image> },
    /// Nothing needs it, so nobody asked.
    Unasked,
}

impl Converter<'_> {
    /// Resolves the bases of all stages that `target` needs. Triggers of a base
    /// may need more stages, so it may take several rounds.
    pub(super) async fn resolve_stages(&mut self, target: Id) -> Result<BTreeSet<Id>> {
        loop {
            let reachable = self.stages.reachable(target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for &id in &reachable {
                self.stages.inherit(id);
                let stage = &self.stages[id];
                let mut triggers = stage.image.config.on_build.clone();
                if let Some(base) = stage.base
                    && !stage.triggered
                {
                    triggers.extend(self.stages[base].steps.iter().filter_map(
                        |s| match &s.instruction.command {
                            Command::Onbuild(expression) => Some(expression.clone()),
                            _ => None,
                        },
                    ));
                    self.stages[id].triggered = true;
                }
                if !triggers.is_empty() {
                    let lines = self.stages[id].source.lines;
                    more |= self.add_triggers(id, &triggers).map_err(|e| e.only_at(lines))?;
                    self.stages[id].image.config.on_build.clear();
                }
            }
            if !more {
                return Ok(reachable);
            }
        }
    }

    async fn resolve_bases(&mut self, reachable: &BTreeSet<Id>) -> Result<()> {
        let mut asked = Vec::new();
        for id in self.stages.order.clone() {
            let needed = reachable.contains(&id) || self.options.all_stages;
            let stage = &mut self.stages[id];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.source.base_name == SCRATCH && stage.named.is_none() {
                stage.state = State::scratch();
                stage.image = Image::empty(&self.platforms.target);
                stage.platform = Some(self.platforms.target.clone());
                stage.dispatched |= stage.unregistered;
                continue;
            }
            asked.push((id, needed));
        }
        let found = join_all(asked.iter().map(|&(id, needed)| self.resolve_base(id, needed))).await;
        for ((id, needed), base) in asked.into_iter().zip(found) {
            let lines = self.stages[id].source.lines;
            let base = base.and_then(|base| self.settle(id, needed, base));
            base.map_err(|e| e.at(lines))?;
            let stage = &mut self.stages[id];
            stage.dispatched |= stage.unregistered;
        }
        Ok(())
    }

    /// What the stage is for, when its image does not say otherwise.
    fn wanted(&self, id: Id) -> Platform {
        self.stages[id].platform.clone().unwrap_or_else(|| self.platforms.target.clone())
    }

    async fn resolve_base(&self, id: Id, needed: bool) -> Result<Base> {
        let stage = &self.stages[id];
        let client = &self.options.client;
        let name = &stage.source.base_name;
        let reference = base_reference(name)?;
        if !needed {
            return Ok(Base::Unasked);
        }
        if let Some(named) = &stage.named {
            return Ok(Base::Stage(Box::new(client.load(named).await?)));
        }
        let platform = self.wanted(id);
        let full = reference.clone().tag_name_only().to_string();
        if let Some(named) = self.named_context(&full, Some(&platform))? {
            return Ok(Base::Context(Box::new(client.load(&named).await?)));
        }
        let prefix = match client.config().multi_platform {
            true => format!("[{} internal]", platform.format_all()),
            false => "[internal]".to_owned(),
        };
        let options = ImageOptions {
            platform: Some(platform),
            resolve_mode: client.config().resolve_mode.as_str().to_owned(),
            log_name: format!("{prefix} load metadata for {full}"),
            layout: None,
        };
        let found = client.resolve_image(&full, options).await;
        let (found, digest, config) = match found {
            Ok(ResolvedImage::Image { reference, digest, config }) => (reference, digest, config),
            Ok(ResolvedImage::Other { identifier }) => {
                let text =
                    format!("ref mutated by policy to non-image: docker-image://{full} -> {identifier}");
                return Err(self.unresolved(name, Failure::new(Kind::Unknown, text)));
            }
            Err(e) => return Err(self.unresolved(name, e)),
        };
        let reference = if reference.to_string() == found {
            reference
        } else {
            found.parse::<Reference>().map_err(|e| {
                Failed::new(format!("failed to parse ref {}: {e}", base::gotext::quote(&found)))
            })?
        };
        let image = serde_json::from_slice(&config)
            .map_err(|e| Failed::new(e.to_string()).context("failed to parse image config"))?;
        Ok(Base::Image { reference: reference.with_digest(digest), image: Box::new(image) })
    }

    /// The error when an image cannot be had: perhaps a stage was meant.
    fn unresolved(&self, name: &str, error: Failure) -> Failed {
        let mut options = self.stages.titles();
        for common in ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"] {
            options.push(common.to_owned());
            options.push(format!("docker.io/library{common}"));
            options.push(format!("{common}:latest"));
            options.push(format!("docker.io/library{common}:latest"));
        }
        let meant = suggest(name, options.iter().map(String::as_str), true).to_string();
        error.context(name).suffixed(&meant).into()
    }

    /// Puts into the stage what was found.
    fn settle(&mut self, id: Id, needed: bool, base: Base) -> Result<()> {
        let mut platform = self.wanted(id);
        let original = self.stages[id].source.base_name.clone();
        let mut full = base_reference(&original)?.tag_name_only().to_string();
        let mut is_scratch = false;
        let stage = &mut self.stages[id];
        match base {
            Base::Stage(loaded) => {
                stage.source.base_name = full;
                stage.dispatched = true;
                stage.state = loaded.state;
                stage.pending = loaded.pending;
                if let Some(mut image) = loaded.image {
                    image.created = None;
                    let runs_on = image.runs_on();
                    if !runs_on.architecture.is_empty() && !runs_on.os.is_empty() {
                        stage.platform = Some(runs_on);
                    }
                    stage.image = image;
                }
                return Ok(());
            }
            Base::Context(loaded) => {
                stage.source.base_name = full;
                let mut image = loaded.image.unwrap_or_else(|| Image::empty(&platform));
                stage.base_image = Some(image.clone());
                image.created = None;
                stage.image = image;
                stage.state = loaded.state.platform(platform.clone());
                stage.pending = loaded.pending;
                stage.platform = Some(platform);
                return Ok(());
            }
            Base::Image { reference, mut image } => {
                stage.base_image = Some((*image).clone());
                image.created = None;
                if stage.platform.is_none() && self.platforms.implicit {
                    platform = self.platforms.detect(&image.runs_on(), &platform);
                }
                full = reference.to_string();
                is_scratch = image.is_scratch();
                stage.image = *image;
            }
            Base::Unasked => {}
        }
        stage.source.base_name.clone_from(&full);
        stage.state = if is_scratch {
            State::scratch()
        } else {
            let config = self.options.client.config();
            let name = names::step(
                stage,
                &format!("FROM {full}"),
                config.multi_platform,
                Some(&platform),
                &EnvList::default(),
            );
            let options = names::command(&stage.source.code).platform(platform.clone()).name(name);
            let options = names::located(options, &self.options.source, stage.source.lines);
            let source = ImageSource { resolve_mode: config.resolve_mode, options, ..ImageSource::default() };
            let state = source.state(&full)?;
            if needed {
                let (lines, has) = (stage.source.lines, stage.image.runs_on());
                let (wanted, has) = (platform.clone().normalized(), has.normalized());
                checks::base_image_platform(&original, &wanted, &has, lines, &self.lint);
            }
            state
        };
        stage.platform = Some(platform);
        Ok(())
    }
}

fn base_reference(name: &str) -> Result<Reference> {
    name.parse::<Reference>()
        .map_err(|e| Failed::new(format!("failed to parse stage name {}: {e}", base::gotext::quote(name))))
}
