"""What the library computes for a case, beside what the oracle does: differences, and whose fault they are."""

from __future__ import annotations

import copy
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import innerloop as il

from .models import Case, Problem, build, default
from .oracle import Constants, Oracle, Tensors

PLANS: dict[str, dict[str, Any]] = {
    "looped": {"vectorize": False},
    "vectorized": {"vectorize": True},
    "threads": {"vectorize": (2, 2)},
    "constant": {"vectorize": True, "memory": "constant"},
    "constant, looped": {"vectorize": False, "memory": "constant"},
    "compiled": {"vectorize": True, "compile": True},
}
TOLERANCE = 1e-8
STOPPED = ("spectral_norm", "Average")
"""Layers that take what they computed for constant, so that differences say nothing of their derivatives."""
EXCUSED = ("torch is wrong", "rounding", "kink")
"""Verdicts that do not speak against the library."""
GRADIENTS = ("meta-gradient", "backward", "once more")


class Refused(Exception):  # noqa: N818 - not an error of the fuzzer
    """The library, or torch, gives no result."""


@dataclass
class Difference:
    """Between a result and the oracle's.

    Attributes:
        plan: by which it was computed.
        result: which.
        error: relative to the largest entry.
        verdict: "library is wrong", "torch is wrong" (by central differences), "both are wrong", "undecided",
            "rounding", "kink" (gone with other data), or what became of the model.
        detail: the tensor that differs most.
    """

    plan: str
    result: str
    error: float
    verdict: str
    detail: str = ""


@dataclass
class Report:
    """Of one case.

    Attributes:
        status: "compared", or why not.
        kinds: classes of the model's layers.
        refused: by plan and result, in the library's words.
        differences: all of them.
    """

    case: Case
    status: str = "compared"
    kinds: set[str] = field(default_factory=set)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    compared: int = 0
    found: dict[tuple[str, str], Tensors] = field(default_factory=dict)

    @property
    def faults(self) -> list[Difference]:
        """Those that speak against the library."""
        return [d for d in self.differences if d.verdict not in EXCUSED]


# -- numbers ----------------------------------------------------------------------------------------------------------


def tensors(result: Any, name: str = "") -> Tensors:
    """A result's tensors by name, detached, in double precision."""
    if isinstance(result, Tensor):
        return {name: result.detach().double() if result.dtype != torch.float64 else result.detach()}
    if isinstance(result, dict):
        return {k: t for key, part in result.items() for k, t in tensors(part, f"{name}{key}").items()}
    raise TypeError(type(result).__name__)


def error(got: Tensors, want: Tensors, floor: float = 1e-10) -> tuple[float, str]:
    """The largest difference, relative to the largest entry of its tensor (or a thousandth of all tensors').

    Args:
        got: what is judged.
        want: what is right.
        floor: the least that differences are taken relative to.
    """
    if got.keys() != want.keys():
        return float("inf"), f"names {sorted(got.keys() ^ want.keys())}"
    most = max((float(t.abs().max()) for t in want.values() if t.numel()), default=0.0)
    worst = 0.0, ""
    for name, expected in want.items():
        found = got[name]
        if found.shape != expected.shape:
            return float("inf"), f"{name}: shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
        if not expected.numel():
            continue
        scale = max(float(expected.abs().max()), 1e-3 * most, floor)
        apart = float((found - expected).abs().max()) / scale
        if not apart <= worst[0]:  # not a number is apart, too
            worst = (apart if apart == apart else float("inf")), name
    return worst


def finite(values: Tensors) -> bool:
    return all(bool(t.isfinite().all()) for t in values.values())


def outcome_of(results: list[Any]) -> Tensors:
    steps = [torch.stack(r.steps) if r.steps else r.loss.new_zeros(0) for r in results]
    return tensors({
        "objective": torch.stack([r.objective for r in results]), "loss": torch.stack([r.loss for r in results]),
        "output": torch.stack([r.output for r in results]), "steps": torch.stack(steps),
    })  # fmt: skip


# -- what the model is afterwards -------------------------------------------------------------------------------------


class Before:
    """A learner's modules, to see that they are what they were."""

    def __init__(self, *modules: Any) -> None:
        self.modules = [part for module in modules if isinstance(module, nn.Module) for part in module.modules()]
        self.tensors = [
            (i, kind, name, tensor, tensor.detach().clone())
            for i, part in enumerate(self.modules)
            for kind in ("_parameters", "_buffers")
            for name, tensor in getattr(part, kind).items()
            if tensor is not None
        ]
        self.modes = [part.training for part in self.modules]
        self.names = [set(vars(part)) for part in self.modules]
        self.wholes = [module for module in modules if isinstance(module, nn.Module)]
        self.copied, self.saved = self._copies(), self._saves()

    def _copies(self) -> str:
        return _fails(lambda: copy.deepcopy(self.wholes))

    def _saves(self) -> str:
        return _fails(lambda: torch.save(self.wholes, io.BytesIO()))

    def changes(self) -> Iterator[str]:
        for i, kind, name, tensor, value in self.tensors:
            part = self.modules[i]
            now = getattr(part, kind).get(name)
            where = f"{type(part).__name__}.{name}"
            if now is not tensor:
                yield f"{where} is another object, a {type(now).__name__}"
            elif not torch.equal(now.detach(), value) and not bool(value.isnan().any()):
                yield f"{where} has another value"
            elif now.grad is not None:
                yield f"{where} has a gradient"
        for part, mode, names in zip(self.modules, self.modes, self.names, strict=True):
            if part.training != mode:
                yield f"{type(part).__name__} is in another mode"
            if extra := set(vars(part)) ^ names:
                yield f"{type(part).__name__} has other attributes: {sorted(extra)}"
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and (torch._C._functorch.is_functorch_wrapped_tensor(value)):
                    yield f"{type(part).__name__}.{name} is a {type(value).__name__} of a transform"
            if isinstance(part, nn.RNNBase):
                own = [getattr(part, n) for n in part._flat_weights_names]
                if any(a is not b for a, b in zip(part._flat_weights, own, strict=True)):
                    yield "the flat weights of a recurrent layer are other objects"
        if not self.copied and (why := self._copies()):
            yield f"it cannot be copied any more: {why}"
        if not self.saved and (why := self._saves()):
            yield f"it cannot be saved any more: {why}"


def _fails(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as why:
        return first_line(why)
    return ""


def first_line(why: BaseException) -> str:
    return f"{type(why).__name__}: {(str(why).splitlines() or [''])[0]}"


# -- the library ------------------------------------------------------------------------------------------------------


class Library:
    """Results of a learner for a problem."""

    def __init__(self, problem: Problem, plan: str, direction: Tensors, further: int) -> None:
        self.problem, self.direction, self.further = problem, direction, further
        self.learner = problem.learner(**PLANS[plan])
        self.gradient: Tensors = {}

    def meta_gradient(self) -> dict[str, Tensors]:
        grads, outcome = self.learner.meta_gradient(self.problem.tasks)
        self.gradient = tensors(grads)
        return {"outcome": tensors(outcome._asdict()), "meta-gradient": self.gradient}

    def backward(self) -> dict[str, Tensors]:
        outcome = self.learner(self.problem.tasks)
        outcome.objective.mean().backward()
        learned = {n: p for n, p in self.learner.named_parameters() if p.requires_grad}
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learned.items()}
        for p in learned.values():
            p.grad = None
        return {"outcome": tensors(outcome._asdict()), "backward": tensors(grads)}

    def once_more(self) -> dict[str, Tensors]:
        learned = {n: p for n, p in self.learner.named_parameters() if p.requires_grad}
        by = list(learned.values())
        mean = self.learner(self.problem.tasks).objective.mean()
        grads = torch.autograd.grad(mean, by, create_graph=True, allow_unused=True, materialize_grads=True)
        dot = sum((g * self.direction[n].to(g)).sum() for n, g in zip(learned, grads, strict=True))
        if isinstance(dot, Tensor) and dot.requires_grad:
            second = torch.autograd.grad(dot, by, allow_unused=True, materialize_grads=True)
        else:
            second = tuple(torch.zeros_like(p) for p in by)
        return {"backward": tensors(dict(zip(learned, grads, strict=True))),
                "once more": tensors(dict(zip(learned, second, strict=True)))}  # fmt: skip

    def predict(self, transductive: bool) -> Tensors:
        return tensors({"": self.learner.predict(self.problem.tasks, self.further, transductive)})

    def adapt(self, transductive: bool) -> dict[str, Tensors]:
        task = il.task.select(self.problem.tasks, 0)
        adapted = self.learner.adapt(task.support, self.further, transductive)
        found = {
            "shared memory": self._shared(adapted.parameters),
            "adapted parameters": tensors(dict(adapted.parameters)),
            "adapted losses": tensors({"": adapted.losses}),
            "adapted output": tensors({"": adapted(task.query.x)}),
        }
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.learner.model.modules())
        if transductive and not norms:
            with torch.no_grad():
                found["adapted module"] = tensors({"": adapted.module()(task.query.x)})
        return found

    def _shared(self, parameters: Tensors) -> Tensors:
        """How many of a result's tensors would change if the model were trained on."""
        own = {p.untyped_storage().data_ptr() for p in self.learner.parameters()}
        number = sum(t.untyped_storage().data_ptr() in own for t in parameters.values())
        return {"": torch.tensor(float(number), dtype=torch.float64)}

    def adapt_all(self) -> dict[str, Tensors]:
        adapted = self.learner.adapt_all(self.problem.tasks.support, self.further)
        return {
            "shared memory": self._shared(adapted.parameters),
            "all adapted parameters": tensors(dict(adapted.parameters)),
            "all adapted output": tensors({"": adapted(self.problem.tasks.query.x)}),
        }


class Expected:
    """Results of the oracle for the same, each computed when first asked for."""

    def __init__(self, problem: Problem, oracle: Oracle, direction: Tensors, further: int) -> None:
        self.problem, self.oracle, self.direction, self.further = problem, oracle, direction, further
        self.known: dict[str, Tensors | Refused] = {}
        self.slope: tuple[Tensor, float] | None = None

    def __getitem__(self, result: str) -> Tensors:
        if result not in self.known:
            try:
                with default(self.oracle.dtype if self.oracle.dtype == torch.float64 else torch.float32):
                    self.known.update(self._compute(result))
            except Exception as why:
                self.known[result] = Refused(first_line(why))
        found = self.known[result]
        if isinstance(found, Refused):
            raise found
        return found

    def _compute(self, result: str) -> dict[str, Tensors]:
        oracle, tasks = self.oracle, self.problem.tasks
        if result == "outcome":
            return {"outcome": outcome_of(oracle.outcome(tasks))}
        if result.startswith("shared memory"):
            return {result: {"": torch.zeros((), dtype=torch.float64)}}
        if result in ("meta-gradient", "backward"):
            grads = tensors(oracle.meta_gradient(oracle.outcome(tasks), graph=False))
            return {"meta-gradient": grads, "backward": grads}
        if result == "once more":
            grads = oracle.meta_gradient(oracle.outcome(tasks), graph=True)
            return {"once more": tensors(oracle.once_more(grads, self.direction))}
        if result.startswith("predict"):
            return {result: tensors({"": oracle.predict(tasks, self.further, result == "predict")})}
        rows = oracle.tasks(tasks)
        if result.startswith("adapted"):
            params, losses, buffers = oracle.adapt(rows[0], self.further)
            output = oracle.answer(params, buffers, rows[0], "inductive" not in result)
            outputs = tensors({"": output})
            kind = " inductive" if "inductive" in result else ""
            return {"adapted parameters" + kind: tensors(params), "adapted losses" + kind: tensors({"": losses}),
                    "adapted output" + kind: outputs, "adapted module": outputs}  # fmt: skip
        each = [oracle.adapt(row, self.further) for row in rows]
        answers = [oracle.answer(p, b, row, True, least=1) for (p, _, b), row in zip(each, rows, strict=True)]
        return {
            "all adapted parameters": tensors({n: torch.stack([p[n] for p, _, _ in each]) for n in each[0][0]}),
            "all adapted output": tensors({"": torch.stack(answers)}),
        }


# -- central differences ----------------------------------------------------------------------------------------------


def central(function: Callable[[float], Tensor]) -> tuple[Tensor, float]:
    """The derivative at 0, and about how wrong it may be: over smaller steps where there are kinks nearby."""
    found = _richardson(function, 2e-2)
    for h in (2e-3, 2e-4):
        if found[1] <= 1e-10 * float(found[0].abs().max() + 1e-6):
            break
        found = min(found, _richardson(function, h), key=lambda pair: pair[1])
    return found


def _richardson(function: Callable[[float], Tensor], h: float) -> tuple[Tensor, float]:
    """By two rounds of Richardson's extrapolation."""
    slopes = [(function(h / k) - function(-h / k)) * k / (2 * h) for k in (1, 2, 4)]
    first, second = ((4 * b - a) / 3 for a, b in itertools.pairwise(slopes))
    best = second + (second - first) / 15
    return best, float((second - first).abs().max()) / 5 + 1e-15 / h * float(best.abs().max() + 1)


def _moved(theta: Tensors, direction: Tensors, by: float) -> Tensors:
    return {
        n: (t.detach() + by * direction[n] if n in direction else t.detach()).requires_grad_() for n, t in theta.items()
    }


def _verdict(got: Tensor, want: Tensor | None, truth: Tensor, doubt: float) -> str:
    """Who is near the truth."""
    scale = max(float(truth.abs().max()), *(float(t.abs().max()) for t in (got, want) if t is not None), 1e-12)
    apart = float((got - (truth if want is None else want)).abs().max())
    near = 10 * doubt + (1e-8 * scale if want is None else min(1e-9 * scale, 0.25 * apart))
    if near > 0.3 * apart and not (want is None and apart <= near < 1e-4 * scale):
        return "undecided"
    library = float((got - truth).abs().max()) <= near
    torch_ = want is not None and float((want - truth).abs().max()) <= near
    return {(True, False): "torch is wrong", (False, True): "library is wrong", (True, True): "undecided"}.get(
        (library, torch_), "both are wrong" if want is not None else "library is wrong"
    )


class Judge:
    """Decides by central differences of a lower derivative."""

    def __init__(self, library: Library, expected: Expected) -> None:
        self.library, self.expected, self.oracle = library, expected, expected.oracle
        self.tasks = library.problem.tasks
        objective = library.learner.objective
        self.stopped = any(name in library.problem.case.model for name in STOPPED)
        self.constant = not (isinstance(objective, il.Unrolled) and objective.order == 2)

    def gradient(self, got: Tensors, want: Tensors | None) -> str:
        """By the objective, in one random direction."""
        if self.stopped or isinstance(self.library.learner.objective, il.Reptile):
            return "undecided" if want is None else "library is wrong"
        direction, constants = self.expected.direction, self._constants()

        def objective(by: float) -> Tensor:
            results = self.oracle.outcome(self.tasks, _moved(self.oracle.theta, direction, by), constants)
            return torch.stack([r.objective.detach() for r in results]).mean()

        def along(grads: Tensors) -> Tensor:
            return torch.stack([(grads[n] * direction[n]).sum() for n in direction]).sum()

        return _verdict(along(got), None if want is None else along(want), *central(objective))

    def _constants(self) -> list[Constants] | None:
        if not self.constant:
            return None
        constants = [Constants() for _ in self.oracle.tasks(self.tasks)]
        self.oracle.outcome(self.tasks, constants=constants)
        for one in constants:
            one.replay = True
        return constants

    def once_more(self, got: Tensors, want: Tensors | None, trusted: bool) -> str:
        """By the meta-gradient: the oracle's if it is known to be right, else the library's."""
        direction = self.expected.direction
        if self.stopped or isinstance(self.library.learner.objective, il.Reptile):
            return "undecided" if want is None else "library is wrong"
        if self.constant and not trusted:
            return "undecided"
        truth, doubt = self.central_once_more(trusted)
        return _verdict(_flat(got, direction), None if want is None else _flat(want, direction), truth, doubt)

    def central_once_more(self, trusted: bool) -> tuple[Tensor, float]:
        """The derivative of the meta-gradient, flat, and about how wrong it may be."""
        direction, constants = self.expected.direction, self._constants()

        def by_oracle(by: float) -> Tensor:
            theta = _moved(self.oracle.theta, direction, by)
            grads = self.oracle.meta_gradient(self.oracle.outcome(self.tasks, theta, constants), False, theta)
            return _flat(grads, direction)

        def by_library(by: float) -> Tensor:
            parameters = dict(self.library.learner.named_parameters())
            kept = {n: parameters[n].detach().clone() for n in direction}
            try:
                with torch.no_grad():
                    for n, v in direction.items():
                        parameters[n].add_(by * v)
                return _flat(self.library.learner.meta_gradient(self.tasks)[0], direction)
            finally:
                with torch.no_grad():
                    for n, value in kept.items():
                        parameters[n].copy_(value)

        if not trusted:
            return central(by_library)
        if self.expected.slope is None:
            self.expected.slope = central(by_oracle)
        return self.expected.slope


def _flat(grads: Tensors, like: Tensors) -> Tensor:
    return torch.cat([grads[n].detach().reshape(-1) for n in like])


# -- a case -----------------------------------------------------------------------------------------------------------


def direction_of(learner: il.MetaLearner, seed: int) -> Tensors:
    """A random direction in all meta-parameters, of length 1."""
    generator = torch.Generator().manual_seed(seed)
    learned = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    drawn = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in learned.items()}
    length = torch.cat([t.reshape(-1) for t in drawn.values()]).norm() if drawn else 1.0
    return {n: t / length for n, t in drawn.items()}


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)


def plans_of(case: Case, compiled: bool = False) -> list[str]:
    low = case.dtype != "float64"
    chosen = ["looped", "vectorized", *(["threads"] if case.tasks > 2 else [])]
    if "order=2" in case.objective or case.objective == "il.Unrolled()":
        chosen += ["constant", *(["constant, looped"] if case.seed % 3 == 0 else [])]
    return (
        ["looped", "vectorized", *(["constant"] if low and case.seed % 2 else [])]
        if low
        else chosen + ["compiled"] * compiled
    )


def check(
    case: Case, plans: list[str] | None = None, compiled: bool = False, data_seed: int = 0, settle: bool = True
) -> Report:
    """Compare all results of a case.

    Args:
        case: a learning problem.
        plans: names of `PLANS`; by default all that apply, but for compiling.
        compiled: whether that too.
        data_seed: other data for the same shapes.
        settle: whether to tell rounding and kinks from faults, which takes time.
    """
    report = Report(case)
    with warnings.catch_warnings(), default(torch.float64 if case.dtype == "float64" else torch.float32):
        warnings.simplefilter("ignore")
        torch.manual_seed(case.seed)
        _check(report, plans or plans_of(case, compiled), data_seed)
        if settle:
            _settle(report)
    return report


def _check(report: Report, plans: list[str], data_seed: int) -> None:
    case = report.case
    problem = build(case, data_seed)
    report.kinds = {_kind(part) for part in problem.model.modules()}
    further = case.steps + case.seed % 2
    try:
        learner = problem.learner(vectorize=False)
    except ValueError as why:
        report.status = f"no learner: {_normal(first_line(why))}"
        return
    direction = direction_of(learner, case.seed)
    expected = Expected(problem, Oracle(learner), direction, further)
    try:
        values = expected["outcome"]
    except Refused as why:
        report.status = f"torch refuses: {_normal(str(why))}"
        return
    if not finite(values) or max(float(t.abs().max()) for t in values.values() if t.numel()) > 1e6:
        report.status = "not finite"
        return
    low = None
    if case.dtype != "float64":
        low = Expected(problem, Oracle(learner, getattr(torch, case.dtype)), direction, further)
    before, data = Before(problem.model, problem.loss, problem.inner_loss), copy.deepcopy(problem.tasks)
    for plan in plans:
        with threads(2 if plan == "threads" else 1):
            _plan(report, problem, plan, expected, low)
        for change in before.changes():
            report.differences.append(Difference(plan, "the model afterwards", float("inf"), change))
        if not all(map(_same, problem.tasks.support + problem.tasks.query, data.support + data.query)):
            report.differences.append(Difference(plan, "the data afterwards", float("inf"), "they are changed"))
            return
        if any("value" in d.verdict or "object, a" in d.verdict for d in report.differences):
            return
    if low is None:
        _as_torch(report, problem, expected)
    report.found.clear()


def _as_torch(report: Report, problem: Problem, expected: Expected) -> None:
    """Find results that are as wrong as torch's, by those of another plan that are right, or by central differences."""
    for result in GRADIENTS:
        same = [plan for plan, name in report.found if name == result]
        apart = {d.plan: d for d in report.differences if d.result == result}
        agreeing = [plan for plan in same if plan not in apart]
        right = [plan for plan, d in apart.items() if d.verdict == "torch is wrong"]
        if not agreeing or (not right and (result != "once more" or report.case.seed % 3)):
            continue
        if right:
            truth = report.found[right[0], result]
        else:
            judge = Judge(Library(problem, "looped", expected.direction, expected.further), expected)
            try:
                want = expected[result]
            except Refused:
                continue
            if judge.stopped or isinstance(judge.library.learner.objective, il.Reptile):
                continue
            value, doubt = judge.central_once_more(trusted=True)
            flat = _flat(want, expected.direction)
            scale = max(float(value.abs().max()), float(flat.abs().max()), 1e-12)
            if float((flat - value).abs().max()) <= max(10 * doubt, 1e-6 * scale) or doubt > 1e-4 * scale:
                continue
            sizes = [t.numel() for t in want.values()]
            truth = {n: v.view_as(want[n]) for n, v in zip(want, value.split(sizes), strict=True)}
        for plan in agreeing:
            worst, where = error(report.found[plan, result], truth)
            report.differences.append(Difference(plan, result, worst, "as wrong as torch", where))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _kind(part: nn.Module) -> str:
    if type(part).__name__ == "Apply":
        return "a function"
    return type(part).__name__.removeprefix("Parametrized")


def _plan(report: Report, problem: Problem, plan: str, expected: Expected, low: Expected | None) -> None:
    library = Library(problem, plan, expected.direction, expected.further)
    calls: dict[str, Callable[[], Any]] = {"meta-gradient": library.meta_gradient}
    if plan == "compiled":
        calls["meta-gradient again"] = library.meta_gradient
    elif low is not None:
        calls["predict"] = lambda: {"predict": library.predict(True)}
    else:
        calls["once more" if plan != "threads" else "backward"] = (
            library.once_more if plan != "threads" else library.backward
        )
        if not plan.startswith("constant"):
            calls["predict"] = lambda: {"predict": library.predict(True)}
        if plan in ("looped", "vectorized") or (plan == "threads" and report.case.seed % 3 == 0):
            calls["predict inductive"] = lambda: {"predict inductive": library.predict(False)}
            calls["all adapted parameters"] = library.adapt_all
        if plan == "looped":
            calls["adapted parameters"] = lambda: library.adapt(True)
            calls["adapted parameters inductive"] = lambda: {
                f"{n} inductive": t for n, t in library.adapt(False).items()
            }
    for name, call in calls.items():
        try:
            found = call()
        except Exception as why:
            _refusal(report, plan, name, low or expected, why)
            for parameter in library.learner.parameters():
                parameter.grad = None
            continue
        for result, got in found.items():
            if result != "adapted module inductive":
                _compare(report, plan, result, got, library, expected, low)


def _refusal(report: Report, plan: str, name: str, expected: Expected, why: Exception) -> None:
    try:
        expected[name.removesuffix(" again")]
    except Refused:
        return  # torch does not know it either
    text = _normal(first_line(why))
    report.refused[plan, name] = text
    if not refusal(why):
        report.differences.append(Difference(plan, name, float("inf"), f"it fails: {text}"))


def refusal(why: Exception) -> bool:
    """Whether an error is an answer: one that says what is not done."""
    known = (
        "once_differentiable",
        "support automatic differentiation",
        "modified by an inplace operation",
        "not implemented",
        "cannot be vectori",
        "does not require grad",
    )
    return isinstance(why, ValueError | NotImplementedError) or any(part in str(why) for part in known)


def _normal(text: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\(([\w.]*\d[\w.]*)\)", "(...)", text))[:240]


def _compare(
    report: Report, plan: str, result: str, got: Tensors, library: Library, expected: Expected, low: Expected | None
) -> None:
    want: Tensors | None
    try:
        want = expected[result]
    except Refused:
        want = None
        if result not in GRADIENTS:
            return
    report.compared += 1
    if want is not None and not finite(want):
        return
    if low is not None:
        if want is not None:
            _compare_low(report, plan, result, got, want, low)
        return
    report.found[plan, result] = got
    apart, where = (float("inf"), "all") if want is None else error(got, want, _floor(result, expected))
    if apart <= TOLERANCE:
        return
    verdict = "library is wrong"
    if result in GRADIENTS and "shape" not in where and "names" not in where and finite(got):
        judge = Judge(library, expected)
        try:
            if result == "once more":
                verdict = judge.once_more(got, want, _trusted(judge, expected, library))
            else:
                verdict = judge.gradient(got, want)
        except Exception as why:
            verdict = f"undecided: {_normal(first_line(why))}"
    if want is None and verdict.startswith(("torch is wrong", "undecided")):
        return  # right where torch has no derivative, or nobody knows
    report.differences.append(Difference(plan, result, apart, verdict, where))


def _floor(result: str, expected: Expected) -> float:
    """Where a Hessian is zero, its products are the rounding of what cancels: a few last digits of the gradient."""
    if result != "once more":
        return 1e-10
    return max(1e-10, *(1e-6 * float(t.abs().max()) for t in expected["meta-gradient"].values() if t.numel()))


def _trusted(judge: Judge, expected: Expected, library: Library) -> bool:
    """Whether the oracle's meta-gradient is right, rather than the library's."""
    try:
        want = expected["meta-gradient"]
        got = library.gradient or library.meta_gradient()["meta-gradient"]
    except Exception:  # torch has no such derivative
        return False
    return error(got, want)[0] <= TOLERANCE or judge.gradient(got, want) == "library is wrong"


def _compare_low(report: Report, plan: str, result: str, got: Tensors, want: Tensors, low: Expected) -> None:
    """In low precision: as near to the result in double precision as a plain loop in low precision is, or nearly."""
    try:
        plain = low[result]
    except Refused:
        return
    if result == "outcome":
        got, want, plain = (
            {n: t for n, t in r.items() if n in ("loss", "output", "steps")} for r in (got, want, plain)
        )
    if got.keys() != want.keys() or any(got[n].shape != want[n].shape for n in want):
        report.differences.append(Difference(plan, result, float("inf"), "library is wrong", "names or shapes"))
        return
    whole, usual, found = (torch.cat([r[n].reshape(-1) for n in want]) for r in (want, plain, got))
    scale = float(whole.norm()) + 1e-6
    usual_error, apart = float((usual - whole).norm()) / scale, float((found - whole).norm()) / scale
    if not usual_error < 0.1:
        return
    floor = 1e-5 if report.case.dtype == "float32" else 0.1
    if not apart <= 10 * usual_error + floor:
        report.differences.append(Difference(plan, result, apart, "library is wrong", f"plain: {usual_error:.0e}"))


# -- rounding and kinks -----------------------------------------------------------------------------------------------


def _settle(report: Report) -> None:
    """Tell faults from what rounding, or a kink at these data, makes of right code."""
    suspects = [d for d in report.faults if d.error < float("inf") or "fails" not in d.verdict]
    suspects = [d for d in suspects if d.result != "the model afterwards" and "fails" not in d.verdict]
    if not suspects:
        return
    case = report.case
    plans = list(dict.fromkeys(d.plan for d in suspects))
    if case.dtype == "float64":
        condition = _condition(case)
        for d in suspects:
            if d.error < 1e-13 * condition:
                d.verdict = "rounding"
    if (decidable := _decidable(case)) is not None:
        known = {
            d.result: d.error
            for d in check(decidable, plans, settle=False).differences
            if d.verdict == "torch is wrong" and d.result in GRADIENTS
        }
        for d in suspects:
            if d.result in GRADIENTS and d.error <= 30 * max(known.values(), default=0.0):
                d.verdict = "torch is wrong"
    for d in (d for d in suspects if d.verdict == "undecided" and "Norm" in case.model):
        if _right_by_elementary_norms(case, d):
            d.verdict = "torch is wrong"
    again = [check(case, plans, data_seed=seed, settle=False) for seed in (1, 2)]
    found = [{(d.plan, d.result) for d in other.faults} for other in again]
    # In low precision values meet a kink often, such as the root of 0: there a fault has to show with all data.
    seen = set.union(*found) if case.dtype == "float64" else set.intersection(*found)
    torch_wrong = {(d.plan, d.result) for other in again for d in other.differences if d.verdict == "torch is wrong"}
    for d in suspects:
        if d.verdict == "undecided" and (d.plan, d.result) in torch_wrong - seen:
            d.verdict = "torch is wrong"
        elif d.verdict not in EXCUSED and (d.plan, d.result) not in seen and any(o.status == "compared" for o in again):
            d.verdict = "kink"


def _decidable(case: Case) -> Case | None:
    """A case like one that central differences cannot decide about, for which they can."""
    unwrapped = (
        re.sub(r"^nn\.utils\.(?:parametrizations\.)?spectral_norm\((.*)\)$", r"\1", text) for text in case.layers
    )
    layers = tuple("nn.Identity()" if text == "Average()" else text for text in unwrapped)
    other = replace(case, layers=layers, dtype="float64")
    if "Unrolled" not in case.objective:  # by the gradient of the loss alone, of which inner steps are made
        other = replace(other, objective="il.Unrolled()", steps=0)
    return other if other != case else None


def _right_by_elementary_norms(case: Case, difference: Difference) -> bool:
    """Whether a gradient of the library's is that of norms by elementary operations."""
    problem, further = build(case), case.steps + case.seed % 2
    learner = problem.learner(vectorize=False)
    direction = direction_of(learner, case.seed)
    library = Library(problem, difference.plan, direction, further)
    call = {"meta-gradient": library.meta_gradient, "backward": library.backward, "once more": library.once_more}
    want = Expected(problem, Oracle(learner, elementary=True), direction, further)[difference.result]
    return error(call[difference.result]()[difference.result], want, 1e-10)[0] <= TOLERANCE


def _condition(case: Case) -> float:
    """By how much the oracle's results grow a small relative change of parameters."""
    problem = build(case)
    learner = problem.learner(vectorize=False)
    oracle, tiny, most = Oracle(learner), 1e-12, 1.0
    direction = direction_of(learner, case.seed)
    if "Reptile" in case.objective:  # what is left of the parameters when nearly the same are subtracted
        grads = oracle.meta_gradient(oracle.outcome(problem.tasks), graph=False)
        return float(_flat(oracle.theta, grads).abs().max() / (_flat(grads, grads).abs().max() + 1e-300))
    try:
        base = oracle.meta_gradient(oracle.outcome(problem.tasks), graph=True)
        second = tensors(oracle.once_more(base, direction))
        for name, value in oracle.theta.items():
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)), dtype=value.dtype)
            oracle.theta[name] = (value.detach() * (1 + tiny * noise)).requires_grad_()
        moved = oracle.meta_gradient(oracle.outcome(problem.tasks), graph=True)
        most = max(most, error(tensors(moved), tensors(base))[0] / tiny)
        most = max(most, error(tensors(oracle.once_more(moved, direction)), second)[0] / tiny)
    except Exception:  # no second derivative: then none was compared
        return most
    return most
