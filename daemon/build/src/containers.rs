//! Containers that a frontend holds open.
//!
//! Each belongs to one run of a frontend and ends with it, released or not.

use std::collections::HashMap;
use std::sync::Arc;

use base::Failure;
use ops::{Container, Output, Sandbox};
use parking_lot::Mutex;
use proto::pb;

use crate::{Bridge, Error};

/// The containers of one frontend, by the names it gave them.
#[derive(Default)]
pub(crate) struct Containers(Mutex<HashMap<String, Arc<Container>>>);

impl Containers {
    /// Ends all of them.
    pub(crate) async fn release(&self) {
        let open = std::mem::take(&mut *self.0.lock());
        for (id, container) in open {
            if let Err(error) = container.release().await {
                tracing::debug!(%error, id, "container ended with its frontend");
            }
        }
    }
}

impl Bridge {
    /// Opens a container called `id` on `mounts`, which name results or trees of
    /// an operation that failed.
    ///
    /// # Errors
    /// When there is one of this name, a tree is not there, or what is wrong
    /// with the rest.
    pub(crate) async fn open(
        &self,
        id: &str,
        sandbox: Sandbox,
        mounts: Vec<pb::Mount>,
    ) -> Result<(), Failure> {
        let taken = || Failure::from(Error::ContainerExists(id.to_owned()));
        if self.containers().0.lock().contains_key(id) {
            return Err(taken());
        }
        let mut sandbox = sandbox;
        for mount in mounts {
            let tree = self.mounted(&mount).await?;
            sandbox.mounts.push((mount, tree));
        }
        let scope = self.scope().child();
        let container = Container::new(self.worker(), self.job_values(), sandbox, scope).await?;
        let lost = {
            let mut open = self.containers().0.lock();
            if open.contains_key(id) {
                Some(container)
            } else {
                open.insert(id.to_owned(), container);
                None
            }
        };
        match lost {
            Some(container) => {
                container.release().await?;
                Err(taken())
            }
            None => Ok(()),
        }
    }

    async fn mounted(&self, mount: &pb::Mount) -> Result<Output, Failure> {
        if mount.result_id.is_empty() {
            return Ok(None);
        }
        if let Some(tree) = self.kept(&mount.result_id) {
            return Ok(Some(tree));
        }
        let (id, dest) = (mount.result_id.clone(), mount.dest.clone());
        let Some(known) = self.known(&id) else { return Err(Error::MountRef { id, dest }.into()) };
        Ok(self.result(&known).await?.result.clone())
    }

    /// The container called `id`.
    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers().0.lock().get(id).cloned()
    }

    /// The container called `id`, to read from one of its mounts.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn container_for_files(&self, id: &str, mount: i32) -> Result<Arc<Container>, Failure> {
        self.container(id).ok_or_else(|| Error::NoContainer(format!("{id}@{mount}")).into())
    }

    /// Ends the container called `id` and everything in it.
    ///
    /// # Errors
    /// When there is none, or that of the first process that did not end well.
    pub(crate) async fn release(&self, id: &str) -> Result<(), Failure> {
        let container = self.containers().0.lock().remove(id);
        match container {
            Some(container) => container.release().await,
            None => Err(Error::NoContainer(id.to_owned()).into()),
        }
    }
}
