//! Colours of finished lines on a terminal.

/// How a line is coloured, as the parameters of an ANSI sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Colors {
    pub(super) run: String,
    pub(super) cancel: String,
    pub(super) error: String,
}

/// Which line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Run,
    Cancel,
    Error,
}

impl Colors {
    /// The colours `BUILDKIT_COLORS` asks for, such as `run=cyan:error=200,0,0`;
    /// none when `NO_COLOR` is set.
    pub(super) fn from_env() -> Self {
        let set = |name| std::env::var(name).unwrap_or_default();
        Self::read(&set("NO_COLOR"), &set("BUILDKIT_COLORS"))
    }

    fn read(none: &str, wishes: &str) -> Self {
        if !none.is_empty() {
            return Self { run: String::new(), cancel: String::new(), error: String::new() };
        }
        let mut colors = Self { run: "34".into(), cancel: "33".into(), error: "31".into() };
        for wish in wishes.split(':') {
            let Some((key, value)) = wish.split_once('=') else { continue };
            let Some(color) = color(&value.to_ascii_lowercase()) else {
                tracing::warn!("unknown colour in BUILDKIT_COLORS: {wish}");
                continue;
            };
            match key.to_ascii_lowercase().as_str() {
                "run" => colors.run = color,
                "cancel" => colors.cancel = color,
                "error" => colors.error = color,
                "warning" => {}
                _ => tracing::warn!("unknown key in BUILDKIT_COLORS: {key}"),
            }
        }
        colors
    }

    /// `line` in the colour of `role`.
    pub(super) fn paint(&self, role: Role, line: &str) -> String {
        let color = match role {
            Role::Run => &self.run,
            Role::Cancel => &self.cancel,
            Role::Error => &self.error,
        };
        if color.is_empty() { line.to_owned() } else { format!("\x1b[{color}m{line}\x1b[0m") }
    }
}

fn color(text: &str) -> Option<String> {
    const NAMES: [&str; 8] = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
    if text == "default" {
        return Some("39".into());
    }
    let (base, name) = text.strip_prefix("light-").map_or((30, text), |name| (90, name));
    if let Some(at) = NAMES.iter().position(|n| *n == name) {
        return Some((base + at).to_string());
    }
    let parts: Vec<u8> = text.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    match parts.as_slice() {
        [r, g, b] => Some(format!("38;2;{r};{g};{b}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_granted() {
        let colors = Colors::read("", "run=light-cyan:error=1,2,3:nonsense:cancel=pink");
        assert_eq!(
            (colors.run.as_str(), colors.error.as_str(), colors.cancel.as_str()),
            ("96", "38;2;1;2;3", "33")
        );
        assert_eq!(colors.paint(Role::Run, "x"), "\x1b[96mx\x1b[0m");
        assert_eq!(Colors::read("1", "run=red").paint(Role::Run, "x"), "x");
    }
}
