//! Capabilities: what an LLB definition may use and a frontend may ask for.
//!
//! Every definition names the capabilities it needs, per vertex; a daemon that
//! lacks one refuses the definition. [`LLB`] and [`FRONTEND`] are what this
//! daemon tells clients it has. The identifiers are a contract, spelling
//! mistakes included.

use proto::moby::buildkit::v1::apicaps::ApiCap;

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Its identifier on the wire.
    pub id: &'static str,
    /// For people; often empty.
    pub name: &'static str,
    /// Only for clients that are older than its replacement.
    pub deprecated: bool,
    /// How far along it is: shown in the error when it is missing.
    pub stage: &'static str,
}

const fn cap(id: &'static str) -> Cap {
    Cap { id, name: "", deprecated: false, stage: "experimental " }
}

const fn named(id: &'static str, name: &'static str) -> Cap {
    Cap { id, name, deprecated: false, stage: "experimental " }
}

// Identifiers, each named after itself.

pub const CACHE_AZBLOB: &str = "cache.azblob";
pub const CACHE_GHA: &str = "cache.gha";
pub const CACHE_S3: &str = "cache.s3";
pub const CONSTRAINTS: &str = "constraints";
pub const DIFFOP: &str = "diffop";
pub const EXEC_CGROUP: &str = "exec.cgroup";
pub const EXEC_META_BASE: &str = "exec.meta.base";
pub const EXEC_META_CDI: &str = "exec.meta.cdi";
pub const EXEC_META_CGROUP_PARENT: &str = "exec.meta.cgroup.parent";
pub const EXEC_META_LINUX_RESOURCES: &str = "exec.meta.linux.resources";
pub const EXEC_META_NETWORK: &str = "exec.meta.network";
pub const EXEC_META_NETWORK_PROXY: &str = "exec.meta.network.proxy";
pub const EXEC_META_PROXYENV: &str = "exec.meta.proxyenv";
pub const EXEC_META_SECURITY: &str = "exec.meta.security";
pub const EXEC_META_SECURITY_DEVICES_V1: &str = "exec.meta.security.devices.v1";
pub const EXEC_META_SETSDEFAULTPATH: &str = "exec.meta.setsdefaultpath";
pub const EXEC_META_ULIMIT: &str = "exec.meta.ulimit";
pub const EXEC_MOUNT_BIND: &str = "exec.mount.bind";
pub const EXEC_MOUNT_BIND_READWRITE_NOOUTPUT: &str = "exec.mount.bind.readwrite-nooutput";
pub const EXEC_MOUNT_CACHE: &str = "exec.mount.cache";
pub const EXEC_MOUNT_CACHE_CONTENT: &str = "exec.mount.cache.content";
pub const EXEC_MOUNT_CACHE_SHARING: &str = "exec.mount.cache.sharing";
pub const EXEC_MOUNT_SECRET: &str = "exec.mount.secret";
pub const EXEC_MOUNT_SELECTOR: &str = "exec.mount.selector";
pub const EXEC_MOUNT_SSH: &str = "exec.mount.ssh";
pub const EXEC_MOUNT_TMPFS: &str = "exec.mount.tmpfs";
pub const EXEC_MOUNT_TMPFS_SIZE: &str = "exec.mount.tmpfs.size";
pub const EXEC_SECRETENV: &str = "exec.secretenv";
pub const EXEC_VALIDEXITCODE: &str = "exec.validexitcode";
pub const EXPORTER_IMAGE_ANNOTATIONS: &str = "exporter.image.annotations";
pub const EXPORTER_IMAGE_ATTESTATIONS: &str = "exporter.image.attestations";
pub const EXPORTER_MULTIPLE: &str = "exporter.multiple";
pub const EXPORTER_SESSION: &str = "exporter.session";
pub const EXPORTER_SOURCEDATEEPOCH: &str = "exporter.sourcedateepoch";
pub const FILE_BASE: &str = "file.base";
pub const FILE_COPY_ALWAYSREPLACEEXISTINGDESTPATHS: &str = "file.copy.alwaysreplaceexistingdestpaths";
pub const FILE_COPY_INCLUDEEXCLUDEPATTERNS: &str = "file.copy.includeexcludepatterns";
pub const FILE_COPY_REQUIREDPATHS: &str = "file.copy.requiredpaths";
pub const FILE_RM_NOFOLLOWSYMLINK: &str = "file.rm.nofollowsymlink";
pub const FILE_RM_WILDCARD: &str = "file.rm.wildcard";
pub const FILE_SYMLINK_CREATE: &str = "file.symlink.create";
pub const GC_FREESPACEFILTER: &str = "gc.freespacefilter";
pub const HISTORY_FILTER: &str = "history.filter";
pub const MERGEOP: &str = "mergeop";
pub const META_DESCRIPTION: &str = "meta.description";
pub const META_EXPORTCACHE: &str = "meta.exportcache";
pub const META_IGNORECACHE: &str = "meta.ignorecache";
pub const PASSTHROUGHOP: &str = "passthroughop";
pub const PLATFORM: &str = "platform";
pub const SOURCE_HTTP_UIDGID: &str = "soruce.http.uidgid";
pub const SOURCE_BUILDOP_LLBFILENAME: &str = "source.buildop.llbfilename";
pub const SOURCE_GIT: &str = "source.git";
pub const SOURCE_GIT_BUNDLE: &str = "source.git.bundle";
pub const SOURCE_GIT_CHECKOUTBUNDLE: &str = "source.git.checkoutbundle";
pub const SOURCE_GIT_CHECKSUM: &str = "source.git.checksum";
pub const SOURCE_GIT_FETCHBYCOMMIT: &str = "source.git.fetchbycommit";
pub const SOURCE_GIT_FULLURL: &str = "source.git.fullurl";
pub const SOURCE_GIT_HTTPAUTH: &str = "source.git.httpauth";
pub const SOURCE_GIT_KEEPGITDIR: &str = "source.git.keepgitdir";
pub const SOURCE_GIT_KNOWNSSHHOSTS: &str = "source.git.knownsshhosts";
pub const SOURCE_GIT_MOUNTSSHSOCK: &str = "source.git.mountsshsock";
pub const SOURCE_GIT_MTIME: &str = "source.git.mtime";
pub const SOURCE_GIT_SIGNATUREVERIFY: &str = "source.git.signatureverify";
pub const SOURCE_GIT_SKIPSUBMODULES: &str = "source.git.skipsubmodules";
pub const SOURCE_GIT_SUBDIR: &str = "source.git.subdir";
pub const SOURCE_HTTP: &str = "source.http";
pub const SOURCE_HTTP_AUTH: &str = "source.http.auth";
pub const SOURCE_HTTP_CHECKSUM: &str = "source.http.checksum";
pub const SOURCE_HTTP_HEADER: &str = "source.http.header";
pub const SOURCE_HTTP_PERM: &str = "source.http.perm";
pub const SOURCE_HTTP_SIGNATUREVERIFY: &str = "source.http.signatureverify";
pub const SOURCE_IMAGE: &str = "source.image";
pub const SOURCE_IMAGE_CHECKSUM: &str = "source.image.checksum";
pub const SOURCE_IMAGE_LAYERLIMIT: &str = "source.image.layerlimit";
pub const SOURCE_IMAGE_RESOLVEMODE: &str = "source.image.resolvemode";
pub const SOURCE_IMAGEBLOB: &str = "source.imageblob";
pub const SOURCE_LOCAL: &str = "source.local";
pub const SOURCE_LOCAL_DIFFER: &str = "source.local.differ";
pub const SOURCE_LOCAL_EXCLUDEPATTERNS: &str = "source.local.excludepatterns";
pub const SOURCE_LOCAL_FOLLOWPATHS: &str = "source.local.followpaths";
pub const SOURCE_LOCAL_INCLUDEPATTERNS: &str = "source.local.includepatterns";
pub const SOURCE_LOCAL_METADATATRANSFER: &str = "source.local.metadatatransfer";
pub const SOURCE_LOCAL_SESSIONID: &str = "source.local.sessionid";
pub const SOURCE_LOCAL_SHAREDKEYHINT: &str = "source.local.sharedkeyhint";
pub const SOURCE_LOCAL_UNIQUE: &str = "source.local.unique";
pub const SOURCE_OCILAYOUT: &str = "source.ocilayout";
pub const SOURCE_POLICY: &str = "source.policy";
pub const SOURCE_POLICY_SESSION: &str = "source.policy.session";
/// A frontend may ask for its inputs.
pub const FRONTEND_INPUTS: &str = "frontend.inputs";

/// What LLB this daemon understands, by identifier.
pub const LLB: &[Cap] = &[
    cap(CACHE_AZBLOB),
    cap(CACHE_GHA),
    cap(CACHE_S3),
    cap(CONSTRAINTS),
    cap(DIFFOP),
    cap(EXEC_CGROUP),
    cap(EXEC_META_BASE),
    cap(EXEC_META_CDI),
    cap(EXEC_META_CGROUP_PARENT),
    cap(EXEC_META_LINUX_RESOURCES),
    cap(EXEC_META_NETWORK),
    cap(EXEC_META_NETWORK_PROXY),
    cap(EXEC_META_PROXYENV),
    cap(EXEC_META_SECURITY),
    cap(EXEC_META_SECURITY_DEVICES_V1),
    cap(EXEC_META_SETSDEFAULTPATH),
    cap(EXEC_META_ULIMIT),
    cap(EXEC_MOUNT_BIND),
    cap(EXEC_MOUNT_BIND_READWRITE_NOOUTPUT),
    cap(EXEC_MOUNT_CACHE),
    cap(EXEC_MOUNT_CACHE_CONTENT),
    cap(EXEC_MOUNT_CACHE_SHARING),
    cap(EXEC_MOUNT_SECRET),
    cap(EXEC_MOUNT_SELECTOR),
    cap(EXEC_MOUNT_SSH),
    cap(EXEC_MOUNT_TMPFS),
    cap(EXEC_MOUNT_TMPFS_SIZE),
    cap(EXEC_SECRETENV),
    cap(EXEC_VALIDEXITCODE),
    cap(EXPORTER_IMAGE_ANNOTATIONS),
    cap(EXPORTER_IMAGE_ATTESTATIONS),
    cap(EXPORTER_MULTIPLE),
    cap(EXPORTER_SESSION),
    named(EXPORTER_SOURCEDATEEPOCH, "source date epoch"),
    Cap { id: FILE_BASE, name: "", deprecated: false, stage: "prerelease " },
    cap(FILE_COPY_ALWAYSREPLACEEXISTINGDESTPATHS),
    cap(FILE_COPY_INCLUDEEXCLUDEPATTERNS),
    cap(FILE_COPY_REQUIREDPATHS),
    cap(FILE_RM_NOFOLLOWSYMLINK),
    cap(FILE_RM_WILDCARD),
    cap(FILE_SYMLINK_CREATE),
    cap(GC_FREESPACEFILTER),
    cap(HISTORY_FILTER),
    cap(MERGEOP),
    cap(META_DESCRIPTION),
    cap(META_EXPORTCACHE),
    cap(META_IGNORECACHE),
    cap(PASSTHROUGHOP),
    cap(PLATFORM),
    cap(SOURCE_HTTP_UIDGID),
    cap(SOURCE_BUILDOP_LLBFILENAME),
    cap(SOURCE_GIT),
    cap(SOURCE_GIT_BUNDLE),
    cap(SOURCE_GIT_CHECKOUTBUNDLE),
    cap(SOURCE_GIT_CHECKSUM),
    cap(SOURCE_GIT_FETCHBYCOMMIT),
    cap(SOURCE_GIT_FULLURL),
    cap(SOURCE_GIT_HTTPAUTH),
    cap(SOURCE_GIT_KEEPGITDIR),
    cap(SOURCE_GIT_KNOWNSSHHOSTS),
    cap(SOURCE_GIT_MOUNTSSHSOCK),
    cap(SOURCE_GIT_MTIME),
    cap(SOURCE_GIT_SIGNATUREVERIFY),
    cap(SOURCE_GIT_SKIPSUBMODULES),
    cap(SOURCE_GIT_SUBDIR),
    cap(SOURCE_HTTP),
    cap(SOURCE_HTTP_AUTH),
    cap(SOURCE_HTTP_CHECKSUM),
    cap(SOURCE_HTTP_HEADER),
    cap(SOURCE_HTTP_PERM),
    cap(SOURCE_HTTP_SIGNATUREVERIFY),
    cap(SOURCE_IMAGE),
    cap(SOURCE_IMAGE_CHECKSUM),
    cap(SOURCE_IMAGE_LAYERLIMIT),
    cap(SOURCE_IMAGE_RESOLVEMODE),
    cap(SOURCE_IMAGEBLOB),
    cap(SOURCE_LOCAL),
    cap(SOURCE_LOCAL_DIFFER),
    cap(SOURCE_LOCAL_EXCLUDEPATTERNS),
    cap(SOURCE_LOCAL_FOLLOWPATHS),
    cap(SOURCE_LOCAL_INCLUDEPATTERNS),
    cap(SOURCE_LOCAL_METADATATRANSFER),
    cap(SOURCE_LOCAL_SESSIONID),
    cap(SOURCE_LOCAL_SHAREDKEYHINT),
    cap(SOURCE_LOCAL_UNIQUE),
    cap(SOURCE_OCILAYOUT),
    cap(SOURCE_POLICY),
    cap(SOURCE_POLICY_SESSION),
];

/// What a frontend may ask of this daemon, by identifier.
pub const FRONTEND: &[Cap] = &[
    named("frontend.caps", "frontend capabilities"),
    named(FRONTEND_INPUTS, "frontend inputs"),
    named("gateway.evaluate", "gateway evaluate"),
    named("gateway.exec", "gateway exec"),
    named("gateway.exec.extrahosts", "gateway exec extra-hosts"),
    named("gateway.exec.filesystem", "gateway exec filesystem"),
    named("gateway.exec.secretenv", "gateway exec secret env"),
    named("gateway.exec.signals", "gateway exec signals"),
    named("gateway.solve.evaluate", "gateway evaluate solve"),
    named("gateway.solve.metadata", "gateway metadata"),
    named("gateway.warnings", "logging warnings"),
    named("importcaches", "import caches"),
    named("proto.refarray", "wire format ref arrays"),
    named("readdir", "read static directory"),
    named("readfile", "read static file"),
    named("reference.attestations", "reference attestations"),
    named("reference.output", "reference output"),
    named("resolveimage", "resolve remote image config"),
    named("resolveimage.resolvemode", "resolve remote image config with custom resolvemode"),
    named("return", "return solve result"),
    named("returnmap", "return reference map"),
    cap("solve.base"),
    Cap {
        id: "solve.inlinereturn",
        name: "inline return from solve",
        deprecated: true,
        stage: "experimental ",
    },
    named("source.metaresolver", "source meta resolver"),
    named("source.metaresolver.http.checksumrequest", "source meta resolver http checksum request"),
    named("source.metaresolver.image.attestations", "source meta resolver image attestations"),
    named("statfile", "stat a file"),
];

/// Capabilities as they are announced, in answer to a ping.
pub fn announce(caps: &[Cap]) -> Vec<ApiCap> {
    caps.iter()
        .map(|c| ApiCap { id: c.id.to_owned(), enabled: true, deprecated: c.deprecated, ..ApiCap::default() })
        .collect()
}

/// Whether this daemon understands LLB that needs `id`.
///
/// # Errors
/// [`Unsupported`] when it does not.
pub fn check_llb(id: &str) -> Result<(), Unsupported> {
    CapSet::all(LLB).supports(id)
}

/// The other side lacks a capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Nobody knows it.
    #[error("unknown API capability {0}")]
    Unknown(String),
    /// The other side does not announce it.
    #[error("requested {stage}feature {id} {name} is not supported by build server, please update ")]
    Missing {
        /// The identifier.
        id: String,
        /// The name in brackets, or nothing.
        name: String,
        /// `experimental `, `prerelease ` or nothing.
        stage: &'static str,
    },
    /// The other side announces it as switched off.
    #[error("requested {stage}feature {id} {name} has been disabled on the build server{reason}")]
    Disabled {
        /// The identifier.
        id: String,
        /// The name in brackets, or nothing.
        name: String,
        /// `experimental `, `prerelease ` or nothing.
        stage: &'static str,
        /// Why, after a colon, or nothing.
        reason: String,
    },
}

/// What the other side of a conversation can do.
#[derive(Debug, Clone)]
pub struct CapSet {
    known: &'static [Cap],
    /// `None`: all that is known.
    announced: Option<Vec<ApiCap>>,
}

impl CapSet {
    /// Everything in `known`, which is [`LLB`] or [`FRONTEND`].
    pub fn all(known: &'static [Cap]) -> Self {
        Self { known, announced: None }
    }

    /// Those of `known` that were announced.
    pub fn announced(known: &'static [Cap], caps: Vec<ApiCap>) -> Self {
        Self { known, announced: Some(caps) }
    }

    /// All of them, as they are announced.
    pub fn list(&self) -> Vec<ApiCap> {
        self.announced.clone().unwrap_or_else(|| announce(self.known))
    }

    /// Whether the other side has it.
    pub fn has(&self, id: &str) -> bool {
        self.supports(id).is_ok()
    }

    /// Whether the other side has it, or why not.
    ///
    /// # Errors
    /// [`Unsupported`] with the message clients know.
    pub fn supports(&self, id: &str) -> Result<(), Unsupported> {
        let Ok(at) = self.known.binary_search_by(|c| c.id.cmp(id)) else {
            return Err(Unsupported::Unknown(id.to_owned()));
        };
        let (Some(cap), Some(announced)) = (self.known.get(at), &self.announced) else {
            return Ok(());
        };
        let (id, stage) = (id.to_owned(), cap.stage);
        let name = if cap.name.is_empty() { String::new() } else { format!("({})", cap.name) };
        match announced.iter().find(|c| c.id == cap.id) {
            Some(state) if state.enabled => Ok(()),
            Some(state) if state.disabled_reason_msg.is_empty() => {
                Err(Unsupported::Disabled { id, name, stage, reason: String::new() })
            }
            Some(state) => Err(Unsupported::Disabled {
                id,
                name,
                stage,
                reason: format!(": {}", state.disabled_reason_msg),
            }),
            None => Err(Unsupported::Missing { id, name, stage }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted() {
        for list in [LLB, FRONTEND] {
            assert!(list.is_sorted_by_key(|c| c.id));
        }
    }

    #[test]
    fn says_what_is_missing() {
        assert!(check_llb(SOURCE_HTTP_UIDGID).is_ok());
        assert_eq!(check_llb("no.such").unwrap_err().to_string(), "unknown API capability no.such");
        let none = CapSet::announced(LLB, Vec::new());
        assert_eq!(
            none.supports(FILE_BASE).unwrap_err().to_string(),
            "requested prerelease feature file.base  is not supported by build server, please update "
        );
    }
}
