//! Names that occur in operations: attributes of sources and of nested builds.
//!
//! They are a contract; which source understands which is in the source's own
//! documentation.

/// Marks an input without content, and a mount without an output.
pub const NONE: i64 = -1;

/// Input of a nested build under which its definition is found.
pub const DEFINITION_INPUT: &str = "buildkit.llb.definition";
/// File in that input, unless [`DEFINITION_FILENAME`] names another.
pub const DEFINITION_FILE: &str = DEFINITION_INPUT;
/// Attribute of a nested build: the file with the definition.
pub const DEFINITION_FILENAME: &str = "llbbuild.filename";

/// Key of a description: what a vertex is called instead of its own name.
pub const CUSTOM_NAME: &str = "llb.customname";

macro_rules! attrs {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $value;)*
    };
}

attrs! {
    /// `default`, `pull` or `local`.
    IMAGE_RESOLVE_MODE = "image.resolvemode";
    /// `regular`, `internal` or `frontend`.
    IMAGE_RECORD_TYPE = "image.recordtype";
    /// Only so many of the lowest layers.
    IMAGE_LAYER_LIMIT = "image.layerlimit";
    /// The digest the manifest must have.
    IMAGE_CHECKSUM = "image.checksum";

    /// The session that serves the layout.
    OCI_SESSION = "oci.session";
    /// The store within that session.
    OCI_STORE = "oci.store";
    /// Only so many of the lowest layers.
    OCI_LAYER_LIMIT = "oci.layerlimit";

    /// `true` keeps `.git`.
    GIT_KEEP_DIR = "git.keepgitdir";
    /// The remote as it was written.
    GIT_FULL_URL = "git.fullurl";
    /// Secret with an `Authorization` header.
    GIT_AUTH_HEADER_SECRET = "git.authheadersecret";
    /// Secret with a token.
    GIT_AUTH_TOKEN_SECRET = "git.authtokensecret";
    /// Lines for `known_hosts`.
    GIT_KNOWN_SSH_HOSTS = "git.knownsshhosts";
    /// Id of the forwarded agent.
    GIT_MOUNT_SSH_SOCK = "git.mountsshsock";
    /// Commit, or a prefix of it, that the reference must resolve to.
    GIT_CHECKSUM = "git.checksum";
    /// `true` leaves submodules out.
    GIT_SKIP_SUBMODULES = "git.skipsubmodules";
    /// `checkout` or `commit`.
    GIT_MTIME = "git.mtime";
    /// `true` fetches the commit instead of the reference.
    GIT_FETCH_BY_COMMIT = "git.fetchbycommit";
    /// A bundle to fetch from instead of the remote.
    GIT_BUNDLE = "git.bundle";
    /// `true` gives a bundle instead of a checkout.
    GIT_CHECKOUT_BUNDLE = "git.checkoutbundle";
    /// Public keys that may have signed.
    GIT_SIG_PUBKEY = "git.sig.pubkey";
    /// `true` refuses expired keys.
    GIT_SIG_REJECT_EXPIRED = "git.sig.rejectexpired";
    /// `true` wants the tag signed.
    GIT_SIG_REQUIRE_SIGNED_TAG = "git.sig.requiresignedtag";
    /// `true` looks at the commit only.
    GIT_SIG_IGNORE_SIGNED_TAG = "git.sig.ignoresignedtag";

    /// The session to read from.
    LOCAL_SESSION = "local.session";
    /// Makes otherwise equal sources differ.
    LOCAL_UNIQUE = "local.unique";
    /// JSON list of patterns to include.
    LOCAL_INCLUDE_PATTERN = "local.includepattern";
    /// JSON list of paths, with the targets of links followed.
    LOCAL_FOLLOW_PATHS = "local.followpaths";
    /// JSON list of patterns to leave out.
    LOCAL_EXCLUDE_PATTERNS = "local.excludepatterns";
    /// Which earlier transfer to build upon.
    LOCAL_SHARED_KEY_HINT = "local.sharedkeyhint";
    /// `none` or `metadata`: how files are compared with the earlier transfer.
    LOCAL_DIFFER = "local.differ";
    /// `true` transfers names and attributes only.
    LOCAL_METADATA_TRANSFER = "local.metadatatransfer";
    /// JSON list of patterns whose content is transferred nevertheless.
    LOCAL_METADATA_TRANSFER_EXCLUDE = "local.metadatatransferexclude";

    /// The digest the body must have.
    HTTP_CHECKSUM = "http.checksum";
    /// Name of the file.
    HTTP_FILENAME = "http.filename";
    /// Mode of the file, octal with a leading zero.
    HTTP_PERM = "http.perm";
    /// Owner of the file.
    HTTP_UID = "http.uid";
    /// Group of the file.
    HTTP_GID = "http.gid";
    /// Secret with an `Authorization` header.
    HTTP_AUTH_HEADER_SECRET = "http.authheadersecret";
    /// Prefix of request headers, in lower case.
    HTTP_HEADER_PREFIX = "http.header.";
    /// Public keys that may have signed.
    HTTP_SIG_PUBKEY = "http.sig.pubkey";
    /// The detached signature.
    HTTP_SIG_SIGNATURE = "http.sig.signature";
}
