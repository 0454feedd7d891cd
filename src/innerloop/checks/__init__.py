"""Checks that a learner runs on its first task."""
