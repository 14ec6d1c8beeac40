//! The tunnel to a client and what is asked through it.
