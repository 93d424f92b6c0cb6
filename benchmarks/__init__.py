"""Benchmarks: one command for each set of measurements that the documentation states."""
