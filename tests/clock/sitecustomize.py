"""Imported by every Python process whose path it is on: a clock that runs faster or slower, as another machine seems.

`nox -s clock` runs the tests by it.
"""

import os
import time

if _times := os.environ.get("INNERLOOP_TEST_CLOCK"):
    _true, _factor = time.perf_counter, float(_times)
    time.perf_counter = lambda: _factor * _true()
