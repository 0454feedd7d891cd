"""Keep the result of a finished run: python experiments/collect.py RUN [NAME] [--data DIR] [--device DEVICE]

Takes the run's test of its best validated weights (600 tasks or more) and, where batch norm makes a difference,
evaluates them the other way too; if it kept several weights on purpose, also their ensemble, as the recipe says. Writes
``experiments/results/NAME.json`` with command, recipe, seed, time, hardware and the curves of training. ``--picture``
also draws unseen tasks, into ``experiments/NAME.png`` (not for data whose images may not be passed on). Then `make
table`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import innerloop as il
from innerloop.common.disk import replacing, write_text

RESULTS = Path(__file__).parent / "results"
ENSEMBLE = 5
POINTS = 200


def collect(run: Path, data: str | None = None, device: str = "cpu") -> dict[str, Any]:
    together, sources, config = il.load_ensemble(run, _members(run), data, device)
    learner = together.learners[0]
    trained = json.loads((run / "results.json").read_text())
    options = il.config.arguments(config, "evaluate")
    # Which `innerloop train` made, of these weights; the scores of single tasks stay in the run directory.
    tests = [{key: value for key, value in trained["test"].items() if key != "scores"}]
    if learner.depends_on_query_set:
        other = {**options, "transductive": not options.get("transductive", True)}
        tests.append(il.evaluate(learner, sources.test, **other).as_dict())
    if len(together.learners) > 1:
        found = il.evaluate(together, sources.test, **options)
        tests.append({"ensemble": len(together.learners), **found.as_dict()})
    return {
        "command": trained["command"],
        "description": config["description"],
        "seed": trained["seed"],
        "iterations": trained["iterations"],
        "seconds": trained["seconds"],
        "tests": tests,
        "depends_on_query_set": learner.depends_on_query_set,
        "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "environment": trained["environment"],
        **acted(run),
        "config": config,
        "curves": curves(run),
    }


def acted(run: Path) -> dict[str, int]:
    """Steps of an environment that training took, if it was of one."""
    steps = [line["environment_steps"] for line in il.report.read_run(run).lines.get("train", ())
             if "environment_steps" in line]  # fmt: skip
    return {"environment_steps": max(steps)} if steps else {}


def _members(run: Path) -> int:
    """Of the ensemble: as many as the recipe asks to be kept for one and the run came to, else one."""
    config = il.config.load_recipe(run / "config.toml")
    kept = len(json.loads((run / "results.json").read_text())["validation"])
    return min(ENSEMBLE, kept) if config["train"].get("keep_best", 0) >= ENSEMBLE else 1


def curves(run: Path) -> dict[str, list[list[float]]]:
    """Of training: ``[iteration, loss]``, means of what was logged over at most 200 stretches; of validation:
    ``[iteration, mean, ci95]``."""
    record = il.report.read_run(run)
    losses = list(zip(*record.column("train", "loss"), strict=True))
    each = -(-len(losses) // POINTS) or 1
    parts = [losses[i : i + each] for i in range(0, len(losses), each)]
    return {
        "train": [[part[-1][0], round(sum(loss for _, loss in part) / len(part), 5)] for part in parts],
        "validation": [[e["iteration"], e["mean"], e["ci95"]] for e in record.lines.get("validation", ())],
    }


def keep(run: Path, path: Path, data: str | None = None, device: str = "cpu") -> None:
    """Write the result file of a run."""
    found = collect(run, data, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("name", nargs="?", help="of the result file; that of the run directory if not given")
    parser.add_argument("--data", help="where the data are; else $INNERLOOP_DATA and the cache")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--picture", action="store_true", help="draw unseen tasks, too")
    arguments = parser.parse_args()
    name = arguments.name or arguments.run.name
    path = RESULTS / f"{name}.json"
    keep(arguments.run, path, arguments.data, arguments.device)
    print(path)
    if arguments.picture:
        learner, sources, config = il.load_run(arguments.run, arguments.data)
        figure = il.report.showcase(learner, sources.test, config["evaluate"].get("steps"))
        with replacing(path.parents[1] / f"{name}.png") as temporary:
            figure.savefig(temporary)
