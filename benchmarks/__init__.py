"""innerloop's speed and memory beside those of other libraries: `python -m benchmarks.run --help`."""
