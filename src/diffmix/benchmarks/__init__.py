"""Benchmarks: operators and training steps against named peers, each side in a process of its own."""
