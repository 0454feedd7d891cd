"""Evaluation of a learner on unseen tasks: mean score, confidence interval, and the curve over inner steps."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..functional.contracts import RefusedBroadcasts
from ..functional.undisturbed import guarded
from ..learner import MetaLearner
from ..metrics import Metric, Scale
from ..task import (
    FiniteSource,
    InteractiveSource,
    MixedSource,
    Source,
    Task,
    Tasks,
    TaskSource,
    joined,
    select,
    singles,
    to,
)
from .accuracy import accuracy as accuracy
from .accuracy import floating
from .ensemble import Ensemble
from .metrics import Judge, Judged, chosen, default
from .world import World


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation over N tasks.

    Attributes:
        metric: the name of the metric.
        higher_is_better: true if higher is better, as for accuracy; false for errors and losses.
        unit: the unit of the scores, such as ``"%"``; empty if they have none.
        mean: the mean score over tasks after the last step.
        ci95: half the width of its 95 % confidence interval, 1.96 standard errors over tasks.
        num_tasks: the number of tasks N.
        steps: the mean after 0, 1, ..., K inner steps.
        steps_ci95: half the width of the interval for each of them.
        transductive: whether predictions depended on the other query examples, because batch norm used the statistics
            of the whole query set (see `MetaLearner.predict`).
        scores: the score of every task after every number of steps, ``[N, K + 1]``, float64 on the CPU.
        acting: whether the learner acted in the tasks instead of making predictions.
        sets: of a `MixedSource`, the result on each set; the half width of an interval over one task is NaN.
    """

    metric: str
    higher_is_better: bool
    unit: str
    mean: float
    ci95: float
    num_tasks: int
    steps: tuple[float, ...]
    steps_ci95: tuple[float, ...]
    transductive: bool
    scores: Tensor = field(repr=False, compare=False)
    acting: bool = False
    sets: Mapping[str, Evaluation] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, scores: Tensor, scale: Scale, transductive: bool, acting: bool = False, order: Sequence[str] = ()
    ) -> Evaluation:
        """Make an evaluation from the scores ``[N, K + 1]`` of N tasks, and the set of each task, if any."""
        where = {name: [place for place, other in enumerate(order) if other == name] for name in dict.fromkeys(order)}
        scores = scores.double().cpu()
        spread = scores.std(0, correction=1) if len(scores) > 1 else scores[0] * math.nan
        means, half = scores.mean(0), 1.96 * spread / math.sqrt(len(scores))
        return cls(
            metric=scale.name,
            higher_is_better=scale.higher_is_better,
            unit=scale.unit,
            mean=means[-1].item(),
            ci95=half[-1].item(),
            num_tasks=len(scores),
            steps=tuple(means.tolist()),
            steps_ci95=tuple(half.tolist()),
            transductive=transductive,
            scores=scores,
            acting=acting,
            sets={name: cls.of(scores[places], scale, transductive, acting) for name, places in where.items()},
        )

    @property
    def scale(self) -> Scale:
        """The name, direction and unit of the scores."""
        return Scale(self.metric, self.higher_is_better, self.unit)

    @property
    def mode(self) -> str:
        """``"transductive"`` or ``"inductive"``, or ``"acting"`` if the learner acted instead of predicting."""
        return "acting" if self.acting else "transductive" if self.transductive else "inductive"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the attributes without ``scores`` and ``acting``, and the mean of each set."""
        sets = {
            name: {"mean": each.mean, "ci95": each.ci95, "num_tasks": each.num_tasks}
            for name, each in self.sets.items()
        }
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "mean": self.mean,
            "ci95": self.ci95,
            "num_tasks": self.num_tasks,
            "steps": list(self.steps),
            "steps_ci95": list(self.steps_ci95),
            "transductive": self.transductive,
            **({"sets": sets} if sets else {}),
        }

    def __str__(self) -> str:
        number, unit = self.scale.digits(), self.scale.suffix
        taken = len(self.steps) - 1
        return (
            f"{self.metric} {self.mean:{number}} +- {self.ci95:{number}}{unit} after {taken} "
            f"step{'' if taken == 1 else 's'} ({self.steps[0]:{number}} before) "
            f"[{self.num_tasks} tasks, 95 % interval, {self.mode}]"
            + "".join(
                f"\n  {name}: {each.mean:{number}} +- {each.ci95:{number}}{unit} [{each.num_tasks} tasks]"
                for name, each in self.sets.items()
            )
        )


@guarded
def evaluate(
    learner: MetaLearner | Ensemble,
    source: Source,
    num_tasks: int = 600,
    steps: int | None = None,
    transductive: bool = True,
    metric: Judged | None = None,
    seed: int = 0,
    batch: int = 25,
    world: World | None = None,
) -> Evaluation:
    """Adapt to each of ``num_tasks`` tasks and score the query set before, between and after the steps.

    Dropout is off. The learner and all random states stay as they were. Memory does not grow with the number of tasks.
    A warning says if outputs or scores are not finite.

    Args:
        learner: the learner or ensemble to evaluate; tasks are moved to its device.
        source: the source. With an `InteractiveSource` the learner acts, and ``metric`` must not be given.
        num_tasks: the number of tasks, at least 2. A longer evaluation starts with the tasks of a shorter one (with an
            `InteractiveSource`, with its whole batches). Each task of a `FiniteSource` is taken once at most, and that
            of a `MixedSource` ends with the last task of such a set.
        steps: inner steps, which may exceed the trained number; ``None`` takes as many as in training.
        transductive: whether batch norm sees a task's whole query set (see `MetaLearner.predict`), unless it acts.
        metric: a name (`innerloop.train.METRICS`), an `innerloop.Metric`, a torchmetrics object, or a loss of torch. By
            default it is accuracy if the learner's outer loss is plain cross-entropy and the targets are class
            indices, else the outer loss.
        seed: gives the same tasks for any ``batch``, except with an `InteractiveSource`.
        batch: the number of tasks that are adapted to at once.
        world: the processes that share the work; all of them make this call and get the same result.

    Raises:
        ValueError: a number is out of range, or the metric is unknown, has no known direction, or does not fit.
    """
    _check(num_tasks, batch, steps)
    world, device, parts = world or World(), next(learner.parameters()).device, list[tuple[Tensor, tuple[int, int]]]()
    if isinstance(source, InteractiveSource):
        scale = judged_by(learner, source, metric)
        return Evaluation.of(_returns(learner, source, num_tasks, steps, seed, batch, world), scale, False, acting=True)
    known, generator = chosen(metric, learner.loss), torch.Generator().manual_seed(seed)
    drawn, num_tasks = _drawing(source, num_tasks, generator)
    with _seeded(device, seed):
        for start in range(0, num_tasks, batch):
            tasks = drawn(min(batch, num_tasks - start))
            known = known or default(learner.loss, _first(tasks).query.y)
            if start // batch % world.size == world.rank:  # processes take turns
                parts.append(_judged(learner, known, to(tasks, device), steps, transductive))
    scores, scale = _gathered(world, [part for part, _ in parts]), Scale.of(known)
    _warn(scale, [counts for each in world.all_gather([counts for _, counts in parts]) for counts in each], scores)
    return Evaluation.of(scores, scale, transductive and learner.depends_on_query_set, order=_order(source, num_tasks))


def _judged(
    learner: MetaLearner | Ensemble, metric: Metric, tasks: Tasks, steps: int | None, transductive: bool
) -> tuple[Tensor, tuple[int, int]]:
    """Return the scores ``[T, K + 1]`` of tasks, the number of outputs that are not finite, and of all outputs."""
    output, judge = learner.predict(tasks, steps, transductive), Judge(metric, learner.loss)
    if not isinstance(tasks, list):
        return score(judge, output, tasks.query.y).cpu(), _predictions(output)
    scores, counts = [], []
    for task, own in zip(tasks, output, strict=True):
        own, y = pytree.tree_map_only(Tensor, lambda leaf: leaf[None], (own, task.query.y))
        scores.append(score(judge, own, y).cpu())
        counts.append(_predictions(own))
    return torch.cat(scores), (sum(bad for bad, _ in counts), sum(every for _, every in counts))


def rehearse(
    learner: MetaLearner,
    source: Source,
    steps: int | None = None,
    transductive: bool = True,
    metric: Judged | None = None,
    seed: int = 0,
    **_: Any,
) -> None:
    """Try `evaluate` on two tasks, so that a metric that does not fit is an error before training starts.

    It measures no plans, restores random states, and does not act in tasks. Arguments for the size of an evaluation are
    ignored.

    Raises:
        Exception: any error of `evaluate`.
    """
    if isinstance(source, InteractiveSource):
        source.require(learner)
        judged_by(learner, source, metric)
        return
    if isinstance(source, MixedSource):
        for each in source.sources.values():
            rehearse(learner, each, steps, transductive, metric, seed)
        return
    known = chosen(metric, learner.loss)
    device = next(learner.parameters()).device
    with _seeded(device, seed):
        tasks = to(_draw(source, 2, torch.Generator().manual_seed(seed)), device)
        judge = Judge(known or default(learner.loss, _first(tasks).query.y), learner.loss)
        for index in range(2):
            support, query = select(tasks, index)
            judge(learner.adapt(support, steps, transductive)(query.x), query.y)


def _returns(
    learner: MetaLearner | Ensemble,
    source: InteractiveSource,
    num_tasks: int,
    steps: int | None,
    seed: int,
    batch: int,
    world: World,
) -> Tensor:
    """Return the scores of acting in tasks, ``[N, K + 1]``.

    Each batch has its own generator, because the number of draws depends on what happens.
    """
    if isinstance(learner, Ensemble):
        raise ValueError("an ensemble cannot act in tasks: evaluate one learner")
    source.require(learner)
    scores, seeds = list[Tensor](), torch.Generator().manual_seed(seed)
    for number, start in enumerate(range(0, num_tasks, batch)):
        own = int(torch.randint(2**31 - 1, (1,), generator=seeds))
        if number % world.size == world.rank:
            generator = torch.Generator().manual_seed(own)
            scores.append(source.returns(learner, min(batch, num_tasks - start), steps, generator))
    return _gathered(world, scores)


def _gathered(world: World, scores: list[Tensor]) -> Tensor:
    """Concatenate the scores of all processes, which took turns with batches."""
    turns = zip_longest(*world.all_gather(scores))
    return torch.cat([part for turn in turns for part in turn if part is not None])


def _check(num_tasks: int, batch: int, steps: int | None) -> None:
    if num_tasks < 2 or batch < 1 or (steps is not None and steps < 0):
        raise ValueError(
            f"an evaluation needs num_tasks >= 2 (for the interval), batch >= 1 and steps >= 0; "
            f"got num_tasks={num_tasks}, batch={batch}, steps={steps}"
        )


def _drawing(source: TaskSource, num_tasks: int, generator: torch.Generator) -> tuple[Callable[[int], Tasks], int]:
    """Return a function that draws the next tasks, and the number of tasks to evaluate."""
    if isinstance(source, MixedSource):
        return _drawing_mixed(source, num_tasks, generator)
    if not isinstance(source, FiniteSource):
        return partial(_draw, source, generator=generator), num_tasks
    if len(source) < 2:
        raise ValueError(f"an evaluation needs at least 2 tasks (for the interval), and the source has {len(source)}")
    order = iter(torch.randperm(len(source), generator=generator).tolist())
    return lambda n: joined([source.task(index, generator) for index in islice(order, n)]), min(num_tasks, len(source))


def _order(source: TaskSource, num_tasks: int) -> Sequence[str]:
    """Return the set of each task, if the source has several."""
    return source.order(num_tasks) if isinstance(source, MixedSource) else ()


def _drawing_mixed(
    source: MixedSource, num_tasks: int, generator: torch.Generator
) -> tuple[Callable[[int], Tasks], int]:
    """Do so for a mixture. Each set has its own generator, so its tasks do not depend on the weights."""
    order, drawings, left = source.order(num_tasks), dict[str, Callable[[int], Tasks]](), dict[str, int]()
    for name, each in source.sources.items():
        own = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, (1,), generator=generator)))
        drawings[name], left[name] = _drawing(each, num_tasks, own)
    for number, name in enumerate(order):
        left[name] -= 1
        if left[name] < 0:
            order = order[:number]
            break
    names = iter(order)
    return lambda n: joined([singles(drawings[name](1))[0] for name in islice(names, n)]), len(order)


def _draw(source: TaskSource, n: int, generator: torch.Generator) -> Tasks:
    # One task at a time: what a source draws for n tasks at once depends on n.
    # If a source returns more tasks than requested, only the first counts, so that there are n scores.
    return joined([singles(select(source.sample(1, generator), slice(0, 1)))[0] for _ in range(n)])


def _first(tasks: Tasks) -> Task:
    return tasks[0] if isinstance(tasks, list) else tasks


@torch.no_grad()
def score(judge: Any, output: Any, y: Any) -> Tensor:
    """Return scores ``[T, A]`` after A numbers of steps, from outputs ``[T, A, Q, ...]`` and targets ``[T, Q, ...]``.

    The function ``(output, y) -> scalar`` scores one task.
    """
    tasks, points = pytree.tree_leaves(output)[0].shape[:2]

    def one(t: int, k: int) -> Tensor:
        given, target = select(select(output, t), k), select(y, t)
        with RefusedBroadcasts(given, target, "metric") if t == k == 0 else nullcontext():  # all have the same shapes
            return judge(given, target)  # type: ignore[no-any-return]

    rows = [[one(t, k) for k in range(points)] for t in range(tasks)]
    return torch.stack([torch.stack(row) for row in rows])


def _predictions(output: Any) -> tuple[int, int]:
    """Return the number of outputs ``[T, A, Q, ...]`` that hold NaN or infinity, and the number of all outputs.

    Minus infinity is allowed, because it is the logit of a class that is ruled out.
    """
    leaves = floating(output)
    bad = (leaf.isnan() | leaf.isposinf() for leaf in leaves)
    number = sum(int((leaf.flatten(3).any(3) if leaf.ndim > 3 else leaf).sum()) for leaf in bad)
    return number, sum(math.prod(leaf.shape[:3]) for leaf in leaves)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's random state while entered."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _warn(scale: Scale, counts: Sequence[tuple[int, int]], scores: Tensor) -> None:
    """Warn, once for an evaluation, that outputs or scores are not finite."""
    (bad, every), lost = map(sum, zip(*counts, strict=True)), int((~scores.isfinite()).sum())
    if not bad and not lost:
        return
    message = f"{bad:,} of {every:,} outputs of the model are not finite (NaN or infinity)" if bad else ""
    if lost:
        message += f"{' and so' if bad else ''} {lost:,} of {scores.numel():,} scores ({scale.name}) are not finite"
    else:
        message += f"; those with NaN count as wrong ({scale.name})"
    hint = "adaptation or training diverged: a smaller inner or outer lr often helps"
    depth, frame = 2, sys._getframe(2)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "innerloop":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(f"{message.strip()}; {hint}", stacklevel=depth + 1)


def judged_by(learner: MetaLearner | Ensemble, source: Source, metric: Judged | None = None) -> Scale:
    """Return the name, direction and unit of the scores of an evaluation on this source.

    Raises:
        ValueError: the metric is unknown or has no known direction, or is given although the learner acts.
    """
    if isinstance(source, InteractiveSource):
        scale = Scale.of(source.metric)
        if metric is not None:
            raise ValueError(f"the learner acts in these tasks, and their metric is {scale.name}: leave out metric")
        return scale
    if (known := chosen(metric, learner.loss)) is not None:
        return Scale.of(known)
    tasks = source.sample(1, torch.Generator().manual_seed(0))
    return Scale.of(default(learner.loss, _first(tasks).query.y))
