//! `buildkit-cni`: the bundled CNI plugins in one program. Called by a plugin's name, or
//! with that name as its first argument. `--list` tells the names, for who makes links.

use std::io::Write as _;
use std::process::ExitCode;

use cni_plugins::{Plugins, names, program};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let Some(name) = program::plugin_name(&args) else {
        eprintln!("usage: buildkit-cni PLUGIN | --list, or a link to it with the name of a plugin");
        return ExitCode::from(2);
    };
    if name == "--list" {
        names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let plugins = Plugins::new();
    let answer = program::run(&plugins, &name, |key| std::env::var(key).ok(), std::io::stdin());
    let mut out = std::io::stdout();
    let said = if answer.text.is_empty() { Ok(()) } else { writeln!(out, "{}", answer.text) };
    let done = answer.success && said.and_then(|()| out.flush()).is_ok();
    // The kernel has whoever closes the socket by which rules were removed wait for a fortieth
    // of a second.
    sys::process::exit_without_closing(i32::from(!done))
}
