//! CNI: networks for build steps.

pub mod dns;
