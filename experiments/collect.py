"""Keep the result of a finished run: python experiments/collect.py RUN [NAME]

Evaluates the run's best validated weights on 600 or more test tasks, as its recipe says and, where batch norm makes a
difference, the other way too, and writes ``experiments/results/NAME.json`` with command, recipe, seed, time and
hardware. ``--picture`` also draws unseen tasks, into ``experiments/NAME.png`` (not for data whose images may not be
passed on). Then `make table`.
"""

import argparse
import json
from pathlib import Path

import innerloop as il

RESULTS = Path(__file__).parent / "results"


def collect(run: Path) -> dict[str, object]:
    learner, sources, config = il.load_run(run)
    trained = json.loads((run / "results.json").read_text())
    options = il.config.arguments(config, "evaluate")
    modes = (True, False) if learner.depends_on_query_set else (options.get("transductive", True),)
    tests = [il.evaluate(learner, sources.test, **{**options, "transductive": mode}) for mode in modes]
    return {
        "command": trained["command"],
        "description": config["description"],
        "seed": trained["seed"],
        "iterations": trained["iterations"],
        "seconds": trained["seconds"],
        "tests": [test.as_dict() for test in tests],
        "depends_on_query_set": learner.depends_on_query_set,
        "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "environment": trained["environment"],
        "config": config,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("name", nargs="?", help="of the result file; that of the run directory if not given")
    parser.add_argument("--picture", action="store_true", help="draw unseen tasks, too")
    arguments = parser.parse_args()
    name = arguments.name or arguments.run.name
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(collect(arguments.run), indent=1) + "\n")
    print(path)
    if arguments.picture:
        learner, sources, config = il.load_run(arguments.run)
        figure = il.report.showcase(learner, sources.test, config["evaluate"].get("steps"))
        figure.savefig(path.parents[1] / f"{name}.png")
