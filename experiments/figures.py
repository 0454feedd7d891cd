"""Draw the training and validation curves of a family from its result files: python experiments/figures.py FAMILY"""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import table

from innerloop.common.disk import replacing
from innerloop.metrics import Scale

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
SIDE_BY_SIDE = 3
"""As many recipes have a panel of their own for their losses."""


def draw(family: str) -> Path:
    """Losses, of few recipes side by side, and validations: a line for every seed of a recipe. Of policies validations
    alone: the value of a surrogate says nothing."""
    found = {recipe: results for recipe, results in table.members(family).items() if any(map(validated, results))}
    every = [result for results in found.values() for result in results]
    labels = sorted({Scale.read(result["tests"][0]).label for result in every})
    acting = all(map(table.acts, every))
    alone = len(found) <= SIDE_BY_SIDE
    panels = 0 if acting else len(found) if alone else 1
    figure, axes = plt.subplots(1, panels + 1, figsize=(5 * (panels + 1), 4), layout="constrained", squeeze=False)
    losses, validation = axes[0, :-1], axes[0, -1]
    for index, (recipe, results) in enumerate(found.items()):
        lines(validation, recipe, results, "validation", index)
        if acting:
            continue
        panel = losses[index] if alone else losses[0]
        lines(panel, recipe, results, "train", index)
        panel.sharey(losses[0])
        panel.set(xlabel="iteration", ylabel="training loss after adaptation", title=recipe if alone else "")
    validation.set(xlabel="iteration", ylabel=f"validation {', '.join(labels)}")
    validation.legend(fontsize="small")
    path = HERE / f"{family}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
    return path


def validated(result: dict[str, Any]) -> bool:
    """Whether a run was trained, so that there are curves of it."""
    return bool(result["curves"]["validation"])


def lines(axis: Any, recipe: str, results: list[dict[str, Any]], kind: str, colour: int) -> None:
    """A curve of every seed, under one label; seeds are shades."""
    for number, result in enumerate(results):
        points = list(zip(*result["curves"][kind], strict=True))
        label = recipe if number == 0 else None
        axis.plot(points[0], points[1], color=f"C{colour}", alpha=max(1 - 0.3 * number, 0.2), linewidth=1, label=label)


if __name__ == "__main__":
    print(draw(sys.argv[1]))
