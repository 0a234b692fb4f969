//! What the demo and the benchmarks share.
