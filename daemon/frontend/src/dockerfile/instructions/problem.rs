//! What can be wrong with an instruction. The texts are the reference's.

use base::gotext::quote;

use super::super::suggest::Suggestion;

/// An instruction is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("unknown instruction: {name}{suggestion}")]
    UnknownInstruction { name: String, suggestion: Suggestion },
    #[error("no build stage in current context")]
    NoStage,
    #[error("*instructions.Stage is not a command type")]
    NotACommand,
    #[error("onbuild trigger should be a single expression")]
    SeveralTriggers,

    #[error("{0} requires at least one argument")]
    AtLeastOne(&'static str),
    #[error("{0} requires exactly one argument")]
    ExactlyOne(&'static str),
    #[error(
        "{0} requires at least two arguments, but only one was provided. Destination could not be determined"
    )]
    NoDestination(&'static str),
    #[error("{0} cannot accept a heredoc as a destination")]
    HeredocDestination(&'static str),
    #[error("{0} names can not be blank")]
    BlankName(&'static str),
    #[error("Bad input to {0}, too many arguments")]
    TooMany(&'static str),
    #[error("{0} requires the arguments to be in JSON form")]
    NotJson(&'static str),

    #[error("FROM requires either one or three arguments")]
    FromArguments,
    #[error("invalid name for build stage: {}, name can't start with a number or contain symbols", quote(.0))]
    StageName(String),
    #[error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    OnbuildOnbuild,
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    OnbuildTrigger(String),
    #[error("VOLUME specified can not be an empty string")]
    EmptyVolume,

    #[error("HEALTHCHECK NONE takes no arguments")]
    HealthNoneArguments,
    #[error("Missing command after HEALTHCHECK CMD")]
    HealthNoCommand,
    #[error("Unknown type {} in HEALTHCHECK (try CMD)", quote(.0))]
    HealthType(String),
    #[error("Interval {} cannot be less than 1ms", quote(.0))]
    HealthInterval(&'static str),
    #[error("--retries cannot be negative ({0})")]
    HealthRetries(i64),
    #[error(transparent)]
    Duration(#[from] base::gotext::DurationError),
    #[error(transparent)]
    Number(#[from] base::gotext::NumberError),

    #[error("arg should start with -- : {0}")]
    NotAFlag(String),
    #[error("unknown flag: {flag}{suggestion}")]
    UnknownFlag { flag: String, suggestion: Suggestion },
    #[error("duplicate flag specified: {0}")]
    DuplicateFlag(String),
    #[error("missing a value on flag: {0}")]
    FlagValue(String),
    #[error("expecting boolean value for flag {flag}, not: {value}")]
    FlagBool { flag: String, value: String },

    #[error("invalid network mode {}", quote(.0))]
    Network(String),
    #[error("security {} is not valid", quote(.0))]
    Security(String),

    #[error("failed to parse csv {what}: {source}")]
    Csv { what: &'static str, source: super::csv::Error },
    #[error("invalid field '{0}' must be a key=value pair")]
    FieldWithoutValue(String),
    #[error("invalid value for {key}: {value}")]
    FieldValue { key: String, value: String },
    #[error("unexpected key '{key}' in '{field}'{suggestion}")]
    UnknownKey { key: String, field: String, suggestion: Suggestion },
    #[error("device name already set to {0}")]
    DeviceNamed(String),

    #[error("'{0}' doesn't support variable expansion, define alias stage instead")]
    FromVariable(String),
    #[error("unsupported mount type {}{suggestion}", quote(.kind))]
    MountKind { kind: String, suggestion: Suggestion },
    #[error("unsupported sharing value {}{suggestion}", quote(.value))]
    Sharing { value: String, suggestion: Suggestion },
    #[error("unexpected key '{key}' for mount type '{kind}'")]
    KeyForMount { key: String, kind: &'static str },
    #[error("invalid value {value} for {key}")]
    MountNumber { key: &'static str, value: String },
    #[error("{key} not allowed for {} type mounts", quote(.kind))]
    OwnerForMount { key: &'static str, kind: &'static str },
    #[error("secret mount should not have a from")]
    SecretFrom,
    #[error("secret mount should not define sharing")]
    SecretSharing,
    #[error("invalid secret mount. one of source, target required")]
    SecretName,
    #[error("both source and id can't be set")]
    SecretSourceAndId,
    #[error("invalid cache sharing set for {0} mount")]
    SharingForMount(&'static str),
}
