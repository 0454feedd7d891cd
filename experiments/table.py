"""Make the tables of the README and of this folder from the result files: python experiments/table.py [--write]

Without ``--write``, exits with 1 if a table is stale.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEADER = ["experiment", "result on unseen tasks", "steps", "before", "after 1", "protocol", "training", "command"]
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def results() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    """One row an evaluation: the same weights, judged transductively and inductively."""
    found = []
    for test in result["tests"]:
        digits, unit = (2, " %") if test["metric"] == "accuracy" else (3, "")
        mode = "transductive" if test["transductive"] else "inductive"
        protocol = f"{test['num_tasks']} tasks" + (f", {mode}" if result["depends_on_query_set"] else "")
        threads, seed = result["environment"]["threads"], result["seed"]
        minutes = f"{result['iterations']:,} iterations, {result['seconds'] / 60:.1f} min, "
        training = minutes + f"{threads} thread{'s' * (threads > 1)}, seed {seed}"
        score = f"{test['metric']} **{test['mean']:.{digits}f}** ± {test['ci95']:.{digits}f}{unit}"
        early = [f"{value:.{digits}f}{unit}" for value in test["steps"][:2]]
        before, after = early if len(early) == 2 else (early[0], "")
        steps, command = str(len(test["steps"]) - 1), f"`{result['command']}`"
        found.append([name, score, steps, before, after, protocol, training, command])
    return found


def table() -> str:
    lines = [HEADER, ["---"] * len(HEADER)]
    machines = set()
    for name, result in results().items():
        lines += rows(name, result)
        environment = result["environment"]
        machines.add(f"{environment['cpu']}, torch {environment['torch']}")
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nIntervals are 95 % over test tasks, of one seed. Machine: {'; '.join(sorted(machines))}.\n"


def main() -> int:
    stale = []
    for path in (HERE.parent / "README.md", HERE / "README.md"):
        before = path.read_text()
        after = MARKS.sub(lambda match: match[1] + "\n" + table() + "\n" + match[2], before)
        if "--write" in sys.argv:
            path.write_text(after)
        elif before != after:
            stale.append(str(path.name))
    if stale:
        print(f"stale: {', '.join(stale)}; run `make table`", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
