//! Graphs and keys against those of the reference.

mod golden;
mod hostile;
