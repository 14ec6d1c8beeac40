//! `local`: the files in a directory of the client.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use base::Failure;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use session::fs::{Roots, Tree};
use session::{Caller, Deliver};
use store::Compression;

use super::{Options, Part, parts};
use crate::error::Error;
use crate::options::Attrs;
use crate::tree::Merged;
use crate::{Context, Deps, Exported, Exporter, Source};

/// The exporter.
pub(crate) struct Local {
    id: i64,
    attrs: Attrs,
    deps: Deps,
    options: Options,
}

impl Local {
    /// # Errors
    /// An option that makes no sense.
    pub(crate) fn new(id: i64, attrs: Attrs, deps: Deps) -> Result<Self, Error> {
        let options = Options::read(&attrs)?;
        Ok(Self { id, attrs, deps, options })
    }

    async fn send(
        &self,
        caller: &Caller,
        tree: Arc<dyn Tree>,
        label: String,
        context: &Context,
    ) -> Result<(), Failure> {
        let to =
            Deliver { exporter: self.id, metadata: BTreeMap::new(), multi_platform: self.options.delete };
        let counter = Mutex::new(context.progress.transfer(label));
        let sent = caller.send_dir(&to, tree, move |n| counter.lock().add(n));
        context.scope.run(async { Ok(sent.await?) }).await
    }
}

#[async_trait]
impl Exporter for Local {
    fn id(&self) -> i64 {
        self.id
    }

    fn name(&self) -> String {
        "exporting to client directory".to_owned()
    }

    fn kind(&self) -> &'static str {
        "local"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn compression(&self) -> Compression {
        Compression::default()
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported, Failure> {
        let caller = context.caller(&self.deps.sessions).await?;
        let split = self.options.splits(source.is_map());
        let mut all = context.scope.run(parts(source, &self.options)).await?;
        if !split && all.len() > 1 {
            all = base::task::blocking(move || overlap(&all).map(|()| all)).await?;
        }
        if self.options.delete {
            let tree =
                if split { roots(&all)? } else { Merged::of(all.into_iter().map(|p| p.tree).collect()) };
            self.send(&caller, tree, "copying files".to_owned(), context).await?;
            return Ok(Exported::default());
        }
        let sends = all.into_iter().map(|part| {
            let caller = &caller;
            async move {
                let label =
                    if split { format!("copying files {}", part.id) } else { "copying files".to_owned() };
                let tree = if split { roots(std::slice::from_ref(&part))? } else { part.tree };
                self.send(caller, tree, label, context).await
            }
        });
        try_join_all(sends).await?;
        Ok(Exported::default())
    }
}

/// Each platform in a directory of its own.
pub(super) fn roots(all: &[Part]) -> Result<Arc<dyn Tree>, Failure> {
    let roots = all.iter().map(|part| (part.dir(), part.tree.clone())).collect();
    Ok(Arc::new(Roots::new(roots)?))
}

/// Several platforms in one directory must not have files of the same name.
fn overlap(all: &[Part]) -> Result<(), Failure> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for part in all {
        let mut found = None;
        part.tree.walk(&mut |stat| {
            if !stat.is_dir() && found.is_none() {
                if let Some(first) = seen.get(&stat.path) {
                    found = Some(((*first).to_owned(), stat.path));
                } else {
                    seen.insert(stat.path, &part.id);
                }
            }
            Ok(())
        })?;
        if let Some((first, path)) = found {
            return Err(Error::Overlap { path, first, second: part.id.clone() }.into());
        }
    }
    Ok(())
}
