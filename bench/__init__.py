"""Benchmarks: load tools in C (`load/`), scenarios in Python, one runner. The method is in README.md."""
