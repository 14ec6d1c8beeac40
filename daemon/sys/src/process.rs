//! Processes: signals, capabilities, waiting.
