"""Fuzzers: random models, and torch's operators, through an inner loop."""
