"""Draw the training and validation curves of a family from its result files: python experiments/figures.py FAMILY"""

import sys
from pathlib import Path

import matplotlib as mpl
import table

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent


def draw(family: str) -> Path:
    """A line for every recipe, thin ones for its single seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for index, (recipe, results) in enumerate(table.members(family).items()):
        for axis, kind in zip(axes, ("train", "validation"), strict=True):
            curves = [result["curves"][kind] for result in results]
            for number, curve in enumerate(curves):
                points = list(zip(*curve, strict=True))
                label = recipe if number == 0 else None
                axis.plot(points[0], points[1], color=f"C{index}", alpha=0.8, linewidth=1, label=label)
    axes[0].set(xlabel="iteration", ylabel="training loss after adaptation")
    axes[1].set(xlabel="iteration", ylabel="validation accuracy, %")
    axes[1].legend(fontsize="small")
    path = HERE / f"{family}.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(draw(sys.argv[1]))
