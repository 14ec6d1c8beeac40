//! Replacing variables in instructions.

use super::{Command, KeyValue, Problem, Sources, mount};

impl Command {
    /// Replaces the variables in every word of which the language says so, by
    /// `expander`. For `RUN` this is where mounts become known.
    ///
    /// `ARG` is included, although its errors may have to be ignored; `CMD`,
    /// `ENTRYPOINT`, `EXPOSE`, `HEALTHCHECK`, `MAINTAINER`, `ONBUILD` and
    /// `SHELL` stay as they are.
    ///
    /// # Errors
    /// Those of `expander`, and those of mounts. The instruction may then be
    /// replaced in part.
    pub fn expand<E: From<Problem>>(
        &mut self,
        expander: &mut dyn FnMut(&str) -> Result<String, E>,
    ) -> Result<(), E> {
        match self {
            Self::Add(add) => {
                for word in [&mut add.chown, &mut add.chmod, &mut add.checksum] {
                    *word = expander(word)?;
                }
                paths(&mut add.sources, expander)
            }
            Self::Copy(copy) => {
                for word in [&mut copy.chown, &mut copy.chmod] {
                    *word = expander(word)?;
                }
                paths(&mut copy.sources, expander)
            }
            Self::Env(pairs) => key_values(pairs, expander),
            Self::Label(label) if !label.literal => key_values(&mut label.labels, expander),
            Self::Arg(arg) => {
                for var in &mut arg.vars {
                    var.key = expander(&var.key)?;
                    if let Some(value) = &mut var.value {
                        *value = expander(value)?;
                    }
                }
                Ok(())
            }
            Self::Run(run) => {
                let mounts = run.mount_flags.iter().map(|flag| mount::expand(flag, expander));
                run.mounts = mounts.collect::<Result<_, E>>()?;
                Ok(())
            }
            Self::StopSignal(word) | Self::User(word) | Self::Workdir(word) => {
                *word = expander(word)?;
                Ok(())
            }
            Self::Volume(words) => list(words, expander),
            Self::Label(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Expose(_)
            | Self::Healthcheck(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Shell(_) => Ok(()),
        }
    }

    /// Replaces the variables in files given inline to `ADD` and `COPY`, where
    /// quotes have no meaning.
    ///
    /// # Errors
    /// Those of `expander`.
    pub fn expand_raw<E>(&mut self, expander: &mut dyn FnMut(&str) -> Result<String, E>) -> Result<(), E> {
        let sources = match self {
            Self::Add(add) => &mut add.sources,
            Self::Copy(copy) => &mut copy.sources,
            _ => return Ok(()),
        };
        for content in sources.contents.iter_mut().filter(|c| c.expand) {
            let text = super::super::text::lossy(&content.data);
            content.data = expander(&text)?.into_bytes();
        }
        Ok(())
    }
}

fn list<E>(words: &mut [String], expander: mount::Expander<'_, E>) -> Result<(), E> {
    for word in words {
        *word = expander(word)?;
    }
    Ok(())
}

fn paths<E>(sources: &mut Sources, expander: mount::Expander<'_, E>) -> Result<(), E> {
    list(&mut sources.paths, expander)?;
    sources.dest = expander(&sources.dest)?;
    Ok(())
}

fn key_values<E>(pairs: &mut [KeyValue], expander: mount::Expander<'_, E>) -> Result<(), E> {
    for pair in pairs {
        pair.key = expander(&pair.key)?;
        pair.value = expander(&pair.value)?;
    }
    Ok(())
}
