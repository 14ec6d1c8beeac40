//! Black-box tests with real clients and services, and the benchmark.
