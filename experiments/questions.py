"""What a learned loss goes by, asked of a trained run by changing the videos that it is shown:
python experiments/questions.py RUN [--tasks N]; the answers go to imitation/questions.json, and from there, by
``write``, between ``<!-- questions -->`` and ``<!-- /questions -->`` of docs/imitation.md.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

import innerloop as il
from innerloop.common.disk import write_text
from innerloop.imitation import Imitation, Reach
from innerloop.imitation.environments import Scenes

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "imitation" / "questions.json", HERE.parent / "docs" / "imitation.md"


class Partly(Reach):
    """The same world, in whose videos some objects are not drawn."""

    drawn = slice(None)
    filming = False

    def video(self, tasks: Scenes, generator: torch.Generator) -> Tensor:
        """See `Reach.video`."""
        self.filming = True
        try:
            return super().video(tasks, generator)
        finally:
            self.filming = False

    def _put(self, picture: Tensor, points: Tensor, objects: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        if self.filming:
            objects, places = objects[:, self.drawn], places[:, :, self.drawn]
        return Reach._put(picture, points, objects, places)


class Others(Partly):
    """Without the object that is meant."""

    drawn = slice(1, None)


class Meant(Partly):
    """With no other object than that."""

    drawn = slice(1)


def last(number: int) -> Callable[[Tensor], Tensor]:
    """The last pictures alone, before which the first of them stands still."""

    def change(video: Tensor) -> Tensor:
        still = video[:, :, -number, None].expand_as(video)[:, :, number:]
        return torch.cat([still, video[:, :, -number:]], 2)

    return change


def early(video: Tensor) -> Tensor:
    """Twice as fast, and then at rest."""
    return torch.cat([video[:, :, 1::2], video[:, :, -1:].expand_as(video)[:, :, ::2]], 2)


QUESTIONS: dict[str, tuple[type[Reach], Callable[[Tensor], Tensor]]] = {
    "as it is": (Reach, lambda video: video),
    "the last picture alone": (Reach, last(1)),
    "the last three pictures alone, after a rest": (Reach, last(3)),
    "twice as fast, and then at rest": (Reach, early),
    "the first picture alone": (Reach, lambda video: video[:, :, :1].expand_as(video)),
    "backwards": (Reach, lambda video: video.flip(2)),
    "in grey": (Reach, lambda video: video.float().mean(3, keepdim=True).to(torch.uint8).expand_as(video)),
    "without the object that is reached for": (Others, lambda video: video),
    "without the other objects": (Meant, lambda video: video),
}


def ask(run: Path, tasks: int) -> dict[str, dict[str, float]]:
    """Success, and how often the robot ends nearest to the object that was meant, in per cent, for every change."""
    learner, sources, _ = il.load_run(run)
    assert isinstance(sources.test, Imitation)
    own = {field.name: getattr(sources.test.environment, field.name) for field in fields(Reach)}
    answers = {}
    for question, (kind, change) in QUESTIONS.items():
        source, generator = Imitation(kind(**own), "test"), torch.Generator().manual_seed(0)
        drawn = source.environment.tasks(tasks, "test", generator)
        shown = source.shows(drawn, generator)
        changed = il.Batch({"images": change(shown.x["images"])}, shown.y)
        for _ in source.attempt(learner, drawn, changed, learner.steps, torch.Generator().manual_seed(1)):
            pass
        distances = (source.environment._lying - source.environment._robot[..., None, :]).norm(dim=-1)[:, 0]
        nearest = (distances.argmin(-1) == 0).float().mean()
        answers[question] = {
            "success": 100 * source.environment.success().float().mean().item(),
            "nearest": 100 * nearest.item(),
        }
    return answers


def table(result: dict[str, object]) -> str:
    """As Markdown."""
    lines = ["| the video | success, % | ends nearest to the object that was meant, % |", "| --- | --- | --- |"]
    answers: dict[str, dict[str, float]] = result["answers"]  # type: ignore[assignment]
    number = int(str(result["tasks"]))
    for name, found in answers.items():
        cells = [f"{value:.1f} ± {1.96 * math.sqrt(value * (100 - value) / number):.1f}" for value in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = (
        f"One attempt at each of {number} unseen tasks by one run, `{result['run']}`, with 95 % intervals over tasks; "
        "a guess is right in a third."
    )
    return "\n".join([*lines, "", note])


def write() -> None:
    """Put the table into the page."""
    block = f"<!-- questions -->\n\n{table(json.loads(RESULT.read_text()))}\n\n<!-- /questions -->"
    text = re.sub(r"<!-- questions -->.*<!-- /questions -->", lambda _: block, PAGE.read_text(), flags=re.DOTALL)
    write_text(PAGE, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", type=int, default=600)
    given = parser.parse_args()
    result = {"run": given.run.name, "tasks": given.tasks, "answers": ask(given.run, given.tasks)}
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    write()
