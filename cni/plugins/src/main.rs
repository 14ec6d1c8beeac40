//! `buildkit-cni`: the bundled CNI plugins in one program. Called by a plugin's name, or
//! with that name as its first argument.

use std::process::ExitCode;

use cni_plugins::program;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let Some(name) = program::plugin_name(&args) else {
        eprintln!("usage: buildkit-cni PLUGIN, or a link to it with the name of a plugin");
        return ExitCode::from(2);
    };
    let answer = program::run(&name, |key| std::env::var(key).ok(), std::io::stdin());
    if !answer.text.is_empty() {
        println!("{}", answer.text);
    }
    if answer.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
