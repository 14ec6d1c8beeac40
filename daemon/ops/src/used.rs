//! What an operation used, as provenance tells it.
//!
//! An operation that was keyed knows what its source stood for: an image's
//! name has become a digest. Whoever has built something asks the operations
//! below the result.

use std::any::Any;

use base::failure::IncompleteMaterial;
use base::{Digest, Platform};
use proto::pb;
use serde::Serialize;
use solver::Operation;

use crate::Output;
use crate::exec::ExecOp;
use crate::other::BuildOp;
use crate::source::blob::BlobFile;
use crate::source::git::GitSource;
use crate::source::http::HttpSource;
use crate::source::image::ImageSource;
use crate::source::local::LocalSource;

/// What one operation used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// What came from outside.
    pub materials: Vec<Material>,
    /// Secrets it could read.
    pub secrets: Vec<Need>,
    /// Agents it could speak to.
    pub ssh: Vec<Need>,
    /// It could reach the network.
    pub network: bool,
    /// It used more than is told here.
    pub incomplete: bool,
    /// It could reach the network only through a proxy.
    pub proxied: bool,
    /// What the proxy could not tell of all that passed it.
    pub uncaptured: Vec<IncompleteMaterial>,
}

/// Something that came from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// An image.
    Image {
        /// Its normalised name.
        reference: String,
        /// For which platform it was used.
        platform: Option<Platform>,
        /// What the name stood for.
        digest: Digest,
        /// It came from the client, not from a registry.
        local: bool,
    },
    /// A blob of an image's repository.
    Blob {
        /// Its normalised name, by digest.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// It came from the client, not from a registry.
        local: bool,
    },
    /// A commit of a repository.
    Git {
        /// The remote, and the reference that was asked for after a `#`.
        url: String,
        /// What the reference stood for.
        commit: String,
        /// The blob it was unpacked from, by its address.
        bundle: Option<String>,
    },
    /// A file of a web server.
    Http {
        /// Where it was.
        url: String,
        /// What was there.
        digest: Digest,
    },
    /// A directory of the client.
    Local {
        /// Its name there.
        name: String,
    },
}

/// A secret or an agent that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Its name.
    pub id: String,
    /// The build goes on without.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// What `operation` used. Nothing, for one that only works on its inputs.
pub fn used(operation: &dyn Operation<Output>) -> Used {
    let operation: &dyn Any = operation;
    if let Some(exec) = operation.downcast_ref::<ExecOp>() {
        return exec.used();
    }
    if let Some(git) = operation.downcast_ref::<GitSource>() {
        return git.used();
    }
    if let Some(http) = operation.downcast_ref::<HttpSource>() {
        return http.used();
    }
    let material = if let Some(image) = operation.downcast_ref::<ImageSource>() {
        image.material()
    } else if let Some(blob) = operation.downcast_ref::<BlobFile>() {
        Some(blob.material())
    } else {
        operation.downcast_ref::<LocalSource>().map(LocalSource::material)
    };
    Used {
        materials: material.into_iter().collect(),
        incomplete: operation.is::<BuildOp>(),
        ..Used::default()
    }
}

/// What a process with these needs used.
pub(crate) fn of_exec(op: &pb::ExecOp) -> Used {
    let mut used = Used { network: op.network() != pb::NetMode::None, ..Used::default() };
    for mount in &op.mounts {
        match mount.mount_type() {
            pb::MountType::Secret => {
                let o = mount.secret_opt.clone().unwrap_or_default();
                used.secrets.push(Need { id: o.id, optional: o.optional });
            }
            pb::MountType::Ssh => {
                let o = mount.ssh_opt.clone().unwrap_or_default();
                used.ssh.push(Need { id: o.id, optional: o.optional });
            }
            _ => {}
        }
    }
    let variables = op.secretenv.iter().map(|s| Need { id: s.id.clone(), optional: s.optional });
    used.secrets.extend(variables);
    used
}
