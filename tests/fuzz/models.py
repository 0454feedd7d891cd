"""Random learning problems: a model, losses, a learner's options and tasks, all as text that can be read and run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il

from . import parts
from .choices import CLASSES, HEADS, LOSSES, RULES, SELECTIONS, TARGETS
from .layers import KINDS, LAYOUTS, TOKENS, Draw, Shape

NAMES = {"torch": torch, "nn": nn, "F": F, "il": il, "math": math, **vars(parts)}
MOST = 150
"""Numbers that one example may have within a model."""


@dataclass(frozen=True)
class Case:
    """A learning problem.

    Attributes:
        x: shape of one example, without axes of tasks and examples.
        tokens: whether examples are whole numbers.
        layers: expressions.
        target: what is predicted, one of `LOSSES`; it says which head the model gets.
        head: whether the model gets one; without, its output is compared with numbers of its shape.
        training: whether the model is in ``train()``.
    """

    x: Shape
    layers: tuple[str, ...]
    tokens: bool = False
    target: str = "numbers"
    head: bool = True
    loss: str = "F.mse_loss"
    inner_loss: str | None = None
    rule: str = "il.SGD(0.1)"
    adapt: str = "il.everything"
    objective: str = "il.Unrolled()"
    steps: int = 1
    batch_size: int | None = None
    statistics: str = "batch"
    training: bool = True
    tasks: int = 2
    support: int = 3
    query: int = 2
    dtype: str = "float64"
    seed: int = 0

    def __str__(self) -> str:
        return json.dumps({name: v for name, v in asdict(self).items() if v != getattr(Case, name, ...)})

    @classmethod
    def read(cls, text: str) -> Case:
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(text).items()}
        return cls(**given)

    @property
    def model(self) -> str:
        """The model's expression, with a head of the right size."""
        body = ", ".join(self.layers)
        if not self.head:
            return f"nn.Sequential({body})"
        out = shape_after(self.layers, self.x, self.tokens)
        return f"nn.Sequential({body}, {HEADS[self.target].format(n=math.prod(out), c=out[0])})"


def evaluate(expression: str, **names: Any) -> Any:
    return eval(expression, {**NAMES, **names})


def inputs(shape: Shape, tokens: bool, *leading: int) -> Tensor:
    return torch.randint(TOKENS, (*leading, *shape)) if tokens else torch.randn(*leading, *shape)


def shape_after(layers: tuple[str, ...] | list[str], shape: Shape, tokens: bool) -> Shape:
    """The shape of one example after some layers; an error if it does not go through them."""
    with torch.random.fork_rng([]), torch.no_grad(), default(torch.float64):
        model = evaluate(f"nn.Sequential({', '.join(layers)})").eval()
        out = model(inputs(shape, tokens, 2))
    if out.dtype != torch.float64 or out.shape[0] != 2 or not 2 <= out.ndim <= 5 or not 0 < out[0].numel() <= MOST:
        raise ValueError(f"unsuitable output: {tuple(out.shape)}, {out.dtype}")
    return tuple(out.shape[1:])


def shape_of(model: nn.Module, case: Case) -> Shape:
    """The shape of a model's output, which has then run once, so that what it keeps of a run is free of any graph."""
    return tuple(model(inputs(case.x, case.tokens, 2)).shape[1:])


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Problem:
    """What a case says, made."""

    case: Case
    model: nn.Module
    loss: Any
    inner_loss: Any
    tasks: il.Task
    more: il.Task
    """Other tasks of the same shapes."""

    def learner(self, **options: Any) -> il.MetaLearner:
        """A learner whose rule has learned something, the same every time."""
        case = self.case
        learner = il.MetaLearner(
            self.model, evaluate(case.rule), evaluate(case.adapt), evaluate(case.objective), self.loss,
            inner_loss=self.inner_loss, steps=case.steps, batch_size=case.batch_size, statistics=case.statistics,  # type: ignore[arg-type]
            **{"compile": False, **options},
        )  # fmt: skip
        generator = torch.Generator().manual_seed(case.seed + 1)
        with torch.no_grad():
            for parameter in learner.rule.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
                parameter.mul_(1 + 0.2 * noise).add_(0.02 * noise * (parameter == 0))
        return learner


def build(case: Case, data_seed: int = 0) -> Problem:
    """Make a problem. Models and data are generic: no parameter is at a value like 0 or 1 that hides a mistake."""
    dtype = getattr(torch, case.dtype)
    with torch.random.fork_rng([]), default(torch.float64):
        torch.manual_seed(case.seed)
        expression = case.model
        model = evaluate(expression)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
            for part in model.modules():
                if isinstance(getattr(part, "running_var", None), Tensor):
                    part.running_mean.add_(0.3 * torch.randn_like(part.running_mean))
                    part.running_var.mul_(0.5 + torch.rand_like(part.running_var))
            width = shape_of(model.eval(), case)
        model.train(case.training)
        torch.manual_seed(1000 * case.seed + data_seed)
        loss, inner = (
            None if text is None else evaluate(text, output_width=width[-1]) for text in (case.loss, case.inner_loss)
        )
        tasks, more = (
            il.Task(*(_batch(case, width, number) for number in (case.support, case.query))) for _ in range(2)
        )
    if dtype != torch.float64:
        model.to(dtype)
        for part in (loss, inner):
            if isinstance(part, nn.Module):
                part.to(dtype)
        tasks, more = (cast(t, dtype) for t in (tasks, more))
    return Problem(case, model, loss, inner, tasks, more)


def cast(tasks: il.Task, dtype: torch.dtype) -> il.Task:
    def to(t: Any) -> Any:
        return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    return il.Task(*(il.Batch(to(b.x), to(b.y)) for b in tasks))


def _batch(case: Case, width: Shape, number: int) -> il.Batch:
    x = inputs(case.x, case.tokens, case.tasks, number)
    make: dict[str, Callable[[], Tensor | None]] = {
        "classes": lambda: torch.randint(CLASSES, (case.tasks, number)),
        "logarithms": lambda: torch.randint(CLASSES, (case.tasks, number)),
        "pixels": lambda: torch.randint(CLASSES, (case.tasks, number, *width[1:])),
        "halves": lambda: torch.randint(2, (case.tasks, number, *width)).double(),
        "chances": lambda: torch.rand(case.tasks, number, *width),
        "shares": lambda: torch.randn(case.tasks, number, *width).softmax(-1),
        "nothing": lambda: None,
    }
    return il.Batch(x, make.get(case.target, lambda: torch.randn(case.tasks, number, *width))())


# -- drawing ----------------------------------------------------------------------------------------------------------

LEADS = {
    "vec": "nn.Linear({n}, {out})", "seq": "nn.Conv1d({c}, {out}, 1)", "img": "nn.Conv2d({c}, {out}, 1)",
    "vol": "nn.Conv3d({c}, {out}, 1)",
}  # fmt: skip


def first_shape(d: Draw, layout: str) -> Shape:
    if layout == "tokens":
        return (d.number(1, 4),)
    if layout == "vec":
        return (d.number(2, 4),)
    if layout == "seq":
        return d.number(1, 4), d.number(2, 5)
    if layout == "img":
        return d.number(1, 3), d.number(3, 5), d.number(3, 5)
    return d.number(1, 2), d.number(2, 3), d.number(2, 3), d.number(2, 3)


def add(d: Draw, layers: list[str], shape: Shape, x: Shape, tokens: bool, name: str) -> Shape:
    """One more layer of a kind, if it fits: the shape after it."""
    try:
        expression = KINDS[name][1](d, shape)
        after = shape_after([*layers, expression], x, tokens)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, NotImplementedError, ZeroDivisionError):
        return shape
    if not layers and "inplace" in expression:  # which would change the data
        return shape
    layers.append(expression)
    return after


def by_layout(layout: str) -> list[str]:
    return [name for name, (layouts, _) in KINDS.items() if layout in layouts]


BY_LAYOUT = {layout: by_layout(layout) for layout in ("vec", "seq", "img", "vol", "tokens")}


def cases(kinds: tuple[str, ...] = tuple(KINDS)) -> st.SearchStrategy[Case]:
    """Cases with at least one of some kinds of layers."""
    return st.randoms(use_true_random=True).map(lambda random: draw(Draw(random), kinds))


def draw(d: Draw, kinds: tuple[str, ...]) -> Case:
    name = d.of(*kinds)
    layout = d.of(*KINDS[name][0])
    tokens = layout == "tokens" or (layout in ("seq", "vec") and d.rarely(8))
    x = shape = first_shape(d, "tokens" if tokens else layout)
    layers: list[str] = []
    if tokens and layout != "tokens":
        layers.append(f"nn.{'Embedding' if layout == 'seq' else 'EmbeddingBag'}({TOKENS}, {d.number(2, 4)})")
        shape = shape_after(layers, x, tokens)
    elif not tokens and (not d.rarely(4) or "inplace" in name):
        lead = LEADS[layout].format(n=shape[-1], c=shape[0], out=d.number(2, 4))
        layers.append(lead)
        shape = shape_after(layers, x, tokens)
    for wanted in (name, *[None] * d.of(0, 0, 1, 1, 2, 3)):
        now = LAYOUTS.get(len(shape), "vol") if layers or not tokens else "tokens"
        shape = add(d, layers, shape, x, tokens, wanted or d.of(*BY_LAYOUT[now]))
    if not layers:
        layers.append("nn.Identity()" if not tokens else f"nn.Embedding({TOKENS}, 3)")
        shape = shape_after(layers, x, tokens)
    return _options(d, Case(x, tuple(layers), tokens), shape)


def _options(d: Draw, case: Case, shape: Shape) -> Case:
    target = d.of(*TARGETS, *["pixels"] * (2 if len(shape) == 3 else 0), *["nothing"] * d.rarely(3))
    head = not (target == "numbers" and d.rarely(4))
    losses = LOSSES[target]
    steps = d.of(0, 1, 1, 1, 2, 2, 3)
    objective = d.of(*["unrolled"] * 8, "reptile", "implicit")
    rule, order = d.of(*RULES), d.of(1, 2, 2)
    if objective == "unrolled":
        weights = [d.of(0.0, 0.5, 1.0) for _ in range(steps - 1)] + [1.0] if steps > 1 and d.rarely(3) else None
        text = f"il.Unrolled(order={order}, step_weights={weights})"
    elif objective == "reptile":
        text = "il.Reptile()"
    else:
        text, rule = "il.Implicit(2.0, iterations=3)", "il.Chain(il.Proximal(2.0), il.SGD(0.1))"
    body = " ".join(case.layers)
    selection = d.of(*SELECTIONS)
    with default(torch.float64), torch.random.fork_rng([]):
        try:
            evaluate(selection).names(evaluate(replace(case, target=target, head=head).model))
        except ValueError:
            selection, head = "il.everything", True
    support = d.of(1, 2, 3, 3, 4, 4, 5)
    return replace(
        case,
        target=target,
        head=head,
        loss=d.of(*losses),
        inner_loss=d.of(*losses) if d.rarely(5) else None,
        rule=rule,
        adapt=selection,
        objective=text,
        steps=steps,
        batch_size=d.number(1, support) if d.rarely(4) else None,
        statistics="running" if "track_running_stats=True" in body and "BatchNorm" in body and d.rarely(3) else "batch",
        training=d.flag() and not re.search(r"nn\.\w*Dropout", body),
        tasks=d.of(1, 2, 3, 3, 4),
        support=support,
        query=d.of(1, 1, 2, 3),
        dtype=d.of(*["float64"] * 12, "float32", "float32", "bfloat16"),
        seed=d.number(0, 9999),
    )
