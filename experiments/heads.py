"""How the model that comes with the package does with other numbers of classes, by where its head starts, and by how
its batch norms treat what is new: python experiments/heads.py [--tasks N]; the result goes to use/heads.json, and from
there, by ``write``, between ``<!-- heads -->`` and ``<!-- /heads -->`` of docs/use.md.
"""

import argparse
import json
import math
import re
from pathlib import Path

import torch

import innerloop as il
from innerloop.common.disk import write_text
from innerloop.train.calibration import plain
from innerloop.use import Pretrained, with_classes

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "use" / "heads.json", HERE.parent / "docs" / "use.md"
WAYS = {3: ("trained", "prototypes", "zero"), 5: ("trained", "prototypes", "zero")} | dict.fromkeys(
    (7, 12), ("drawn", "prototypes", "zero")
)


@torch.no_grad()
def accuracies(learner: il.MetaLearner, ways: int, tasks: int) -> list[float]:
    """Of each task, in per cent: one drawing of each class is adapted to, and two of each predicted one by one."""
    generator, found = torch.Generator().manual_seed(5), []
    for _ in range(tasks):
        task = il.Strokes(ways, 1, 2, split="test").sample(1, generator)
        support, query = (il.Batch(part.x[0], part.y[0]) for part in task)
        logits = plain(learner.adapt(support, transductive=False))(query.x)
        found.append(100 * (logits.argmax(1) == query.y).float().mean().item())
    return found


def measure(tasks: int) -> dict[str, object]:
    """Means over tasks with their 95 % intervals, by the number of classes and the start of the head."""
    learner, rows = Pretrained.load("strokes").learner, {}
    for ways, heads in WAYS.items():
        for head in heads:
            found = torch.tensor(accuracies(with_classes(learner, ways, head), ways, tasks))  # type: ignore[arg-type]
            half = 1.96 * found.std().item() / math.sqrt(tasks)
            rows[f"{ways} {head}"] = [round(found.mean().item(), 2), round(half, 2)]
            print(ways, head, *rows[f"{ways} {head}"], flush=True)
    modes = {name: il.evaluate(learner, il.Strokes(queries=2, split="test"), tasks, transductive=way) for name, way in
             (("beside the support set", False), ("with the other queries", True))}  # fmt: skip
    others = {name: [round(found.mean, 2), round(found.ci95, 2)] for name, found in modes.items()}
    return {"tasks": tasks, "heads": rows, "modes": others}


def table(result: dict[str, object]) -> str:
    """As Markdown."""
    rows: dict[str, list[float]] = result["heads"]  # type: ignore[assignment]
    modes: dict[str, list[float]] = result["modes"]  # type: ignore[assignment]
    starts = ("trained", "drawn", "prototypes", "zero")
    lines = [f"| classes | {' | '.join(f'`{start}`' for start in starts)} |", "| --- |" + " --- |" * len(starts)]
    for ways in WAYS:
        cells = ["{:.1f} ± {:.1f}".format(*rows[key]) if (key := f"{ways} {s}") in rows else "" for s in starts]
        lines.append(f"| {ways} | {' | '.join(cells)} |")
    other = ", ".join(f"{name} {mean:.1f} ± {half:.1f}" for name, (mean, half) in modes.items())
    note = (
        f"Accuracy in % of `strokes` on {result['tasks']} tasks of unseen characters, from one drawing of each, by "
        "where the head starts; each query by itself, by the plain module. Five classes with batch norm by the query "
        f"{other}. Made by `python experiments/heads.py`."
    )
    return "\n".join([*lines, "", note])


def write() -> None:
    """Put the table into the page."""
    block = f"<!-- heads -->\n\n{table(json.loads(RESULT.read_text()))}\n\n<!-- /heads -->"
    write_text(PAGE, re.sub(r"<!-- heads -->.*<!-- /heads -->", lambda _: block, PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    write_text(RESULT, json.dumps(measure(given.tasks), indent=1) + "\n")
    write()
