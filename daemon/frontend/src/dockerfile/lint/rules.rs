//! The rules, and what is said where one is violated.

use base::gotext::quote;

use super::super::suggest::Suggestion;

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name under which it is configured.
    pub name: &'static str,
    /// What it asks for.
    pub description: &'static str,
    /// Where it is explained; empty when nowhere.
    pub url: &'static str,
    /// Does not count unless it is asked for.
    pub experimental: bool,
}

macro_rules! rules {
    ($($constant:ident $name:literal $page:literal $experimental:literal $description:literal)*) => {
        $(
            #[doc = $description]
            pub static $constant: Rule = Rule {
                name: $name,
                description: $description,
                url: $page,
                experimental: $experimental,
            };
        )*

        /// Every rule.
        pub static ALL: &[&Rule] = &[$(&$constant),*];
    };
}

rules! {
    STAGE_NAME_CASING "StageNameCasing" "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/" false
        "Stage names should be lowercase"
    FROM_AS_CASING "FromAsCasing" "https://docs.docker.com/go/dockerfile/rule/from-as-casing/" false
        "The 'as' keyword should match the case of the 'from' keyword"
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/" false
        "Empty continuation lines will become errors in a future release"
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing" "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/" false
        "All commands within the Dockerfile should use the same casing (either upper or lower)"
    DUPLICATE_STAGE_NAME "DuplicateStageName" "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/" false
        "Stage names should be unique"
    RESERVED_STAGE_NAME "ReservedStageName" "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/" false
        "Reserved words should not be used as stage names"
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended" "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/" false
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
    MAINTAINER_DEPRECATED "MaintainerDeprecated" "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/" false
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/" false
        "FROM command must use declared ARGs"
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath" "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/" false
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
    UNDEFINED_VAR "UndefinedVar" "https://docs.docker.com/go/dockerfile/rule/undefined-var/" false
        "Variables should be defined before their use"
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed" "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/" false
        "Multiple instructions of the same type should not be used in the same stage"
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat" "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/" false
        "Legacy key/value format with whitespace separator should not be used"
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform" "" false
        "Base image platform does not match expected target platform"
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform" "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/" false
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv" "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/" false
        "Sensitive data should not be used in the ARG or ENV commands"
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom" "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/" false
        "Default value for global ARG results in an empty or invalid base image name"
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed" "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/" false
        "FROM --platform flag should not use a constant value"
    COPY_IGNORED_FILE "CopyIgnoredFile" "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/" false
        "Attempting to Copy file that is excluded by .dockerignore"
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription" "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/" true
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment."
    EXPOSE_PROTO_CASING "ExposeProtoCasing" "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/" false
        "Protocol in EXPOSE instruction should be lowercase"
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat" "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/" false
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
}

/// A rule is violated. Prints what a person is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Violation {
    #[error("Stage name '{name}' should be lowercase")]
    StageNameCasing { name: String },
    #[error("'{keyword}' and '{from}' keywords' casing do not match")]
    FromAsCasing { from: String, keyword: String },
    #[error("Empty continuation line")]
    EmptyContinuation,
    /// `casing` is `lowercase` or `uppercase`.
    #[error("Command '{name}' should match the case of the command majority ({casing})")]
    InstructionCasing { name: String, casing: &'static str },
    #[error("Duplicate stage name {}, stage names should be unique", quote(.name))]
    DuplicateStageName { name: String },
    #[error("Stage name should not use the same name as reserved stage {}", quote(.name))]
    ReservedStageName { name: String },
    #[error("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals")]
    JsonArgsRecommended { name: String },
    #[error("Maintainer instruction is deprecated in favor of using label")]
    Maintainer,
    #[error("FROM argument '{name}' is not declared{suggestion}")]
    UndefinedArgInFrom { name: String, suggestion: Suggestion },
    #[error("Relative workdir {} can have unexpected results if the base image changes", quote(.path))]
    RelativeWorkdir { path: String },
    /// `meant` is the name that was probably meant.
    #[error("Usage of undefined variable '${name}'{}", dollar(.meant))]
    UndefinedVar { name: String, meant: Option<String> },
    #[error(
        "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
    )]
    MultipleInstructions { name: String },
    #[error("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format")]
    LegacyKeyValue { name: String },
    #[error(
        "Base image {image} was pulled with platform {}, expected {} for current build",
        quote(.actual), quote(.expected)
    )]
    BaseImagePlatform { image: String, expected: String, actual: String },
    #[error("Setting platform to predefined {variable} in FROM is redundant as this is the default behavior")]
    RedundantTargetPlatform { variable: String },
    #[error("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", quote(.key))]
    SecretInArgOrEnv { instruction: &'static str, key: String },
    #[error("Default value for ARG {base} results in empty or invalid base image name")]
    DefaultArgInFrom { base: String },
    #[error("FROM --platform flag should not use constant value {}", quote(.platform))]
    ConstantPlatform { platform: String },
    /// `command` is `Copy` or `Add`.
    #[error("Attempting to {command} file {} that is excluded by .dockerignore", quote(.file))]
    CopyIgnoredFile { command: &'static str, file: String },
    #[error("Comment for {instruction} should follow the format: `# {name} <description>`")]
    DefinitionDescription { instruction: &'static str, name: String },
    #[error("Defined protocol '{port}' in EXPOSE instruction should be lowercase")]
    ExposeProtoCasing { port: String },
    #[error("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'")]
    ExposeInvalidFormat { port: String },
}

fn dollar(meant: &Option<String>) -> String {
    meant.as_ref().map(|name| format!(" (did you mean ${name}?)")).unwrap_or_default()
}

impl Violation {
    /// The rule that is violated.
    pub fn rule(&self) -> &'static Rule {
        match self {
            Self::StageNameCasing { .. } => &STAGE_NAME_CASING,
            Self::FromAsCasing { .. } => &FROM_AS_CASING,
            Self::EmptyContinuation => &NO_EMPTY_CONTINUATION,
            Self::InstructionCasing { .. } => &CONSISTENT_INSTRUCTION_CASING,
            Self::DuplicateStageName { .. } => &DUPLICATE_STAGE_NAME,
            Self::ReservedStageName { .. } => &RESERVED_STAGE_NAME,
            Self::JsonArgsRecommended { .. } => &JSON_ARGS_RECOMMENDED,
            Self::Maintainer => &MAINTAINER_DEPRECATED,
            Self::UndefinedArgInFrom { .. } => &UNDEFINED_ARG_IN_FROM,
            Self::RelativeWorkdir { .. } => &WORKDIR_RELATIVE_PATH,
            Self::UndefinedVar { .. } => &UNDEFINED_VAR,
            Self::MultipleInstructions { .. } => &MULTIPLE_INSTRUCTIONS_DISALLOWED,
            Self::LegacyKeyValue { .. } => &LEGACY_KEY_VALUE_FORMAT,
            Self::BaseImagePlatform { .. } => &INVALID_BASE_IMAGE_PLATFORM,
            Self::RedundantTargetPlatform { .. } => &REDUNDANT_TARGET_PLATFORM,
            Self::SecretInArgOrEnv { .. } => &SECRETS_USED_IN_ARG_OR_ENV,
            Self::DefaultArgInFrom { .. } => &INVALID_DEFAULT_ARG_IN_FROM,
            Self::ConstantPlatform { .. } => &FROM_PLATFORM_FLAG_CONST_DISALLOWED,
            Self::CopyIgnoredFile { .. } => &COPY_IGNORED_FILE,
            Self::DefinitionDescription { .. } => &INVALID_DEFINITION_DESCRIPTION,
            Self::ExposeProtoCasing { .. } => &EXPOSE_PROTO_CASING,
            Self::ExposeInvalidFormat { .. } => &EXPOSE_INVALID_FORMAT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong() {
        let text = |v: Violation| v.to_string();
        assert_eq!(
            text(Violation::FromAsCasing { from: "FROM".into(), keyword: "as".into() }),
            "'as' and 'FROM' keywords' casing do not match"
        );
        assert_eq!(
            text(Violation::UndefinedVar { name: "PAHT".into(), meant: Some("PATH".into()) }),
            "Usage of undefined variable '$PAHT' (did you mean $PATH?)"
        );
        assert_eq!(
            text(Violation::BaseImagePlatform {
                image: "a".into(),
                expected: "linux/x".into(),
                actual: "linux/y".into()
            }),
            "Base image a was pulled with platform \"linux/y\", expected \"linux/x\" for current build"
        );
        assert_eq!(
            text(Violation::LegacyKeyValue { name: "ENV".into() }),
            "\"ENV key=value\" should be used instead of legacy \"ENV key value\" format"
        );
    }

    #[test]
    fn has_every_rule_once() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|r| r.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert_eq!(ALL.iter().filter(|r| r.experimental).count(), 1);
        assert_eq!(ALL.iter().filter(|r| r.url.is_empty()).count(), 1);
    }
}
