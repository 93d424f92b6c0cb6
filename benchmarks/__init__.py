"""Benchmarks: one command for each set of measurements that the README and the documentation state."""
