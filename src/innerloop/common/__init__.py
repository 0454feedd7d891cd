"""Helpers that every package may use: files, streams, interrupts, errors and ranges of arguments."""
