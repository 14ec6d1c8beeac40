//! From a Dockerfile to LLB, and what a frontend may ask.
