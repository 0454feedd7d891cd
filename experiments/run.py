"""Run a family of recipes over its seeds: python experiments/run.py FAMILY [--data DIR] [--seeds N ...]

What has a result file is left alone, an interrupted run is gone on with, and everything else is trained in
``runs/RECIPE-seedN``; each result goes to ``results/FAMILY/RECIPE-seedN.json``, and the tables and figures are made
anew after every run. A result of another version of its recipe is made again. ``families.toml`` has the families.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import collect
import figures
import table

from innerloop import cli, config


def wanted(family: dict[str, Any], seeds: list[int] | None) -> list[tuple[str, int]]:
    """Recipe and seed, the first seed of every recipe first."""
    each = {recipe: seeds or own for recipe, own in family["seeds"].items()}
    return sorted(((r, s) for r, own in each.items() for s in own), key=lambda pair: each[pair[0]].index(pair[1]))


def finished(path: Path, recipe: str, seed: int) -> bool:
    """Whether there is a result of the recipe as it is now."""
    if not path.is_file():
        return False
    before = table.read(path)["config"]
    changed = config.differences(before, config.load_recipe(recipe, (), seed))
    if changed:
        print(f"{path.name} is of another {', '.join(changed)}: made again")
    return not changed


def run(family: str, seeds: list[int] | None, runs: Path, data: str | None) -> int:
    for recipe, seed in wanted(table.families()[family], seeds):
        name = f"{recipe}-seed{seed}"
        path = collect.RESULTS / family / f"{name}.json"
        if finished(path, recipe, seed):
            continue
        words = ["train", recipe, "--seed", str(seed), "--run", str(runs / name), "--resume"]
        print(f"innerloop {' '.join(words)}", flush=True)
        if code := cli.run([*words, *(["--data", data] if data else [])]):
            return code
        collect.keep(runs / name, path, data)
        figures.draw(family)
        table.write()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(table.families()))
    parser.add_argument("--seeds", type=int, nargs="+", help="those of families.toml if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories are")
    parser.add_argument("--data", help="where the data are; else $INNERLOOP_DATA and the cache")
    arguments = parser.parse_args()
    sys.exit(run(arguments.family, arguments.seeds, arguments.runs, arguments.data))
