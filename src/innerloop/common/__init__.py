"""What every room may use: files, streams, interrupts, errors and the ranges of arguments."""
