//! What is printed: tables, templates, sizes and times, as Go programs print them.

pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod time;
