"""Make the tables of the README and of this folder from the result files: python experiments/table.py [--write]

Without ``--write``, exits with the number of stale documents.
"""

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from innerloop import config

HERE = Path(__file__).parent
HEADER = ["experiment", "result on unseen tasks", "steps", "before", "after 1", "protocol", "training", "command"]
FAMILY = ["recipe", "seeds", "transductive", "inductive", "ensemble", "reaches", "minutes a run"]
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
FAMILY_MARKS = re.compile(r"(<!-- family (\S+) -->\n).*?(<!-- /family -->)", re.DOTALL)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a 95 % interval of the mean of so many values."""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def results() -> dict[str, dict[str, Any]]:
    return {path.stem: read(path) for path in sorted((HERE / "results").glob("*.json"))}


def families() -> dict[str, Any]:
    return config.parse((HERE / "families.toml").read_text())


def members(family: str) -> dict[str, list[dict[str, Any]]]:
    """The results of a family that there are, by recipe, each in the order of seeds."""
    found = {}
    for recipe in families()[family]["seeds"]:
        paths = (HERE / "results" / family).glob(f"{recipe}-seed*.json")
        if results := sorted(map(read, paths), key=lambda result: result["seed"]):
            found[recipe] = results
    return found


def rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    """One row an evaluation: the same weights, judged transductively and inductively."""
    found = []
    for test in result["tests"]:
        digits, unit = (2, " %") if test["metric"] == "accuracy" else (3, "")
        mode = "transductive" if test["transductive"] else "inductive"
        protocol = f"{test['num_tasks']} tasks" + (f", {mode}" if result["depends_on_query_set"] else "")
        protocol += f", ensemble of {test['ensemble']}" if "ensemble" in test else ""
        threads, seed = result["environment"]["threads"], result["seed"]
        minutes = f"{result['iterations']:,} iterations, {result['seconds'] / 60:.1f} min, "
        training = minutes + f"{threads} thread{'s' * (threads > 1)}, seed {seed}"
        score = f"{test['metric']} **{test['mean']:.{digits}f}** ± {test['ci95']:.{digits}f}{unit}"
        early = [f"{value:.{digits}f}{unit}" for value in test["steps"][:2]]
        before, after = early if len(early) == 2 else (early[0], "")
        steps, command = str(len(test["steps"]) - 1), f"`{result['command']}`"
        found.append([name, score, steps, before, after, protocol, training, command])
    return found


def markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def table() -> str:
    lines, machines = [HEADER], set()
    for name, result in results().items():
        lines += rows(name, result)
        machines.add(machine(result))
    return f"{markdown(lines)}\n\nIntervals are 95 % over test tasks, of one seed. Machine: {_list(machines)}.\n"


def machine(result: dict[str, Any]) -> str:
    environment = result["environment"]
    return f"{environment['cpu']}, torch {environment['torch']}"


def _list(words: set[str]) -> str:
    return "; ".join(sorted(words))


def mean(tests: list[dict[str, Any]]) -> str:
    """Over seeds, with their 95 % interval; of one seed, with that over tasks."""
    if not tests:
        return ""
    values = [test["mean"] for test in tests]
    if len(values) == 1:
        return f"{values[0]:.2f} ± {tests[0]['ci95']:.2f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"**{statistics.fmean(values):.2f}** ± {half:.2f}"


def reached(result: dict[str, Any], score: float) -> int | None:
    """The first iteration at which a validation was at least as good."""
    return next((at for at, found, _ in result["curves"]["validation"] if found >= score), None)


def family(name: str) -> str:
    """A row a recipe. The first is what the others are compared with."""
    lines, found = [FAMILY], members(name)
    if not found:
        return "Not run.\n"
    base = next(iter(found.values()))
    final = statistics.fmean(result["curves"]["validation"][-1][1] for result in base)
    tests: set[int] = set()
    for recipe, every in found.items():
        kinds: dict[str, list[dict[str, Any]]] = {"transductive": [], "inductive": [], "ensemble": []}
        for result in every:
            for test in result["tests"]:
                mode = "transductive" if test["transductive"] else "inductive"
                kind = mode if "ensemble" not in test else "ensemble" if test["transductive"] else ""
                kinds.setdefault(kind, []).append(test)
                tests.add(test["num_tasks"])
        seeds = ", ".join(str(result["seed"]) for result in every)
        ats = [reached(result, final) for result in every]
        first = ", ".join("never" if at is None else f"{at:,}" for at in ats)
        minutes = statistics.fmean(result["seconds"] for result in every) / 60
        scores = [mean(kinds[kind]) for kind in ("transductive", "inductive", "ensemble")]
        lines.append([f"`{recipe}`", seeds, *scores, first, f"{minutes:.1f}"])
    iterations, command = base[0]["iterations"], f"`python experiments/run.py {name}`"
    number = " or ".join(map(str, sorted(tests)))
    machines = _list({machine(result) for every in found.values() for result in every})
    return (
        f"{markdown(lines)}\n\nAccuracy in % on {number} unseen tasks, after {iterations:,} iterations: the mean over "
        "seeds and its 95 % interval (Student's t); of one seed, the interval over tasks. The ensemble of the five "
        "best validated weights is transductive. *Reaches*: the iteration, for each seed, at which validation first "
        f"was at the level where that of `{next(iter(found))}` ended ({final:.2f} % on average). Made by {command}. "
        f"Machine: {machines}.\n"
    )


def filled(text: str) -> str:
    """A document with its tables as they should be."""
    text = MARKS.sub(lambda match: match[1] + "\n" + table() + "\n" + match[2], text)
    return FAMILY_MARKS.sub(lambda match: match[1] + "\n" + family(match[2]) + "\n" + match[3], text)


def documents() -> list[Path]:
    return [HERE.parent / "README.md", HERE / "README.md"]


def write() -> None:
    for path in documents():
        path.write_text(filled(path.read_text()))


def main() -> int:
    if "--write" in sys.argv:
        write()
        return 0
    stale = [path.name for path in documents() if filled(path.read_text()) != path.read_text()]
    if stale:
        print(f"stale: {', '.join(stale)}; run `make table`", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
