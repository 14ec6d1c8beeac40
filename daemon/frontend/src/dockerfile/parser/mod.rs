//! From bytes to instructions that are split into words.
//!
//! Lines are joined at continuations, comments and empty lines dropped, flags
//! separated, arguments split as the keyword wants it and heredocs attached.
//! What the words mean is for [`instructions`](super::instructions).

mod heredoc;
mod split;

use super::directives::{self, Name, Reader, without_bom};
use super::error::Error;
use super::text::{MAX_LINE, RawLines, lossy, trim_start};
use super::{Lines, shell};

pub use heredoc::{Heredoc, chomp, heredoc};

/// A parsed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The instructions, in order; at least one.
    pub nodes: Vec<Node>,
    /// The escape character, `\` or `` ` ``.
    pub escape: char,
    /// Oddities that are no errors yet.
    pub warnings: Vec<EmptyContinuation>,
}

/// An empty line within an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptyContinuation {
    /// The instruction, continuation lines joined.
    pub text: String,
    /// Its last line.
    pub lines: Lines,
}

/// An instruction, split into words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The first word.
    pub keyword: String,
    /// The words with `--` after it.
    pub flags: Vec<String>,
    /// The other words; how they are split depends on the keyword.
    pub words: Vec<String>,
    /// The words come from a JSON array.
    pub json: bool,
    /// The instruction after `ONBUILD`.
    pub trigger: Option<Box<Node>>,
    /// The files given inline.
    pub heredocs: Vec<Heredoc>,
    /// The instruction as written, continuation lines joined.
    pub original: String,
    /// Where it is, heredocs included.
    pub lines: Lines,
    /// The comments above it, without `#`, up to an empty one.
    pub comments: Vec<String>,
}

impl Node {
    /// The words; for `ONBUILD` the keyword and words of the trigger.
    pub fn args(&self) -> Vec<String> {
        let mut args = self.words.clone();
        let mut inner = self.trigger.as_deref();
        while let Some(node) = inner {
            args.push(node.keyword.clone());
            args.extend_from_slice(&node.words);
            inner = node.trigger.as_deref();
        }
        args
    }

    fn takes_heredocs(&self) -> bool {
        let node = match &self.trigger {
            Some(trigger) => trigger,
            None => self,
        };
        !node.json && ["add", "copy", "run"].iter().any(|k| node.keyword.eq_ignore_ascii_case(k))
    }
}

/// A file is not made of instructions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A directive that may come once.
    #[error(transparent)]
    Directive(#[from] directives::Repeated),
    /// `# escape=` of something else than `\` or `` ` ``.
    #[error("invalid escape token '{0}' does not match ` or \\")]
    EscapeToken(String),
    /// A heredoc whose closing word never comes.
    #[error("unterminated heredoc")]
    UnterminatedHeredoc,
    /// The word after `<<` cannot be read.
    #[error(transparent)]
    HeredocWord(#[from] shell::Error),
    /// The word after `<<` is one word or several, depending on its quotes.
    #[error("internal lexing of heredoc produced inconsistent results: {0}")]
    HeredocWords(String),
    /// Nothing but comments.
    #[error("file with no instructions")]
    NoInstructions,
    /// A line of more than 65535 bytes.
    #[error("dockerfile line greater than max allowed size of {MAX_LINE}")]
    LineTooLong,
    /// A JSON array with something else than strings.
    #[error("when using JSON array syntax, arrays must be comprised of strings only")]
    NotStrings,
    /// `ENV name` without a value.
    #[error("{0} must have two arguments")]
    TwoArguments(&'static str),
    /// A word that is no assignment after one that is.
    #[error("Syntax error - can't find = in {}. Must be of the form: name=value", base::gotext::quote(.0))]
    NotAssigned(String),
}

/// Splits a file into instructions.
///
/// # Errors
/// With the lines of the instruction that cannot be split.
pub fn parse(data: &[u8]) -> Result<Parsed, Error> {
    Parser {
        lines: RawLines::new(data),
        line: 0,
        directives: Reader::new("#"),
        escape: '\\',
        comments: Vec::new(),
        nodes: Vec::new(),
        warnings: Vec::new(),
    }
    .run()
}

struct Parser<'a> {
    lines: RawLines<'a>,
    /// How many lines were read.
    line: u32,
    directives: Reader,
    escape: char,
    comments: Vec<String>,
    nodes: Vec<Node>,
    warnings: Vec<EmptyContinuation>,
}

impl<'a> Parser<'a> {
    fn run(mut self) -> Result<Parsed, Error> {
        while let Some(raw) = self.lines.next() {
            let raw = if self.line == 0 { without_bom(raw) } else { raw };
            if is_comment(raw) {
                self.comment(raw);
            }
            let line = trim_start(without_line_end(raw));
            if self.directive(line)? {
                // It was taken for a comment, too.
                self.comments.pop();
            }
            self.line += 1;
            let line = if is_comment(line) { &[] } else { line };
            let (line, complete) = self.without_continuation(line);
            if !(complete && line.is_empty()) {
                self.instruction(line, complete)?;
            }
        }
        let here = Lines::new(self.line, self.line);
        if self.nodes.is_empty() {
            return Err(Error::from(Problem::NoInstructions).at(here));
        }
        if self.lines.too_long {
            return Err(Error::from(Problem::LineTooLong).at(here));
        }
        Ok(Parsed { nodes: self.nodes, escape: self.escape, warnings: self.warnings })
    }

    /// Notes a comment. What is dropped is the line's first byte, which is `#`
    /// only when nothing stands before it.
    fn comment(&mut self, raw: &[u8]) {
        let text = lossy(raw.get(1..).unwrap_or_default());
        match text.trim() {
            "" => self.comments.clear(),
            text => self.comments.push(text.to_owned()),
        }
    }

    fn directive(&mut self, line: &[u8]) -> Result<bool, Error> {
        let here = Lines::new(self.line, self.line);
        let found = self.directives.line(line).map_err(|e| Error::from(Problem::from(e)).at(here))?;
        let Some(found) = found else { return Ok(false) };
        if found.name == Name::Escape {
            self.escape = match found.value.as_str() {
                "\\" => '\\',
                "`" => '`',
                _ => return Err(Error::from(Problem::EscapeToken(found.value)).at(here)),
            };
        }
        Ok(true)
    }

    /// Reads one instruction, of which `line` is the first line.
    fn instruction(&mut self, line: &'a [u8], mut complete: bool) -> Result<(), Error> {
        let first = self.line;
        let mut text = line.to_vec();
        let mut empty_line = false;
        while !complete {
            let Some(raw) = self.lines.next() else { break };
            let line = without_line_end(raw);
            self.directive(line)?;
            self.line += 1;
            if is_comment(line) {
                continue;
            }
            if trim_start(line).is_empty() {
                empty_line = true;
                continue;
            }
            let (line, last) = self.without_continuation(line);
            text.extend_from_slice(line);
            complete = last;
        }
        let text = lossy(&text);
        if empty_line {
            let lines = Lines::new(self.line, self.line);
            self.warnings.push(EmptyContinuation { text: text.clone().into_owned(), lines });
        }
        let at = |line: u32| move |problem: Problem| Error::from(problem).at(Lines::new(first, line));
        let mut node = split::node(&text, self.escape).map_err(at(self.line))?;
        node.comments = std::mem::take(&mut self.comments);
        if node.takes_heredocs() && text.contains("<<") {
            for mut doc in heredoc::in_line(&text).map_err(at(self.line))? {
                self.heredoc(&mut doc).map_err(at(self.line))?;
                node.heredocs.push(doc);
            }
        }
        node.lines = Lines::new(first, self.line);
        self.nodes.push(node);
        Ok(())
    }

    /// Reads the lines of a heredoc.
    fn heredoc(&mut self, doc: &mut Heredoc) -> Result<(), Problem> {
        for raw in self.lines.by_ref() {
            self.line += 1;
            let mut line = without_line_end(raw);
            if doc.chomp {
                while let [b'\t', rest @ ..] = line {
                    line = rest;
                }
            }
            if line == doc.name.as_bytes() {
                return Ok(());
            }
            doc.content.extend_from_slice(raw);
        }
        Err(Problem::UnterminatedHeredoc)
    }

    /// The line without the escape character that continues it, and whether
    /// there was none. An escape character before it takes away its meaning.
    fn without_continuation<'l>(&self, line: &'l [u8]) -> (&'l [u8], bool) {
        let mut text = line;
        while let [rest @ .., b' ' | b'\t'] = text {
            text = rest;
        }
        match text {
            [rest @ .., last] if char::from(*last) == self.escape => match rest {
                [.., before] if char::from(*before) == self.escape => (line, true),
                _ => (rest, false),
            },
            _ => (line, true),
        }
    }
}

fn without_line_end(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r' | b'\n'] = line {
        line = rest;
    }
    line
}

fn is_comment(line: &[u8]) -> bool {
    trim_start(line).starts_with(b"#")
}

#[cfg(test)]
mod tests;
