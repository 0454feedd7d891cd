"""How long a person waits for the demo and for the report of a long run: python -m benchmarks.waiting

The demo answers with the models that come with the package, in this process, to drawings and points that are new each
time. A report of 100,000 iterations is opened in Chromium, if Playwright and Chromium are installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from innerloop import cli
from innerloop.common.disk import write_text
from innerloop.demo import answering
from innerloop.demo.serving import listen, server
from innerloop.report import read_run, write_report
from innerloop.train.record import environment
from innerloop.use import Pretrained

RESULT = Path(__file__).parent / "waiting.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ITERATIONS = 100_000


@contextmanager
def served() -> Iterator[str]:
    """The address of a demo that runs in a thread."""
    with listen() as listening:
        demo = server(*answering([Pretrained.load("strokes"), Pretrained.load("sinusoid")]))
        thread = threading.Thread(target=demo.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        demo.should_exit = True
        thread.join()


def drawing(rng: random.Random) -> list[list[list[float]]]:
    """Two wavy strokes of 20 points."""

    def stroke() -> list[list[float]]:
        x, y, bend = rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.8), rng.uniform(-0.15, 0.15)
        return [[x + i / 40, y + bend * math.sin(i / 3)] for i in range(20)]

    return [stroke(), stroke()]


def answers(repeats: int) -> dict[str, list[float]]:
    """Milliseconds from a question to its answer, in the order of the questions."""
    rng, taken = random.Random(0), dict[str, list[float]]()
    with served() as address:
        with urllib.request.urlopen(address + "api/about") as response:
            about = json.load(response)
        for _ in range(repeats):
            questions: dict[str, dict[str, Any]] = {
                "characters": {"characters": [[drawing(rng)] for _ in range(5)], "drawing": drawing(rng)},
                "function": {"points": [[rng.uniform(-5, 5), rng.uniform(-5, 5)] for _ in range(10)]},
            }
            for kind, question in questions.items():
                steps = about["functions" if kind == "function" else kind]["steps"]
                body = json.dumps({**question, "steps": steps}).encode()
                asked = urllib.request.Request(address + f"api/{kind}", body, {"Content-Type": "application/json"})
                start = time.perf_counter()
                with urllib.request.urlopen(asked) as response:
                    response.read()
                taken.setdefault(kind, []).append(round(1e3 * (time.perf_counter() - start), 1))
    return taken


def report(folder: Path) -> Path:
    """The report of a short run whose record is repeated: a validation after each 100 iterations."""
    short = ["train.iterations=6", "train.validate_every=2", "train.val_tasks=6", "train.tasks=4", "train.log_every=1",
             "evaluate.num_tasks=6", "model.width=4"]  # fmt: skip
    words = ["train", "strokes-5w1s-maml", "--run", str(folder / "run"), "--quiet"]
    with redirect_stdout(StringIO()):
        if code := cli.run([*words, *(word for value in short for word in ("--set", value))]):
            raise RuntimeError(f"the training ended with {code}")
    lines = read_run(folder / "run").lines
    record = list(lines["run"])
    for iteration in range(1, ITERATIONS + 1):
        kinds = ["train"] + ["tasks", "rates", "validation"] * (iteration % 100 == 0)
        record += [{**lines[kind][iteration % 3], "iteration": iteration} for kind in kinds if lines.get(kind)]
    write_text(folder / "run" / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in record))
    results = json.loads((folder / "run" / "results.json").read_text())
    write_text(folder / "run" / "results.json", json.dumps({**results, "iterations": ITERATIONS}))
    write_report([folder / "run"], folder / "report.html", models=False)
    return folder / "report.html"


def openings(repeats: int) -> list[float] | None:
    """Milliseconds until the report has been loaded, or `None` without a browser."""
    found = os.environ.get("INNERLOOP_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if found is None:
        return None
    loaded = "performance.timing.loadEventEnd - performance.timing.navigationStart"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = report(Path(folder)).as_uri()
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        taken = []
        for _ in range(repeats):
            tab = browser.new_page()
            tab.goto(page)
            taken.append(float(tab.evaluate(loaded)))
            tab.close()
        browser.close()
    return taken


def main(repeats: int) -> None:
    """Measure, print and write."""
    found: dict[str, Any] = {"answers_ms": answers(repeats), "report_iterations": ITERATIONS}
    for kind, times in found["answers_ms"].items():
        late = statistics.quantiles(times, n=20)[-1]
        print(f"{kind}: first {times[0]:.0f} ms, median {statistics.median(times):.0f}, 95th percentile {late:.0f}")
    if found_report := openings(max(3, repeats // 10)):
        found["report_ms"] = found_report
        print(f"report of {ITERATIONS:,} iterations: median {statistics.median(found_report):.0f} ms")
    write_text(RESULT, json.dumps({**found, "environment": environment(torch.device("cpu"))}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    main(parser.parse_args().repeats)
