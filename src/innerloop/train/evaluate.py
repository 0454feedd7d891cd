"""How well a learner adapts to unseen tasks: a mean over tasks, its interval, and the curve over inner steps."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from ..task import FiniteSource, InteractiveSource, Source, Task, Tasks, TaskSource, joined, select, singles, to
from .accuracy import accuracy as accuracy
from .accuracy import floating
from .ensemble import Ensemble
from .metrics import Judge, Judged, chosen, default
from .world import World


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation over N tasks found.

    Attributes:
        metric: its name.
        higher_is_better: true where more is better, such as for accuracy; false for errors and losses.
        unit: of the scores, such as ``"%"``; empty if they have none.
        mean: over tasks, after the last step.
        ci95: half the width of its 95 % interval, 1.96 standard errors over tasks.
        num_tasks: N.
        steps: the mean after 0, 1, ..., K inner steps.
        steps_ci95: the half width for each of them.
        transductive: whether a prediction depended on the other query examples: batch norm saw the whole query set
            (see `MetaLearner.predict`), and went by its statistics.
        scores: ``[N, K + 1]``; of every task after every number of steps, float64 on the CPU.
        acting: whether the learner acted in the tasks, and predicted nothing.
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

    @classmethod
    def of(cls, scores: Tensor, scale: Scale, transductive: bool, acting: bool = False) -> Evaluation:
        """From the scores ``[N, K + 1]`` of N >= 2 tasks."""
        scores = scores.double().cpu()
        means, half = scores.mean(0), 1.96 * scores.std(0, correction=1) / math.sqrt(len(scores))
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
        )

    @property
    def scale(self) -> Scale:
        """How the scores are read."""
        return Scale(self.metric, self.higher_is_better, self.unit)

    @property
    def mode(self) -> str:
        """``"transductive"`` or ``"inductive"``; where nothing is predicted but something done, ``"acting"``."""
        return "acting" if self.acting else "transductive" if self.transductive else "inductive"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the attributes without ``scores``."""
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
        }

    def __str__(self) -> str:
        number, unit = self.scale.digits(), self.scale.suffix
        taken = len(self.steps) - 1
        return (
            f"{self.metric} {self.mean:{number}} +- {self.ci95:{number}}{unit} after {taken} "
            f"step{'' if taken == 1 else 's'} ({self.steps[0]:{number}} before) "
            f"[{self.num_tasks} tasks, 95 % interval, {self.mode}]"
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

    The learner (without dropout meanwhile), torch's random state and everybody's generators are afterwards what they
    were before. Memory does not grow with the number of tasks. A warning says where outputs or scores are not finite.

    Args:
        learner: what to evaluate, or several together; tasks are moved to its device.
        source: where the tasks come from. In those of an `InteractiveSource` the learner acts, and what it comes to
            is the score; ``transductive`` then says nothing, and no ``metric`` is given.
        num_tasks: at least 2. The first tasks of a longer evaluation are those of a shorter one; of those that are
            acted in, the first whole batches. A `FiniteSource` with fewer tasks is evaluated on each of them once.
        steps: inner steps, which may exceed the trained number; ``None`` takes as many as in training.
        transductive: whether batch norm sees a task's whole query set; see `MetaLearner.predict`.
        metric: the name of one (`innerloop.train.METRICS`), an `innerloop.Metric`, a metric of torchmetrics, or a loss
            of torch. If not given: the learner's own outer loss, or, if that is plain cross-entropy and the targets
            are class indices, accuracy.
        seed: of the tasks: the same seed gives the same ones, whatever ``batch``, unless they are acted in.
        batch: how many tasks are adapted at once.
        world: the processes that share the work, all of which make this call, and get the same result.

    Raises:
        ValueError: a number out of range, or a metric that is unknown, does not say its direction, or does not fit.
    """
    _check(num_tasks, batch, steps)
    world, device, parts = world or World(), next(learner.parameters()).device, list[tuple[Tensor, tuple[int, int]]]()
    if isinstance(source, InteractiveSource):
        scale = judged_by(learner, source, metric)
        return Evaluation.of(_lived(learner, source, num_tasks, steps, seed, batch, world), scale, False, acting=True)
    known, generator = chosen(metric, learner.loss), torch.Generator().manual_seed(seed)
    drawn, num_tasks = _drawing(source, num_tasks, generator)
    with _seeded(device, seed):
        for start in range(0, num_tasks, batch):
            tasks = drawn(min(batch, num_tasks - start))
            known = known or default(learner.loss, _first(tasks).query.y)
            if start // batch % world.size == world.rank:  # dealt out in turn
                parts.append(_judged(learner, known, to(tasks, device), steps, transductive))
    found, scale = _gathered(world, [scores for scores, _ in parts]), Scale.of(known)
    _warn(scale, [counts for each in world.all_gather([counts for _, counts in parts]) for counts in each], found)
    return Evaluation.of(found, scale, transductive and learner.depends_on_query_set)


def _judged(
    learner: MetaLearner | Ensemble, metric: Metric, tasks: Tasks, steps: int | None, transductive: bool
) -> tuple[Tensor, tuple[int, int]]:
    """The scores ``[T, K + 1]`` of tasks, and how many outputs are not finite, of how many."""
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
    """Try on two tasks what `evaluate` does, so that a metric that does not fit is an error before anything is trained.

    How tasks run quickest is not measured, and random states are left as they were. Nothing is acted in. Arguments that
    only say how much is evaluated do nothing.

    Raises:
        Exception: what `evaluate` raises.
    """
    if isinstance(source, InteractiveSource):
        source.require(learner)
        judged_by(learner, source, metric)
        return
    known = chosen(metric, learner.loss)
    device = next(learner.parameters()).device
    with _seeded(device, seed):
        tasks = to(_draw(source, 2, torch.Generator().manual_seed(seed)), device)
        judge = Judge(known or default(learner.loss, _first(tasks).query.y), learner.loss)
        for index in range(2):
            support, query = select(tasks, index)
            judge(learner.adapt(support, steps, transductive)(query.x), query.y)


def _lived(
    learner: MetaLearner | Ensemble,
    source: InteractiveSource,
    num_tasks: int,
    steps: int | None,
    seed: int,
    batch: int,
    world: World,
) -> Tensor:
    """The returns of acting in tasks, ``[N, K + 1]``.

    Each batch has its own generator, because the number of draws depends on what happens.
    """
    if isinstance(learner, Ensemble):
        raise ValueError("an ensemble does not act: evaluate one learner")
    source.require(learner)
    scores, seeds = list[Tensor](), torch.Generator().manual_seed(seed)
    for number, start in enumerate(range(0, num_tasks, batch)):
        own = int(torch.randint(2**31 - 1, (1,), generator=seeds))
        if number % world.size == world.rank:
            generator = torch.Generator().manual_seed(own)
            scores.append(source.returns(learner, min(batch, num_tasks - start), steps, generator))
    return _gathered(world, scores)


def _gathered(world: World, scores: list[Tensor]) -> Tensor:
    """Of all processes, whose batches were dealt out in turn."""
    turns = zip_longest(*world.all_gather(scores))
    return torch.cat([part for turn in turns for part in turn if part is not None])


def _check(num_tasks: int, batch: int, steps: int | None) -> None:
    if num_tasks < 2 or batch < 1 or (steps is not None and steps < 0):
        raise ValueError(
            f"an evaluation needs num_tasks >= 2 (for the interval), batch >= 1 and steps >= 0; "
            f"got num_tasks={num_tasks}, batch={batch}, steps={steps}"
        )


def _drawing(source: TaskSource, num_tasks: int, generator: torch.Generator) -> tuple[Callable[[int], Tasks], int]:
    """A function that draws the next so many tasks, and how many are evaluated."""
    if not isinstance(source, FiniteSource):
        return partial(_draw, source, generator=generator), num_tasks
    if len(source) < 2:
        raise ValueError(f"an evaluation needs at least 2 tasks (for the interval), and the source has {len(source)}")
    order = iter(torch.randperm(len(source), generator=generator).tolist())
    return lambda n: joined([source[index] for index in islice(order, n)]), min(num_tasks, len(source))


def _draw(source: TaskSource, n: int, generator: torch.Generator) -> Tasks:
    # One at a time: what a source draws for n tasks at once would depend on n.
    # Of one that draws more than it is asked for, the first, so that there are as many scores as tasks were asked for.
    return joined([singles(select(source.sample(1, generator), slice(0, 1)))[0] for _ in range(n)])


def _first(tasks: Tasks) -> Task:
    return tasks[0] if isinstance(tasks, list) else tasks


@torch.no_grad()
def score(judge: Any, output: Any, y: Any) -> Tensor:
    """Scores ``[T, A]`` after A numbers of steps, from outputs ``[T, A, Q, ...]`` and targets ``[T, Q, ...]``.

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
    """The number of outputs ``[T, A, Q, ...]`` that hold NaN or infinity, and the number of all outputs.

    Minus infinity is allowed: it is the logit of a class that is ruled out.
    """
    leaves = floating(output)
    bad = (leaf.isnan() | leaf.isposinf() for leaf in leaves)
    number = sum(int((leaf.flatten(3).any(3) if leaf.ndim > 3 else leaf).sum()) for leaf in bad)
    return number, sum(math.prod(leaf.shape[:3]) for leaf in leaves)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Within, torch's random state is that of a seed."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _warn(scale: Scale, counts: Sequence[tuple[int, int]], scores: Tensor) -> None:
    """Say, once for an evaluation, that outputs or scores are not finite."""
    (bad, every), lost = map(sum, zip(*counts, strict=True)), int((~scores.isfinite()).sum())
    if not bad and not lost:
        return
    told = f"{bad:,} of {every:,} outputs of the model are not finite (NaN or infinity)" if bad else ""
    if lost:
        told += f"{' and so' if bad else ''} {lost:,} of {scores.numel():,} scores ({scale.name}) are not finite"
    else:
        told += f"; those with NaN count as wrong ({scale.name})"
    hint = "adaptation or training diverged: a smaller inner or outer lr often helps"
    depth, frame = 2, sys._getframe(2)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "innerloop":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(f"{told.strip()}; {hint}", stacklevel=depth + 1)


def judged_by(learner: MetaLearner | Ensemble, source: Source, metric: Judged | None = None) -> Scale:
    """How the scores are read that an evaluation on tasks of this source has.

    Raises:
        ValueError: the metric is none, or one is given where the learner acts.
    """
    if isinstance(source, InteractiveSource):
        scale = Scale.of(source.metric)
        if metric is not None:
            raise ValueError(f"these tasks are acted in and judged by their own metric, {scale.name}: leave out metric")
        return scale
    if (known := chosen(metric, learner.loss)) is not None:
        return Scale.of(known)
    tasks = source.sample(1, torch.Generator().manual_seed(0))
    return Scale.of(default(learner.loss, _first(tasks).query.y))
