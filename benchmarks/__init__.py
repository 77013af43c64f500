"""Benchmarks: `pytest benchmarks` checks that they run, `pytest benchmarks --benchmark` (`make bench`) measures."""
