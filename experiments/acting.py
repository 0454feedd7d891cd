"""Tables of families that act: environment, horizon, algorithm, and returns or success after 0, 1, ... steps."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from innerloop.metrics import Scale

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""Student's t for a 95 % interval of the mean of so many values; of more, that of ten."""


def rows(members: dict[str, list[dict[str, Any]]], published: dict[str, str], wanted: Iterable[str]) -> list[list[str]]:
    """A header, and a row a recipe; of wanted ones without a result that they were not run."""
    steps = max((len(result["tests"][0]["steps"]) for every in members.values() for result in every), default=1)
    after = [f"after {k}" if k else "before" for k in range(steps)]
    lives = any(result.get("environment_steps") for every in members.values() for result in every)
    last = ["environment steps", "minutes a run"] if lives else ["minutes a run"]
    lines = [["recipe", "environment", "horizon", "algorithm", "seeds", *after, *last]]
    for recipe, every in members.items():
        config = every[0]["config"]
        seeds = ", ".join(str(result["seed"]) for result in every)
        returns = [score([result["tests"][0] for result in every], k) for k in range(steps)]
        taken = statistics.fmean(result.get("environment_steps", 0) for result in every)
        minutes = statistics.fmean(result["seconds"] for result in every) / 60
        place = environment(config["tasks"])
        cost = [f"{taken / 1e6:.1f} million" if taken else "0", f"{minutes:.1f}"][-len(last) :]
        horizon, who = str(config["tasks"]["horizon"]), algorithm(config)
        lines.append([f"`{recipe}`", place, horizon, who, seeds, *returns, *cost])
        if recipe in published:
            numbers = [word.strip() for word in published[recipe].split(",")]
            lines.append(["published", place, "", "", "", *numbers, *[""] * (steps - len(numbers)), *[""] * len(last)])
    lines += [[f"`{recipe}`", "not run", *[""] * (len(lines[0]) - 2)] for recipe in wanted if recipe not in members]
    return lines


def score(tests: list[dict[str, Any]], step: int) -> str:
    """The mean over seeds with its interval; of one seed, with that over tasks. Nothing where no step was taken."""
    values = [test["steps"][step] for test in tests if step < len(test["steps"])]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f} ± {tests[0]['steps_ci95'][step]:.2f}"
    half = T95.get(len(values), 2.262) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def environment(tasks: dict[str, Any]) -> str:
    """What a recipe's tasks are, in words."""
    return f"{tasks['body']}, {tasks['goal']}" if tasks["name"] == "locomotion" else str(tasks["name"])


def algorithm(config: dict[str, Any]) -> str:
    """What a recipe does, in words."""
    if not config["train"]["iterations"]:
        return "random initialization"
    preset = str(config["learner"]["preset"])
    return WORDS.get(f"{preset} {config['model']['name']}", WORDS.get(preset, preset))


WORDS = {
    "trpo": "pretraining (TRPO)",
    "cloned visuomotor": "no adaptation",
    "cloned contextual": "a policy that reads the last picture of the video",
    "cloned watching": "a recurrent policy that watches the video",
}


def note(command: str, members: dict[str, list[dict[str, Any]]], machine: str) -> str:
    """What the numbers are."""
    every = [result for results in members.values() for result in results]
    if not every:
        return f"To be made by {command}.\n"
    tasks = " or ".join(sorted({str(result["tests"][0]["num_tasks"]) for result in every}))
    threads = " or ".join(sorted({str(result["environment"]["threads"]) for result in every}))
    what = SUCCESS if Scale.read(every[0]["tests"][0]).unit else RETURNS
    return (
        f"{what.format(tasks)}, before adaptation and after each inner step, by the weights of the best "
        "meta-validation: means over seeds and their 95 % intervals (Student's t); of one seed, the interval over "
        f"tasks. What training took is told, validations apart, on {threads} core{'s' * (threads != '1')}. Made by "
        f"{command}. Machine: {machine}.\n"
    )


RETURNS = "Mean returns (sums of rewards over an episode) in {} unseen tasks"
SUCCESS = (
    "Success, in per cent of one attempt at each of {} tasks with unseen objects and demonstrators (of policies that "
    "take no inner step it stands under *before*)"
)


def measured(every: list[dict[str, Any]]) -> str:
    """Returns or success, as the first comment of a recipe has them."""
    tests = [result["tests"][0] for result in every]
    means = ", ".join(score(tests, k).replace("±", "+-") for k in range(len(tests[0]["steps"])))
    seeds = f"{len(tests)} seeds" if len(tests) > 1 else "one seed"
    scale = Scale.read(tests[0])
    what, unit = scale.name if scale.unit else f"{scale.name}s", scale.suffix
    steps = " before and after each step" if len(tests[0]["steps"]) > 1 else ""
    return f"{what} {means}{unit}{steps} in {seeds}"
