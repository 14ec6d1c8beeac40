//! The engine: decides what must run, and shares what several builds need.
