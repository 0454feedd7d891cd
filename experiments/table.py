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

import acting

from innerloop import imitation, rl
from innerloop.common.disk import write_text
from innerloop.metrics import Scale
from innerloop.recipe import config

HERE = Path(__file__).parent
HEADER = ["experiment", "result on unseen tasks", "steps", "before", "after 1", "protocol", "training", "command"]
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
FAMILY_MARKS = re.compile(r"(<!-- family (\S+) -->\n).*?(<!-- /family -->)", re.DOTALL)
MEASURED = re.compile(
    r"(?<=^# )(Hardware and time not yet measured; expected: not yet measured|"
    r"[^;\n]*: [\d.]+ minutes a run; (?:\w+ [^,;\n]*, \w+ductive|(?:returns|success) .* in [^.;\n]* seeds?))",
    re.MULTILINE,
)
"""What the first comment of a recipe says of time and score."""


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
        paths = (HERE / "results" / family).glob(f"{stem(recipe)}-seed*.json")
        if results := sorted(map(read, paths), key=lambda result: result["seed"]):
            found[recipe] = results
    return found


def stem(recipe: str) -> str:
    """Of a recipe that may be a file."""
    return Path(recipe).name.removesuffix(".toml")


def rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    """One row an evaluation: the same weights, judged transductively and inductively."""
    found = []
    for test in result["tests"]:
        scale = Scale.read(test)
        digits, unit = scale.digits(".3f"), scale.suffix
        mode = "transductive" if test["transductive"] else "inductive"
        protocol = f"{test['num_tasks']} tasks" + (f", {mode}" if result["depends_on_query_set"] else "")
        protocol += f", ensemble of {test['ensemble']}" if "ensemble" in test else ""
        threads, seed = result["environment"]["threads"], result["seed"]
        minutes = f"{result['iterations']:,} iterations, {result['seconds'] / 60:.1f} min, "
        training = minutes + f"{threads} thread{'s' * (threads > 1)}, seed {seed}"
        score = f"{scale.name} **{test['mean']:{digits}}** ± {test['ci95']:{digits}}{unit}"
        early = [f"{value:{digits}}{unit}" for value in test["steps"][:2]]
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
    half = acting.T95.get(len(values), 2.262) * statistics.stdev(values) / math.sqrt(len(values))
    return f"**{statistics.fmean(values):.2f}** ± {half:.2f}"


def evaluations(every: list[dict[str, Any]], transductive: bool, ensemble: bool = False) -> list[dict[str, Any]]:
    """Of results, those of one kind. What does not depend on the query set is of both kinds."""
    return [
        test
        for result in every
        for test in result["tests"]
        if ("ensemble" in test) == ensemble
        and (test["transductive"] == transductive or not result["depends_on_query_set"])
    ]


def minutes(every: list[dict[str, Any]]) -> str:
    return f"{statistics.fmean(result['seconds'] for result in every) / 60:.1f}"


def final(every: list[dict[str, Any]]) -> float:
    """The score that validation ended at, on average over seeds."""
    return statistics.fmean(result["curves"]["validation"][-1][1] for result in every)


def reached(result: dict[str, Any], score: float) -> str:
    """The first iteration at which a validation was at least as good."""
    sign = 1 if Scale.read(result["tests"][0]).higher_is_better else -1
    found = next((at for at, found, _ in result["curves"]["validation"] if sign * found >= sign * score), None)
    return "never" if found is None else f"{found:,}"


def family(name: str) -> str:
    """A row a recipe. Where no numbers are published, the first is what the others are compared with."""
    if name not in families():
        raise ValueError(f"a table of the family {name} is asked for, but families.toml has {', '.join(families())}")
    about, found = families()[name], members(name)
    published = about.get("published", {})
    if about.get("kind") == "acting":
        every = [result for results in found.values() for result in results]
        command, machines = f"`python experiments/run.py {name}`", _list(set(map(machine, every)))
        return f"{markdown(acting.rows(found, published, about['seeds']))}\n\n{acting.note(command, found, machines)}"
    last = "published" if published else "reaches"
    lines = [["recipe", "seeds", "transductive", "inductive", "ensemble", last, "minutes a run"]]
    base = next(iter(found.values()), None)
    for recipe in about["seeds"]:
        every = found.get(recipe)
        if every is None:
            lines.append([f"`{recipe}`", "", "not run", "", "", published.get(recipe, ""), ""])
            continue
        seeds = ", ".join(str(result["seed"]) for result in every)
        scores = [mean(evaluations(every, *kind)) for kind in ((True,), (False,), (True, True))]
        beside = published.get(recipe, "") if published else "; ".join(reached(r, final(base)) for r in every)
        lines.append([f"`{recipe}`", seeds, *scores, beside, minutes(every)])
    return f"{markdown(lines)}\n\n{note(name, found, bool(published))}"


def note(name: str, found: dict[str, list[dict[str, Any]]], published: bool) -> str:
    """What the numbers of a family are."""
    command = f"`python experiments/run.py {name}`"
    if not found:
        return f"To be made by {command}.\n"
    every = [result for results in found.values() for result in results]
    number = _list({str(test["num_tasks"]) for result in every for test in result["tests"]})
    threads = _list({str(result["environment"]["threads"]) for result in every})
    text = f"Accuracy in % on {number} unseen tasks"
    if not published:
        base = next(iter(found))
        train = found[base][0]["config"]["train"]
        text += f", after {train['iterations']:,} iterations"
        ending = (
            f"*Reaches*: the iteration, for each seed, of the first validation ({train['val_tasks']} tasks, the same "
            f"every time) at the level where those of `{base}` ended ({final(found[base]):.2f} % on average). "
        )
    return (
        f"{text}: the mean over seeds and its 95 % interval (Student's t); of one seed, the interval over tasks. "
        f"*Ensemble*: of the five best validated weights, transductive. {'' if published else ending}"
        f"Minutes of training, validations apart, on {threads} core{'s' * (threads != '1')}. Made by {command}. "
        f"Machine: {_list(set(map(machine, every)))}.\n"
    )


def measured(every: list[dict[str, Any]]) -> str:
    """Time and score, as the first comment of the recipe has them."""
    environment, test = every[0]["environment"], every[0]["tests"][0]
    cores = f"{environment['threads']} CPU core{'s' * (environment['threads'] != 1)}"
    on = cores if environment["device"] == "cpu" else f"a GPU, {environment['device']}"
    if acts(every[0]):
        return f"{on}: {minutes(every)} minutes a run; {acting.measured(every)}"
    kind = evaluations(every, test["transductive"])
    score = mean(kind).replace("*", "").replace("±", "+-")
    seeds = f"{len(kind)} seeds" if len(kind) > 1 else "one seed"
    mode = "transductive" if test["transductive"] else "inductive"
    scale = Scale.read(test)
    return f"{on}: {minutes(every)} minutes a run; {scale.name} {score}{scale.suffix} in {seeds}, {mode}"


def acts(result: dict[str, Any]) -> bool:
    """Whether the learner of a result acts in its tasks."""
    return result["config"]["tasks"]["name"] in {**rl.TASKS, **imitation.TASKS}


def comments() -> dict[Path, str]:
    """The recipes of families that have results, each as it should be."""
    shipped, own = (HERE.parent / "src" / "innerloop" / "recipes").glob("*.toml"), HERE.glob("*/*.toml")
    paths = {path.stem: path for path in (*shipped, *own)}
    found = {stem(r): every for name in families() for r, every in members(name).items() if stem(r) in paths}
    texts = {}
    for recipe, every in found.items():
        texts[paths[recipe]], places = MEASURED.subn(measured(every), paths[recipe].read_text(), count=1)
        if not places:
            raise ValueError(
                f"the first comment of {recipe} has no place for time and score, such as: {measured(every)}"
            )
    return texts


def filled(text: str) -> str:
    """A document with its tables as they should be."""
    text = MARKS.sub(lambda match: match[1] + "\n" + table() + "\n" + match[2], text)
    return FAMILY_MARKS.sub(lambda match: match[1] + "\n" + family(match[2]) + "\n" + match[3], text)


def documents() -> dict[Path, str]:
    """Whatever has numbers in it, as it should be."""
    pages = (HERE.parent / "README.md", HERE / "README.md")
    return {**{path: filled(path.read_text()) for path in pages}, **comments()}


def write() -> None:
    for path, text in documents().items():
        write_text(path, text)


def main() -> int:
    if "--write" in sys.argv:
        write()
        return 0
    stale = [path.name for path, text in documents().items() if text != path.read_text()]
    if stale:
        print(f"stale: {', '.join(stale)}; run `make table`", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
