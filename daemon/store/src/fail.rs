//! Places where tests make the store fail, to see that nothing half made stays.
//!
//! Without the feature `testing` they are nothing.

#[cfg(feature = "testing")]
use std::{collections::HashMap, sync::Arc};

use crate::Result;

/// What happens at a point.
#[cfg(feature = "testing")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The operation fails.
    Error,
    /// The process is gone, as if killed.
    Abort,
}

/// The points of one store. Clones are the same.
#[derive(Clone, Default)]
pub struct Points {
    #[cfg(feature = "testing")]
    armed: Arc<parking_lot::Mutex<HashMap<&'static str, Action>>>,
}

impl Points {
    /// Makes `point` do `action` each time it is passed.
    #[cfg(feature = "testing")]
    pub fn arm(&self, point: &'static str, action: Action) {
        self.armed.lock().insert(point, action);
    }

    /// Nothing fails any more.
    #[cfg(feature = "testing")]
    pub fn disarm(&self) {
        self.armed.lock().clear();
    }

    /// Passes `point`.
    ///
    /// # Errors
    /// When it is armed.
    #[cfg(feature = "testing")]
    pub fn pass(&self, point: &'static str) -> Result<()> {
        match self.armed.lock().get(point) {
            Some(Action::Error) => Err(crate::Error::FailPoint(point)),
            Some(Action::Abort) => std::process::abort(),
            None => Ok(()),
        }
    }

    /// Passes `point`.
    ///
    /// # Errors
    /// None in this build.
    #[cfg(not(feature = "testing"))]
    #[allow(clippy::unused_self)]
    pub fn pass(&self, _point: &'static str) -> Result<()> {
        Ok(())
    }
}
