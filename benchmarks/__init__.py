"""Measurements that are run by hand and whose results are committed; see docs/benchmarks.md."""
