//! Whatever the bytes, there is an answer.

use proptest::prelude::*;

use super::instructions::Command;
use super::lint::{Config, Linter, checks};
use super::shell::{Lex, NoEnv};
use super::{directives, giturl, instructions, parser, subrequests};

/// Everything that is done with a file.
fn digest_whole(data: &[u8]) {
    directives::syntax(data);
    let _ = subrequests::targets::list(data).map(|t| t.answer());
    let Ok(parsed) = parser::parse(data) else { return };
    let linter = Linter::new(Config { experimental_all: true, ..Config::default() });
    checks::empty_continuations(&parsed.warnings, &linter);
    let Ok(file) = instructions::parse(&parsed.nodes, &linter) else { return };
    checks::stage_names(&file.stages, &linter);
    checks::instruction_casing(&file.stages, &linter);
    let lex = Lex::new(parsed.escape);
    for stage in file.stages {
        for mut instruction in stage.instructions {
            let expand = &mut |word: &str| Ok::<_, super::Error>(lex.expand(word, &NoEnv)?.text);
            let _ = instruction.command.expand(expand);
            let _ = instruction.command.expand_raw(expand);
            if let Command::Onbuild(trigger) = instruction.command {
                let _ = instructions::parse_trigger(&trigger, instruction.lines);
            }
        }
    }
}

/// Lines that are nearly instructions.
fn line() -> impl Strategy<Value = String> {
    let keyword = prop::sample::select(vec![
        "FROM",
        "RUN",
        "copy",
        "ADD",
        "ENV",
        "ARG",
        "LABEL",
        "CMD",
        "EXPOSE",
        "HEALTHCHECK",
        "ONBUILD",
        "SHELL",
        "VOLUME",
        "# check=",
        "# escape=",
        "<<EOF",
        "EOF",
        "",
    ]);
    let rest = "( ?(--mount=type=cache,|--from=|--|\\[\"a\",|\\]|<<-?EOF|\\$\\{a[:#%/?-]|\\}|['\"\\\\`]|a=b|é|\u{a0}|\t|,)){0,6}\\\\?";
    (keyword, rest).prop_map(|(keyword, rest)| format!("{keyword} {rest}"))
}

proptest! {
    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        digest_whole(&data);
        digest_whole(&[b"FROM x\nRUN ", data.as_slice()].concat());
    }

    #[test]
    fn nearly_a_file(lines in prop::collection::vec(line(), 0..8)) {
        digest_whole(lines.join("\n").as_bytes());
        digest_whole(format!("FROM x\n{}", lines.join("\n")).as_bytes());
    }

    #[test]
    fn any_word(word in "[a${}:?#%/+\\-'\"\\\\<> é*\\[]{0,24}") {
        let env = vec![("a".to_owned(), "x/y".to_owned())];
        for lex in [Lex::new('\\'), Lex { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lex::new('`') }] {
            let _ = lex.expand(&word, &env);
        }
        parser::heredoc(&word);
        let _ = giturl::GitRef::parse(&word);
        let _ = giturl::GitRef::parse(&format!("https://{word}.git?{word}#{word}"));
    }
}

#[test]
fn large_files() {
    let heredocs = format!("FROM x\nCOPY {} /d\n{}", "<<E ".repeat(5_000), "E\n".repeat(5_000));
    let continued = format!("FROM x\nRUN {}", "a \\\n\n".repeat(50_000));
    let triggers = format!("FROM x\n{}RUN a", "ONBUILD \\\n".repeat(50_000));
    let brackets = format!("FROM x\nCMD {}", "[".repeat(60_000));
    let comments = "#\n# a\n".repeat(50_000) + "FROM x";
    let stages = "FROM x AS y\n".repeat(20_000);
    for text in [heredocs, continued, triggers, brackets, comments, stages] {
        digest_whole(text.as_bytes());
    }
}
