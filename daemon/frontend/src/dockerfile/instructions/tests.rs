use super::super::super::lint::{Config, Warning, checks};
use super::super::super::shell::{Lex, NoEnv};
use super::*;

fn file(text: &str) -> Result<Dockerfile, Error> {
    let parsed = parser::parse(text.as_bytes())?;
    parse(&parsed.nodes, &Linter::off())
}

/// The one instruction of a stage.
fn one_of(text: &str) -> Command {
    let mut file = file(&format!("FROM x\n{text}")).unwrap();
    file.stages.pop().and_then(|mut s| s.instructions.pop()).unwrap().command
}

fn fails(text: &str) -> String {
    let error = file(text).unwrap_err().to_string();
    error.split_once(": ").map_or(error.clone(), |(_, reason)| reason.to_owned())
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn makes_stages() {
    let file = file(
        "# A is first\nARG A=1 B\n# base the bottom\nfrom --platform=$P alpine:$A as Base\nRUN x\nFROM base\nENV a b\n",
    )
    .unwrap();
    assert_eq!(file.args.len(), 1);
    assert_eq!(
        file.args[0].command.vars,
        [
            ArgVar { key: "A".into(), value: Some("1".into()), doc: "is first".into() },
            ArgVar { key: "B".into(), value: None, doc: String::new() },
        ]
    );
    let base = &file.stages[0];
    assert_eq!((base.name.as_str(), base.base_name.as_str()), ("base", "alpine:$A"));
    assert_eq!((base.platform.as_str(), base.keyword.as_str()), ("$P", "from"));
    assert_eq!((base.doc.as_str(), base.lines), ("the bottom", Lines::new(4, 4)));
    assert_eq!(base.code, "from --platform=$P alpine:$A as Base");
    assert_eq!(file.stages[1].instructions[0].name, "ENV");
}

#[test]
fn reads_instructions() {
    let pair = |key: &str, value: &str, legacy| KeyValue { key: key.into(), value: value.into(), legacy };
    assert_eq!(one_of("ENV a=b c=$d"), Command::Env(vec![pair("a", "b", false), pair("c", "$d", false)]));
    assert_eq!(one_of("ENV a  b c"), Command::Env(vec![pair("a", "b c", true)]));
    assert_eq!(
        one_of("LABEL \"a b\"=c"),
        Command::Label(Label { labels: vec![pair("\"a b\"", "c", false)], literal: false })
    );
    assert_eq!(
        one_of("expose 90 80/tcp 8000-8005"),
        Command::Expose(strings(&["80/tcp", "8000-8005", "90"]))
    );
    assert_eq!(one_of("VOLUME [\" /a \", \"b\"]"), Command::Volume(strings(&["/a", "b"])));
    assert_eq!(one_of("WORKDIR /a b"), Command::Workdir("/a b".into()));
    assert_eq!(one_of("USER a:b"), Command::User("a:b".into()));
    assert_eq!(one_of("STOPSIGNAL --x 9"), Command::StopSignal("9".into()));
    assert_eq!(one_of("SHELL [\"a\", \"-c\"]"), Command::Shell(strings(&["a", "-c"])));
    assert_eq!(one_of("MAINTAINER a b"), Command::Maintainer("a b".into()));
    let line = |args: &[&str], shell| CommandLine { args: strings(args), files: Vec::new(), shell };
    assert_eq!(one_of("CMD a  b"), Command::Cmd(line(&["a  b"], true)));
    assert_eq!(one_of("CMD [\"a\",\"b\"]"), Command::Cmd(line(&["a", "b"], false)));
    assert_eq!(one_of("ENTRYPOINT []"), Command::Entrypoint(line(&[], false)));
    assert_eq!(one_of("ENTRYPOINT"), Command::Entrypoint(line(&[], true)));
}

#[test]
fn reads_copies() {
    let Command::Copy(copy) = one_of(
        "COPY --from=a --chown=1:2 --chmod=u=rw --link --parents --exclude=x --exclude=y a b <<E \"<<-F\" /d\n\tq\nE",
    ) else {
        panic!("no copy");
    };
    assert_eq!((copy.from.as_str(), copy.chown.as_str(), copy.chmod.as_str()), ("a", "1:2", "u=rw"));
    assert!(copy.link && copy.parents);
    assert_eq!(copy.exclude, ["x", "y"]);
    assert_eq!((copy.sources.dest.as_str(), copy.sources.paths.len()), ("/d", 3));
    assert_eq!(
        copy.sources.contents,
        [SourceContent { path: "E".into(), data: b"\tq\n".to_vec(), expand: true }]
    );
    let Command::Add(add) =
        one_of("ADD --checksum=sha256:0 --keep-git-dir=false --unpack <<-'E' x /d\n\tq\n\tE")
    else {
        panic!("no add");
    };
    assert_eq!((add.checksum.as_str(), add.keep_git_dir, add.unpack), ("sha256:0", Some(false), Some(true)));
    assert_eq!(
        (add.sources.contents[0].data.as_slice(), add.sources.contents[0].expand),
        (&b"q\n"[..], false)
    );
}

#[test]
fn reads_runs() {
    let Command::Run(run) = one_of(
        "RUN --mount=type=cache,target=$D --network=host --security=insecure --device=a,required --mount=from=b,dst=/b a b",
    ) else {
        panic!("no run");
    };
    assert_eq!(run.line.args, ["a b"]);
    assert_eq!((run.network, run.security), (Network::Host, Security::Insecure));
    assert_eq!(run.devices, [Device { name: "a".into(), required: true }]);
    assert_eq!(run.flags_used, ["device", "mount", "network", "security"]);
    assert_eq!((run.mounts.len(), run.mounts[1].from.as_str()), (2, "b"));
    let Command::Run(run) = one_of("RUN <<E python\nprint()\nE\n") else { panic!("no run") };
    assert_eq!(run.line.args, ["<<E python"]);
    assert_eq!(run.line.files[0].data, b"print()\n");
}

#[test]
fn reads_health_checks() {
    let health = |text: &str| match one_of(&format!("HEALTHCHECK {text}")) {
        Command::Healthcheck(health) => health,
        other => panic!("{other:?}"),
    };
    assert_eq!(health("NONE").test, ["NONE"]);
    assert_eq!(health("cmd a b").test, ["CMD-SHELL", "a b"]);
    let full =
        health("--interval=1m --timeout=1.5s --start-period=0 --start-interval=2ms --retries=3 CMD [\"a\"]");
    assert_eq!(full.test, ["CMD", "a"]);
    assert_eq!((full.interval, full.timeout), (Duration::from_secs(60), Duration::from_millis(1500)));
    assert_eq!((full.start_period, full.start_interval), (Duration::ZERO, Duration::from_millis(2)));
    assert_eq!(full.retries, 3);
}

#[test]
fn refuses() {
    for (text, want) in [
        ("FORM x", "unknown instruction: FORM (did you mean FROM?)"),
        ("cpoy a b", "unknown instruction: cpoy (did you mean copy?)"),
        ("XYZZY", "unknown instruction: XYZZY"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b c", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1b",
            "invalid name for build stage: \"1b\", name can't start with a number or contain symbols",
        ),
        ("FROM --plaform=x a", "unknown flag: --plaform (did you mean platform?)"),
        ("FROM x\nENV", "ENV requires at least one argument"),
        ("FROM x\nENV =a", "ENV names can not be blank"),
        ("FROM x\nLABEL a=b =c", "LABEL names can not be blank"),
        ("FROM x\nARG", "ARG requires at least one argument"),
        ("ARG =a", "ARG names can not be blank"),
        (
            "FROM x\nCOPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM x\nADD --foo a",
            "ADD requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("FROM x\nCOPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
        ("FROM x\nCOPY --link=x a b", "expecting boolean value for flag --link, not: x"),
        ("FROM x\nWORKDIR", "WORKDIR requires exactly one argument"),
        ("FROM x\nUSER --a b", "unknown flag: --a"),
        ("FROM x\nEXPOSE", "EXPOSE requires at least one argument"),
        ("FROM x\nVOLUME", "VOLUME requires at least one argument"),
        ("FROM x\nVOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("FROM x\nSTOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("FROM x\nMAINTAINER", "MAINTAINER requires exactly one argument"),
        ("FROM x\nSHELL", "SHELL requires at least one argument"),
        ("FROM x\nSHELL bash", "SHELL requires the arguments to be in JSON form"),
        ("FROM x\nCMD --a", "unknown flag: --a"),
        ("FROM x\nRUN --network=x a", "invalid network mode \"x\""),
        ("FROM x\nRUN --security=x a", "security \"x\" is not valid"),
        ("FROM x\nRUN --network=none --network=host a", "duplicate flag specified: --network"),
        (
            "FROM x\nRUN --mount=from=$a a",
            "'from' doesn't support variable expansion, define alias stage instead",
        ),
        ("FROM x\nONBUILD", "ONBUILD requires at least one argument"),
        ("FROM x\nONBUILD onbuild RUN a", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("FROM x\nONBUILD from a", "FROM isn't allowed as an ONBUILD trigger"),
        ("FROM x\nONBUILD Maintainer a", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("FROM x\nHEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("FROM x\nHEALTHCHECK NONE a", "HEALTHCHECK NONE takes no arguments"),
        ("FROM x\nHEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("FROM x\nHEALTHCHECK foo a", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("FROM x\nHEALTHCHECK --interval=1us CMD a", "Interval \"interval\" cannot be less than 1ms"),
        ("FROM x\nHEALTHCHECK --timeout=-1s CMD a", "Interval \"timeout\" cannot be less than 1ms"),
        ("FROM x\nHEALTHCHECK --timeout=1 CMD a", "time: missing unit in duration \"1\""),
        ("FROM x\nHEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)"),
        ("FROM x\nHEALTHCHECK --retries=a CMD a", "strconv.ParseInt: parsing \"a\": invalid syntax"),
    ] {
        assert_eq!(fails(text), want, "{text}");
    }
    let error = file("\nFROM x\nRUN a\nCOPY \\\n a").unwrap_err();
    assert!(error.to_string().starts_with("dockerfile parse error on line 4: COPY requires"));
    assert_eq!(error.locations, [Lines::new(4, 5)]);
    let error = file("ARG a\nRUN a").unwrap_err();
    assert_eq!(error.to_string(), "no build stage in current context");
    assert_eq!(error.locations, [Lines::new(2, 2)]);
}

#[test]
fn keeps_triggers_for_later() {
    assert_eq!(one_of("ONBUILD  RUN a \\\n  b"), Command::Onbuild("RUN a   b".into()));
    let text = "COPY <<A <<-B /\nx\nA\n\ty\nB";
    let Command::Onbuild(kept) = one_of(&format!("onbuild {text}\n")) else { panic!("no trigger") };
    assert_eq!(kept, text);
    let at = Lines::new(7, 7);
    let trigger = parse_trigger(&kept, at).unwrap();
    assert_eq!((trigger.name.as_str(), trigger.lines), ("COPY", at));
    let text = |expression: &str| {
        let error = parse_trigger(expression, at).unwrap_err();
        assert_eq!(error.locations, [at], "{expression}");
        error.to_string()
    };
    assert_eq!(text("RUN a\nRUN b"), "onbuild trigger should be a single expression");
    assert_eq!(text("FROM a"), "*instructions.Stage is not a command type");
    assert_eq!(text(""), "file with no instructions");
    assert_eq!(text("RUM a"), "unknown instruction: RUM (did you mean RUN?)");
}

#[test]
fn expands() {
    let env = vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "b c".to_owned())];
    let expand = |text: &str| -> Result<Command, Error> {
        let mut command = one_of(text);
        let words = Lex::new('\\');
        command.expand(&mut |word| Ok::<_, Error>(words.expand(word, &env)?.text))?;
        let raw = Lex { ignore_quotes: true, ..Lex::new('\\') };
        command.expand_raw(&mut |word| Ok::<_, Error>(raw.expand(word, &env)?.text))?;
        Ok(command)
    };
    assert_eq!(expand("WORKDIR \"/$B\"").unwrap(), Command::Workdir("/b c".into()));
    assert_eq!(expand("VOLUME $A ${C:-d}").unwrap(), Command::Volume(strings(&["1", "d"])));
    assert_eq!(expand("CMD $A").unwrap(), one_of("CMD $A"));
    let Command::Copy(copy) =
        expand("COPY --from=$A --chown=$A:1 $B <<E <<'F' $A\n'$B' \\$A\nE\n$A\nF").unwrap()
    else {
        panic!("no copy");
    };
    assert_eq!((copy.from.as_str(), copy.chown.as_str(), copy.sources.dest.as_str()), ("$A", "1:1", "1"));
    assert_eq!(copy.sources.paths, ["b c"]);
    assert_eq!(copy.sources.contents[0].data, b"'b c' $A\n");
    assert_eq!(copy.sources.contents[1].data, b"$A\n");
    let Command::Run(run) = expand("RUN --mount=type=cache,target=/$A,id=${B} x").unwrap() else {
        panic!("no run");
    };
    assert_eq!((run.mounts[0].target.as_str(), run.mounts[0].id.as_str()), ("/1", "b c"));
    let text = |t: &str| expand(t).unwrap_err().to_string();
    assert_eq!(text("USER ${x:?gone}"), "failed to process \"${x:?gone}\": x: gone");
    assert_eq!(text("RUN --mount=type=${A} x"), "unsupported mount type \"1\"");
    let mut label = Command::Label(Label {
        labels: vec![KeyValue { key: "k".into(), value: "$A".into(), legacy: false }],
        literal: true,
    });
    let before = label.clone();
    label.expand(&mut |w| Ok::<_, Error>(Lex::new('\\').expand(w, &NoEnv)?.text)).unwrap();
    assert_eq!(label, before);
}

fn warnings(text: &str) -> Vec<String> {
    let linter = Linter::new(Config { experimental_all: true, ..Config::default() });
    let parsed = parser::parse(text.as_bytes()).unwrap();
    checks::empty_continuations(&parsed.warnings, &linter);
    let file = parse(&parsed.nodes, &linter).unwrap();
    checks::stage_names(&file.stages, &linter);
    checks::instruction_casing(&file.stages, &linter);
    linter.take().iter().map(Warning::short).collect()
}

#[test]
fn warns() {
    for (text, want) in [
        ("FROM a AS b", &[][..]),
        ("FROM a as b", &["FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"]),
        ("from a AS b", &["FromAsCasing: 'AS' and 'from' keywords' casing do not match (line 1)"]),
        ("FROM a AS B", &["StageNameCasing: Stage name 'B' should be lowercase (line 1)"]),
        (
            "# check=skip=StageNameCasing\nFROM a AS B",
            &["StageNameCasing: Stage name 'B' should be lowercase (line 2)"],
        ),
        ("FROM x\n# check=skip=MaintainerDeprecated\nMAINTAINER a", &[]),
        (
            "FROM x\nMAINTAINER a",
            &["MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"],
        ),
        ("FROM x\nRUN a \\\n\n b", &["NoEmptyContinuation: Empty continuation line (line 4)"]),
        (
            "FROM x\nrun a\nRun b\nRUN c",
            &[
                "ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) (line 2)",
                "ConsistentInstructionCasing: Command 'Run' should match the case of the command majority (uppercase) (line 3)",
            ],
        ),
        (
            "from x\nrun a\nUSER b",
            &[
                "ConsistentInstructionCasing: Command 'USER' should match the case of the command majority (lowercase) (line 3)",
            ],
        ),
        (
            "FROM x AS a\nFROM y AS a\nFROM z AS scratch",
            &[
                "DuplicateStageName: Duplicate stage name \"a\", stage names should be unique (line 2)",
                "ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\" (line 3)",
            ],
        ),
        (
            "# something else\nARG a b\n# nothing\nFROM x AS y",
            &[
                "InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>` (line 2)",
                "InvalidDefinitionDescription: Comment for FROM should follow the format: `# y <description>` (line 4)",
            ],
        ),
    ] {
        assert_eq!(warnings(text), want, "{text}");
    }
}
