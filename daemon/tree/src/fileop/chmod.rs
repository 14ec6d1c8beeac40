//! Modes as `chmod` reads them: `644`, `u+x`, `go=u-w`, `+X`.

use super::Error;

const SET_IDS: u32 = 0o6000;
const STICKY: u32 = 0o1000;
/// What `a` stands for: the sticky bit is only touched by `t`.
const ALL: u32 = SET_IDS | 0o777;
const EXEC: u32 = 0o111;
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;

/// A change of permission bits, read once and applied to many files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeSet {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Set(u32),
    Clear(u32),
    /// Set these if it is a directory or somebody could execute it before.
    SetIfExecutable(u32),
    /// Takes the three bits at `from` and works them into those of `to`.
    Copy {
        from: u32,
        to: u32,
        how: Operator,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Plus,
    Minus,
    Equals,
}

impl ModeSet {
    /// Reads an octal number or symbolic clauses with a umask of zero.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text.as_bytes()).ok_or_else(|| Error::Mode { text: text.to_owned() })
    }

    fn read(text: &[u8]) -> Option<Self> {
        let mut steps = Vec::new();
        if text.first()?.is_ascii_digit() {
            let bits = u32::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()?;
            if bits & !0o7777 != 0 {
                return None;
            }
            steps.extend([Step::Clear(0o7777), Step::Set(bits)]);
            return Some(Self { steps });
        }
        for clause in text.split(|b| *b == b',') {
            let people = clause.iter().take_while(|b| b"augo".contains(b)).count();
            let (people, mut rest) = clause.split_at(people);
            let mut who = people.iter().fold(0, |who, b| {
                who | match b {
                    b'u' => 0o4700,
                    b'g' => 0o2070,
                    b'o' => 0o0007,
                    _ => ALL,
                }
            });
            if rest.is_empty() {
                return None;
            }
            let mut assigned = false;
            while let Some((operator, after)) = rest.split_first() {
                let operator = match operator {
                    b'+' => Operator::Plus,
                    b'-' => Operator::Minus,
                    b'=' => {
                        assigned = false;
                        Operator::Equals
                    }
                    _ => return None,
                };
                who &= !STICKY;
                rest = actions(after, operator, &mut who, &mut assigned, &mut steps);
            }
        }
        Some(Self { steps })
    }

    /// What becomes of `mode`, an `st_mode`; its type stays.
    pub fn apply(&self, mode: u32) -> u32 {
        let executable = mode & EXEC != 0 || mode & S_IFMT == S_IFDIR;
        let mut bits = mode & 0o7777;
        for step in &self.steps {
            match *step {
                Step::Set(these) => bits |= these,
                Step::Clear(these) => bits &= !these,
                Step::SetIfExecutable(these) if executable => bits |= these,
                Step::SetIfExecutable(_) => {}
                Step::Copy { from, to, how } => {
                    let value = (((bits >> from) & 0o7) * 0o111) & to;
                    match how {
                        Operator::Plus => bits |= value,
                        Operator::Minus => bits &= !value,
                        Operator::Equals => bits = bits & !to | value,
                    }
                }
            }
        }
        mode & !0o7777 | bits
    }
}

/// Reads what follows one operator; returns what is left of the clause.
fn actions<'a>(
    mut rest: &'a [u8],
    operator: Operator,
    who: &mut u32,
    assigned: &mut bool,
    steps: &mut Vec<Step>,
) -> &'a [u8] {
    let (mut bits, mut if_executable) = (0, 0);
    // Set-id and sticky bits are not for those who are only "others".
    let special = |who: u32| who == 0 || who & !0o007 != 0;
    while let Some((action, after)) = rest.split_first() {
        match action {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= EXEC,
            b'X' if operator == Operator::Minus => bits |= EXEC,
            b'X' => if_executable = EXEC,
            b's' if special(*who) => bits |= SET_IDS,
            b't' if special(*who) => {
                *who |= STICKY;
                bits |= STICKY;
            }
            b's' | b't' => {}
            b'u' | b'g' | b'o' => {
                flush(operator, *who, std::mem::take(&mut bits), false, steps);
                if operator == Operator::Equals {
                    *assigned = true;
                }
                if if_executable != 0 {
                    steps.push(Step::SetIfExecutable(masked(*who, std::mem::take(&mut if_executable))));
                }
                let from = match action {
                    b'u' => 6,
                    b'g' => 3,
                    _ => 0,
                };
                let to = if *who == 0 {
                    0o777
                } else {
                    [0o700, 0o070, 0o007].into_iter().filter(|class| *who & class & 0o444 != 0).sum()
                };
                steps.push(Step::Copy { from, to, how: operator });
            }
            _ => break,
        }
        rest = after;
    }
    let assign = operator == Operator::Equals && !*assigned;
    *assigned |= assign;
    flush(operator, *who, bits, assign, steps);
    if if_executable != 0 {
        steps.push(Step::SetIfExecutable(masked(*who, if_executable)));
    }
    rest
}

fn flush(operator: Operator, who: u32, bits: u32, even_empty: bool, steps: &mut Vec<Step>) {
    if bits == 0 && !even_empty {
        return;
    }
    let bits = masked(who, bits);
    match operator {
        Operator::Plus => steps.push(Step::Set(bits)),
        Operator::Minus => steps.push(Step::Clear(bits)),
        Operator::Equals => {
            steps.extend([Step::Clear(if who == 0 { ALL } else { who }), Step::Set(bits)]);
        }
    }
}

/// Nobody named means everybody, the umask being zero.
fn masked(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { bits & who }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_modes_as_chmod_does() {
        for (text, after) in GOLDEN {
            let set = ModeSet::parse(text).unwrap();
            for (before, after) in BEFORE.into_iter().zip(after) {
                assert_eq!(format!("{:o}", set.apply(before)), format!("{after:o}"), "{text} on {before:o}");
            }
        }
    }

    #[test]
    fn refuses_what_is_no_mode() {
        for bad in ["", "u", "u+x,", "8", "77777", "q+x", "u*x", "+x,,o=", "0x1"] {
            assert!(ModeSet::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// On these modes, as the reference's own parser has it.
    const BEFORE: [u32; 5] = [0o100640, 0o100755, 0o107777, 0o40700, 0o100000];

    const GOLDEN: &[(&str, [u32; 5])] = &[
        ("644", [0o100644, 0o100644, 0o100644, 0o40644, 0o100644]),
        ("4755", [0o104755, 0o104755, 0o104755, 0o44755, 0o104755]),
        ("u+x", [0o100740, 0o100755, 0o107777, 0o40700, 0o100100]),
        ("go-w", [0o100640, 0o100755, 0o107755, 0o40700, 0o100000]),
        ("=rw,+X", [0o100666, 0o100777, 0o101777, 0o40777, 0o100666]),
        ("+X", [0o100640, 0o100755, 0o107777, 0o40711, 0o100000]),
        ("u=rwx,go=rx", [0o100755, 0o100755, 0o101755, 0o40755, 0o100755]),
        ("u=rwx,go=u-w", [0o100755, 0o100755, 0o103755, 0o40755, 0o100755]),
        ("go=", [0o100600, 0o100700, 0o105700, 0o40700, 0o100000]),
        ("go=u-w", [0o100644, 0o100755, 0o107755, 0o40755, 0o100000]),
        ("+t", [0o101640, 0o101755, 0o107777, 0o41700, 0o101000]),
        ("o+t", [0o100640, 0o100755, 0o107777, 0o40700, 0o100000]),
        ("a+s", [0o106640, 0o106755, 0o107777, 0o46700, 0o106000]),
        ("o+s", [0o100640, 0o100755, 0o107777, 0o40700, 0o100000]),
        ("u+s,g+s", [0o106640, 0o106755, 0o107777, 0o46700, 0o106000]),
        ("g=u", [0o100660, 0o100775, 0o107777, 0o40770, 0o100000]),
        ("a=", [0o100000, 0o100000, 0o101000, 0o40000, 0o100000]),
        ("u=g+w", [0o100640, 0o100755, 0o107777, 0o40200, 0o100200]),
        ("+x-w", [0o100551, 0o100555, 0o107555, 0o40511, 0o100111]),
        ("o=u-x", [0o100646, 0o100756, 0o107776, 0o40706, 0o100000]),
        ("=", [0o100000, 0o100000, 0o101000, 0o40000, 0o100000]),
        ("ug=rw,o=", [0o100660, 0o100660, 0o101660, 0o40660, 0o100660]),
        ("u-s", [0o100640, 0o100755, 0o103777, 0o40700, 0o100000]),
        ("u+rX", [0o100640, 0o100755, 0o107777, 0o40700, 0o100400]),
        ("a-X", [0o100640, 0o100644, 0o107666, 0o40600, 0o100000]),
        ("-X", [0o100640, 0o100644, 0o107666, 0o40600, 0o100000]),
        ("go+u", [0o100666, 0o100777, 0o107777, 0o40777, 0o100000]),
        ("go-u", [0o100600, 0o100700, 0o107700, 0o40700, 0o100000]),
        ("u=rX,g=X", [0o100400, 0o100515, 0o101517, 0o40510, 0o100400]),
        ("+rw=x", [0o100111, 0o100111, 0o101111, 0o40111, 0o100111]),
        ("0", [0o100000, 0o100000, 0o100000, 0o40000, 0o100000]),
        ("1777", [0o101777, 0o101777, 0o101777, 0o41777, 0o101777]),
        ("=t", [0o101640, 0o101755, 0o107777, 0o41700, 0o101000]),
        ("u=s", [0o104040, 0o104055, 0o107077, 0o44000, 0o104000]),
    ];
}
