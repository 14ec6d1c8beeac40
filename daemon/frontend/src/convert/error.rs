//! An error on its way out of the converter, collecting places.

use base::{Failure, Kind};

use crate::dockerfile::{self, Lines};

/// Something went wrong, at places of the Dockerfile if they are known.
#[derive(Debug, Clone)]
pub struct Failed {
    /// What.
    pub failure: Failure,
    /// Where, innermost first.
    pub places: Vec<Lines>,
}

pub(crate) type Result<T> = std::result::Result<T, Failed>;

impl Failed {
    /// Something that is wrong with the Dockerfile. Clients of the reference
    /// see no kind for it.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Failure::new(Kind::Unknown, text).into()
    }

    /// Adds a place.
    pub(crate) fn at(mut self, lines: Lines) -> Self {
        self.places.push(lines);
        self
    }

    /// Replaces the places.
    pub(crate) fn only_at(mut self, lines: Lines) -> Self {
        self.places = vec![lines];
        self
    }

    /// Says what was being done.
    pub(crate) fn context(mut self, text: impl Into<String>) -> Self {
        self.failure = self.failure.context(text);
        self
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, places: Vec::new() }
    }
}

impl From<dockerfile::Error> for Failed {
    fn from(error: dockerfile::Error) -> Self {
        let places = error.locations.clone();
        Self { failure: error.into(), places }
    }
}

impl From<dockerfile::shell::Error> for Failed {
    fn from(error: dockerfile::shell::Error) -> Self {
        dockerfile::Error::from(error).into()
    }
}

impl From<dockerfile::instructions::Problem> for Failed {
    fn from(problem: dockerfile::instructions::Problem) -> Self {
        dockerfile::Error::from(problem).into()
    }
}

impl From<llb::Error> for Failed {
    fn from(error: llb::Error) -> Self {
        Failure::from(error).into()
    }
}
