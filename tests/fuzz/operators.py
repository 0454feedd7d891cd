"""Torch's operators through an inner loop: its own list of them, with samples (``op_db``).

`python -m tests.fuzz.operators NAME [NAME ...]` says of each what became of it; `--write` goes through all of them
(half an hour), keeps what was found in ``operators.json``, and writes ``docs/torch.md`` from it. Torch's list needs the
package expecttest.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from innerloop.operations.replacements import TaskOperations
from tests.fuzz.cases import Case, Found, Oracle, by_differences, derivative_errors, innerloop

SAMPLES, ELEMENTS = 6, 5_000
EXACT, SMOOTH, SINGLE = 1e-8, 1e-4, 1e-6
"""What may differ, relative: from the plain loop; from finite differences; from the plain loop where that takes a sixth
in single precision, which torch's hard sigmoid does."""

BEYOND = "right, also in second order, which torch does not have"


@dataclass
class Verdict:
    """What was found of a case.

    Attributes:
        name: of the operator, the sample, and how it was called.
        wrong: the first of torch's derivatives that is wrong (by finite differences), if any.
        order: 2 if the plain loop can differentiate through an inner gradient, else 1.
        looped, vectorized: "right", or why it was refused, or by how much it differs.
        torch: the same of torch's own operations, vectorized.
    """

    name: str
    order: int = 2
    wrong: int | None = None
    errors: list[float | None] | None = None
    looped: str = ""
    vectorized: str = ""
    torch: str = ""

    @property
    def silent(self) -> bool:
        """Whether something is wrong and nothing says so."""
        return self.looped.startswith("differs") or self.vectorized.startswith("differs")


def judge(name: str, case: Case, dtype: torch.dtype = torch.float64, check: bool = True) -> Verdict | None:
    """A case through the inner loop; ``None`` if it is none (nothing to differentiate, values that are not finite)."""
    expected = None
    for order, again in ((2, True), (2, False), (1, False)):
        oracle = Oracle(case, order=order)
        try:
            rate = oracle.rate()
            expected = oracle(rate, again)
            break
        except ValueError:
            return None
        except (RuntimeError, NotImplementedError, TypeError, IndexError, AssertionError):
            continue
    if expected is None or not expected.objective.isfinite().all():
        return None
    verdict = Verdict(name, order)
    if check:
        verdict.errors = [e and float(f"{e:.0e}") for e in derivative_errors(case)]
        verdict.wrong = next((i for i, e in enumerate(verdict.errors, 1) if e is not None and not e <= SMOOTH), None)
        if order == 2 and not again and verdict.wrong is None:
            verdict.wrong = 3  # torch has none, and we may
    if not all(value.isfinite().all() for value in expected.again.values()):
        verdict.wrong, expected.again = verdict.wrong or 3, {}  # as finite differences are to say
    verdict.looped, verdict.vectorized = (
        _compare(name, case, dtype, rate, order, v, expected, verdict.wrong, oracle.size) for v in (False, True)
    )
    if check:
        with mock.patch.object(TaskOperations, "__torch_function__", _as_it_is):
            verdict.torch = _compare(name, case, dtype, rate, order, True, expected, verdict.wrong, oracle.size)
    return verdict


def _as_it_is(mode: Any, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return func(*args, **(kwargs or {}))


def _compare(
    name: str,
    case: Case,
    dtype: torch.dtype,
    rate: float,
    order: int,
    vectorize: bool,
    expected: Found,
    wrong: int | None,
    size: float,
) -> str:
    try:
        found = innerloop(case, dtype, rate, order, vectorize)
        beyond = _beyond(case, dtype, rate, vectorize) if order == 1 else None
    except (ValueError, NotImplementedError, RuntimeError, TypeError) as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
    except AssertionError as error:
        return f"differs from itself: {error}"
    if order == 2 and wrong in (2, 3) and (off := by_differences(case, rate, wrong, found)) is not None:
        return "right" if off < SMOOTH else f"differs by {off:.0e} from finite differences"
    if beyond is not None and not beyond <= SMOOTH:
        return f"differs by {beyond:.0e} from finite differences in second order"
    difference = found.difference(expected, size)
    exact = SINGLE if "ardsigmoid" in name else EXACT
    right = "right" if beyond is None else BEYOND
    return right if difference < exact else f"differs by {difference:.0e}"


def _beyond(case: Case, dtype: torch.dtype, rate: float, vectorize: bool) -> float | None:
    """How much a second-order meta-gradient is wrong that the plain loop does not have; ``None`` if there is none."""
    try:
        found = innerloop(case, dtype, rate, 2, vectorize, again=False)
    except (ValueError, NotImplementedError, RuntimeError, TypeError):
        return None
    return by_differences(case, rate, 2, found)


# -- torch's list -----------------------------------------------------------------------------------------------------


def operators() -> dict[str, Any]:
    """Name -> operator of torch's list."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in op_db}


def cases(name: str, op: Any, dtype: torch.dtype = torch.float64, samples: int = SAMPLES) -> Iterator[tuple[str, Case]]:
    """Some samples of an operator, with constants that all tasks share and that each has its own of."""
    if dtype not in op.supported_dtypes("cpu") or not op.supports_autograd:
        return
    found = list(op.sample_inputs("cpu", dtype, requires_grad=True))
    if "wrapper_set_seed" in getattr(getattr(op.op, "__code__", None), "co_names", ()):
        found = [sample for sample in found if not _draws(op, sample)]
    some = found[:: max(1, -(-len(found) // samples))]
    variants = {"": op.op, "method": op.method_variant, "in place": _in_place(op.inplace_variant)}
    for index, sample in enumerate(some):
        for kind, function in variants.items():
            if function is None or (kind and index):
                continue
            for varied in (False, True)[: 1 if kind else 2]:
                case = _case(function, sample, varied)
                if case is not None:
                    yield f"{name} {index} {kind} {'varied' if varied else ''}".strip(), case


def _draws(op: Any, sample: Any) -> bool:
    """Whether an operator draws random numbers: torch's list makes it draw the same ones in every call, but tasks that
    run at once draw their own."""
    seed, found = torch.manual_seed, []
    for shift in (0, 1):
        with mock.patch("torch.manual_seed", lambda number, shift=shift: seed(number + shift)):
            found.append(pytree.tree_leaves(op.op(sample.input, *sample.args, **sample.kwargs)))
    return not all(torch.equal(a, b) for a, b in zip(*found, strict=True) if isinstance(a, Tensor))


def _in_place(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    return function and (lambda x, *args, **kwargs: function(x.clone(), *args, **kwargs))


def _case(function: Callable[..., Any], sample: Any, varied: bool) -> Case | None:
    leaves, structure = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    others = [x for x in leaves if isinstance(x, Tensor) and not x.requires_grad]
    if any(t.layout != torch.strided for t in (*tensors, *others)) or any(t.is_complex() for t in tensors):
        return None
    if not tensors or (varied and not others) or sum(t.numel() for t in (*tensors, *others)) > ELEMENTS:
        return None
    where = [x.requires_grad if isinstance(x, Tensor) else None for x in leaves]

    def call(*given: Tensor) -> Any:
        floating, fixed = iter(given[: len(tensors)]), iter(given[len(tensors) :])
        filled = [
            next(floating) if place else next(fixed) if place is False else leaf
            for leaf, place in zip(leaves, where, strict=True)
        ]
        first, args, kwargs = pytree.tree_unflatten(filled, structure)
        return function(first, *args, **kwargs)

    return Case(call, tensors, others, varied)


def audit(name: str, op: Any, samples: int = SAMPLES) -> list[Verdict]:
    """What was found of an operator."""
    verdicts = []
    for label, case in cases(name, op, samples=samples):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        verdict = judge(label, case, check="method" not in label and "in place" not in label)
        if verdict is not None and torch.equal(state, torch.get_rng_state()):
            verdicts.append(verdict)
    return verdicts


# -- the page ---------------------------------------------------------------------------------------------------------

RESULTS = Path(__file__).with_name("operators.json")
PAGE = Path(__file__).parents[2] / "docs" / "torch.md"
CASTS = {"bfloat16", "half", "float", "chalf", "cfloat"}
"""What computes in fewer digits than can be compared."""
TRIANGLE = "its argument is taken for a symmetric one, of which one triangle is read"
CONVENTIONS = {
    **dict.fromkeys(
        (
            "cholesky",
            "cholesky_inverse",
            "cholesky_solve",
            "linalg.cholesky",
            "linalg.cholesky_ex",
            "linalg.eigh",
            "linalg.eigvalsh",
            "linalg.pinv.hermitian",
        ),
        TRIANGLE,
    ),
    **{f"nn.functional.max_unpool{d}d": "indices that repeat" for d in (1, 2, 3)},
    "as_strided_scatter": "places that repeat",
    "linalg.eig": "eigenvectors have any phase",
    "nn.functional.embedding": "the row of padding is a constant",
}
"""Operators whose derivatives differ from finite differences for a reason."""


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """Of an operator, in one line: the worst of every kind."""
    wrong = [v.wrong for v in verdicts if v.wrong is not None and (v.errors or [])[v.wrong - 1 : v.wrong]]

    def worst(texts: list[str]) -> str:
        for start in ("differs", "refused"):
            if found := [text for text in texts if text.startswith(start)]:
                return start if len(found) == len(texts) or start == "differs" else f"{start} in part"
        return "right"

    kinds = {kind: worst([getattr(v, kind) for v in verdicts]) for kind in ("looped", "vectorized")}
    under = worst([v.torch for v in verdicts if v.torch])
    return {"cases": len(verdicts), "wrong": min(wrong, default=None), **kinds, "torch": under}


def page(results: dict[str, Any]) -> str:
    """What torch gets wrong, in Markdown."""
    found = results["operators"]
    derivatives = {n: r for n, r in found.items() if r["wrong"] and n not in CONVENTIONS}
    under = {n: r for n, r in found.items() if r["torch"] == "differs" and n not in derivatives}
    what = {"right": "right", "refused": "refused", "refused in part": "right, or refused"}
    orders = {1: "first", 2: "second", 3: "third"}

    def rows(some: dict[str, Any], columns: Callable[[Any], str]) -> str:
        return "\n".join(f"| `{name}` | {columns(r)} |" for name, r in sorted(some.items()))

    return HEAD.format(
        version=results["torch"],
        number=len(found),
        cases=sum(r["cases"] for r in found.values()),
        derivatives=rows(
            derivatives, lambda r: f"{orders[r['wrong']]} | {what[r['looped']]} | {what[r['vectorized']]}"
        ),
        under=rows(under, lambda r: what[r["vectorized"]]),
    )


HEAD = """# What torch gets wrong

Torch {version} on a CPU. `python -m tests.fuzz.operators --write` made this page: it puts {number} operators of torch's
own list (`op_db`) through two inner steps, {cases} cases in all, in double precision. Outcome, meta-gradient and the
meta-gradient differentiated again are compared with a plain loop, to 1e-8; and torch's derivatives with finite
differences of the derivative below. The [layers](layers.md) are made of these.

## Wrong derivatives, however they are called

What is refused here raises an error that says so.

| operator | the first derivative that is wrong | innerloop, one task at a time | innerloop, tasks at once |
| --- | --- | --- | --- |
{derivatives}

## Wrong under `torch.vmap`, with autograd below

This is how tasks run at once. What is refused runs one task at a time.

| operator | innerloop, tasks at once |
| --- | --- |
{under}

There are further errors. The padding row of an embedding keeps its value for the first task only. Grouped
convolutions of one image, which convolutions of many tasks become, return uninitialized weight gradients if the
weights are channels-last and oneDNN does not run. An index out of range raises no error: `embedding` reads a row of
another task's table, and `one_hot` and `index_fill` select nothing, `index_fill` not even for a valid negative index.
Derivatives of `binary_cross_entropy` beyond the first are inexact for probabilities near 0 or 1 (the second by 5e-9
at 0.9996), also without `vmap`. The gradient of `max`, `min`, `median` and `nanmedian` of a whole tensor goes to one
of several equal elements, in place of all. All of these are right in innerloop.
"""


def collect(names: Iterable[str]) -> dict[str, Any]:
    """What was found of some operators."""
    every, found = operators(), {}
    for name in names:
        if name not in CASTS and (verdicts := audit(name, every[name])):
            found[name] = summary(verdicts)
            print(name, found[name], *(v for v in verdicts if v.silent), flush=True)
    return {"torch": torch.__version__.split("+")[0], "operators": found}


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--write" in arguments:
        results = collect(operators())
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))
        return
    every = operators()
    for name in arguments:
        for verdict in audit(name, every[name]):
            print(json.dumps(asdict(verdict)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
