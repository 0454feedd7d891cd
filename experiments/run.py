"""Run a family of recipes over its seeds: python experiments/run.py FAMILY [--data DIR] [--jobs N] [--seeds N ...]

What has a result file is left alone, an interrupted run is gone on with, and everything else is trained in
``runs/RECIPE-seedN``; each result goes to ``results/FAMILY/RECIPE-seedN.json``, and the tables and figures are made
anew after every run. A result of another version of its recipe is made again; a run of another version is in the way,
and never written over. ``families.toml`` has the families; a table of one is put between ``<!-- family NAME -->`` and
``<!-- /family -->`` in the README's.

``--jobs`` runs several side by side, each on its share of the cores and with its progress in ``runs/RECIPE-seedN.log``:
two processes of one core each get more done than one of two after the other, whose times are then those of one core.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import collect
import figures
import table

from innerloop.recipe import config

HERE = Path(__file__).parent


class Job(NamedTuple):
    """One recipe under one seed."""

    family: str
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return f"{table.stem(self.recipe)}-seed{self.seed}"

    @property
    def result(self) -> Path:
        return collect.RESULTS / self.family / f"{self.name}.json"

    def commands(self, runs: Path, options: Sequence[str]) -> list[list[str]]:
        """Training, or going on with it, and keeping the result."""
        run = str(runs / self.name)
        train = ["-m", "innerloop", "train", self.recipe, "--seed", str(self.seed), "--run", run, "--resume"]
        keep = [str(HERE / "collect.py"), run, f"{self.family}/{self.name}"]
        return [[*train, *options], [*keep, *options]]


def wanted(family: str, seeds: Sequence[int] | None) -> list[Job]:
    """The first seed of every recipe first."""
    each = {recipe: seeds or own for recipe, own in table.families()[family]["seeds"].items()}
    most = max(map(len, each.values()), default=0)
    return [Job(family, r, own[i]) for i in range(most) for r, own in each.items() if i < len(own)]


def finished(job: Job) -> bool:
    """Whether there is a result of the recipe as it is now."""
    if not job.result.is_file():
        return False
    if changed := differences(job, config.resolve(table.read(job.result)["config"])):
        print(f"{job.name}: its result is of another {', '.join(changed)}", flush=True)
    return not changed


def differences(job: Job, before: config.Config) -> list[str]:
    """From the recipe as it is now."""
    return config.differences(before, config.load_recipe(job.recipe, (), job.seed))


def in_the_way(job: Job, runs: Path) -> str:
    """What is wrong with a run directory that cannot be gone on with, if anything."""
    saved = runs / job.name / "config.toml"
    changed = differences(job, config.load_recipe(saved)) if saved.is_file() else []
    return f"{saved.parent} is of another {', '.join(changed)}: move it away, or give other --runs" if changed else ""


def do(job: Job, runs: Path, options: Sequence[str], jobs: int) -> int:
    """Train and keep the result; the exit code of the first command that failed, else 0."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if jobs > 1 else None
    with ExitStack() as stack:
        log = stack.enter_context((runs / f"{job.name}.log").open("a")) if jobs > 1 else None
        for words in job.commands(runs, options):
            print(f"{job.name}: python {shlex.join(words)}", flush=True)
            code = subprocess.run([sys.executable, *words], env=environment, stdout=log, stderr=log).returncode
            if code:
                return code
    return 0


def run(family: str, seeds: Sequence[int] | None, runs: Path, options: Sequence[str], jobs: int) -> int:
    """The exit code of the first job that failed, else 0; the others are still run."""
    try:
        table.documents()
    except ValueError as problem:  # is better known now than after the first run
        print(problem, file=sys.stderr)
        return 1
    todo = [job for job in wanted(family, seeds) if not finished(job)]
    if problems := [problem for job in todo if (problem := in_the_way(job, runs))]:
        print("\n".join(problems), file=sys.stderr)
        return 1
    runs.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(do, job, runs, options, jobs): job for job in todo}
        try:
            for future in as_completed(begun):
                if code := future.result():
                    print(f"{begun[future].name}: failed with exit code {code}", file=sys.stderr, flush=True)
                    failed = failed or code
                    continue
                if "page" not in table.families()[family]:  # which has figures of its own
                    figures.draw(family)
                table.write()
        finally:  # after Ctrl-C, which the commands see too, nothing more is begun
            pool.shutdown(wait=True, cancel_futures=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(table.families()))
    parser.add_argument("--seeds", type=int, nargs="+", help="those of families.toml if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories are")
    parser.add_argument("--jobs", type=int, default=1, help="how many side by side")
    parser.add_argument("--data", help="where the data are; else $INNERLOOP_DATA and the cache")
    parser.add_argument("--device", help="cpu, cuda, ...")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs is at least 1, got {given.jobs}")
    options = [word for key in ("data", "device") if getattr(given, key) for word in (f"--{key}", getattr(given, key))]
    try:
        sys.exit(run(given.family, given.seeds, given.runs, options, given.jobs))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")
