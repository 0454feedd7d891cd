"""The model card of a learner: what it is, how it was evaluated, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import Scale
from ..recipe.config import dumps
from ..train.metrics import compares_numbers, kind
from .contents import score

HEADER = """---
library_name: innerloop{pipeline}
tags:
- meta-learning
- few-shot
---
"""
USAGE = """import innerloop as il

model = il.Pretrained.from_pretrained("FOLDER")  # this folder, or user/name on the Hub
"""
USES = {
    "classes": ("\npipeline_tag: image-classification", "il.FewShotClassifier(model).fit(pictures, names)"),
    "numbers": ("\npipeline_tag: tabular-regression", "il.FewShotRegressor(model).fit(x, y)"),
}
"""What a learner predicts -> the Hub's task for it, and the code that uses it."""
OTHER = ("", "adapted = model.learner.adapt(support)")


def card(
    name: str,
    recipe: dict[str, Any],
    results: dict[str, Any],
    temperature: float | None,
    citations: Sequence[str],
    predicts: str = "",
) -> str:
    """Return the model card as Markdown, headed by the metadata that the Hugging Face Hub reads.

    Args:
        name: the heading.
        recipe: of the learner, empty if it has none; see `innerloop.use.Pretrained`.
        results: of its test; see `innerloop.use.Pretrained`.
        temperature: the divisor of its logits that calibrates probabilities, or None.
        citations: of the papers that it implements.
        predicts: ``"classes"`` or ``"numbers"`` (see `predicted`), or anything else if no estimator supports it.
    """
    pipeline, use = USES.get(predicts, OTHER)
    parts = [
        HEADER.format(pipeline=pipeline),
        f"# {name}\n",
        f"{recipe.get('description') or 'A meta-trained learner'}. Made by innerloop.\n",
        "It adapts to a new task by a few gradient steps on a few examples:\n",
        f"```python\n{USAGE}{use}\n```\n",
        "## Protocol and result\n",
        _result(results),
    ]
    if temperature is not None:
        parts.append(
            f"Probabilities are of logits divided by {temperature:.3g}, as fits tasks of the validation split.\n"
        )
    if recipe:
        parts += ["## Recipe\n", f"```toml\n{dumps(recipe)}```\n"]
    if citations:
        parts += ["## Papers\n", "\n".join(f"- {citation}" for citation in citations) + "\n"]
    return "\n".join(parts)


def predicted(loss: Any) -> str:
    """Return what a learner with this loss predicts: ``"classes"``, ``"numbers"``, or empty for anything else."""
    return "classes" if kind(loss) == "classes" else "numbers" if compares_numbers(loss) else ""


def _result(results: dict[str, Any]) -> str:
    if not results.get("metric"):
        return "It was not tested.\n"
    scale = Scale.read(results)
    unit = scale.suffix
    steps = "\n".join(
        f"| {number} | {score(mean, '.4g')}{unit} | {score(half, '.2g')} |"
        for number, (mean, half) in enumerate(zip(results["steps"], results["steps_ci95"], strict=True))
    )
    mode = "transductive" if results["transductive"] else "inductive"
    how = f"`{results['command']}`, " if results.get("command") else ""
    return (
        f"{how}{results['num_tasks']} unseen tasks, {mode}, 95 % interval over tasks:\n\n"
        f"| inner steps | {scale.name} | +- |\n| --- | --- | --- |\n{steps}\n"
    )
