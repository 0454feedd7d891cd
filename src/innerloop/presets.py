"""Published algorithms, each composed of a few parts. Every function returns a `MetaLearner`.

Other keyword arguments are passed to the learner and replace the paper's own parts: ``maml(model, rule=Adam(0.01))``
is MAML with Adam as the inner optimizer.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypedDict

from torch import nn
from typing_extensions import Unpack  # torch brings it

from . import optimizers, rules, schedules
from .common.errors import user_level
from .episode import Loss, Memory
from .functional.stateless import Precision, Statistics
from .initializations import Initialization, Prototypes
from .learner import Compile, MetaLearner, Vectorize
from .objectives import Implicit, Objective, Reptile, Unrolled
from .select import Selection, everything, head_name, head_of, named, norms

Arguments = ParamSpec("Arguments")


class Options(TypedDict, total=False):
    """The arguments that every preset passes to the learner; see `MetaLearner`."""

    rule: rules.UpdateRule
    adapt: Selection
    objective: Objective
    loss: Loss
    inner_loss: Loss | None
    initial: Initialization | None
    output: str | None
    steps: int
    batch_size: int | None
    statistics: Statistics
    per_step: Selection | None
    memory: Memory
    precision: Precision
    vectorize: Vectorize
    compile: Compile


def composed(model: nn.Module, options: Mapping[str, Any], **parts: Any) -> MetaLearner:
    """Return a learner with an algorithm's own parts; options replace parts unless they are ``None``."""
    own = {*parts, "rule", "adapt", "objective"}
    given = {name: part for name, part in options.items() if part is not None or name not in own}
    return MetaLearner(model, **{**parts, **given})


def of_parts(
    own: Collection[str] = (), **parts: str | tuple[str, ...]
) -> Callable[[Callable[Arguments, MetaLearner]], Callable[Arguments, MetaLearner]]:
    """Declare to which part of an algorithm each argument of a preset belongs.

    Giving an argument together with an option that replaces its part is then an error.

    Args:
        own: the options that the preset sets itself, so that a recipe does not set them.
        parts: the part of each argument by name, as in ``lr="rule"``, or a tuple of parts.

    Raises:
        ValueError: in a call of the preset, if an argument is given whose parts are all replaced.
    """
    of = {name: (part,) if isinstance(part, str) else part for name, part in parts.items()}

    def decorate(preset: Callable[Arguments, MetaLearner]) -> Callable[Arguments, MetaLearner]:
        signature = inspect.signature(preset)

        @wraps(preset)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> MetaLearner:
            given = signature.bind(*args, **kwargs).arguments
            options = given.get("options", {})
            for name, replaced in of.items():
                if name in given and all(options.get(part) is not None for part in replaced):
                    part = " and ".join(replaced)
                    raise ValueError(
                        f"{preset.__name__}: {name}={given[name]!r} has no effect, because {part}= replaces the {part} "
                        f"that it belongs to: give one of them, or put {name} into {part}="
                    )
            return preset(*args, **kwargs)

        checked.own, checked.parts = own, of  # type: ignore[attr-defined]
        return checked

    return decorate


@of_parts(lr="rule", order="objective")
def maml(model: nn.Module, lr: float = 0.01, order: int = 2, **options: Unpack[Options]) -> MetaLearner:
    """MAML: plain gradient steps on all parameters (Finn et al. 2017, Algorithm 1).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        order: 2 differentiates through the updates, 1 treats them as constants.
        options: as in `MetaLearner`.
    """
    return composed(model, options, rule=rules.SGD(lr), objective=Unrolled(order))


@of_parts(lr="rule")
def fomaml(model: nn.Module, lr: float = 0.01, **options: Unpack[Options]) -> MetaLearner:
    """First-order MAML: updates are treated as constants (Finn et al. 2017, section 5.2).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        options: as in `MetaLearner`.
    """
    return composed(model, options, rule=rules.SGD(lr), objective=Unrolled(order=1))


@of_parts(lr="rule")
def reptile(model: nn.Module, lr: float = 1e-3, **options: Unpack[Options]) -> MetaLearner:
    """Reptile: move towards the adapted parameters (Nichol et al. 2018). Use outer SGD with the paper's step size.

    The paper's inner Adam has ``betas=(0, 0.999)`` and keeps its second moments from task to task. Here every task
    starts with new moments, unless a rule keeps them (docs/papers.md).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner Adam.
        options: as in `MetaLearner`; ``rule=SGD(lr)`` for plain inner steps.
    """
    rule: rules.UpdateRule = optimizers.Adam(lr, betas=(0.0, 0.999))
    if (optimizer := options.pop("optimizer", None)) is not None:  # type: ignore[typeddict-item]
        warnings.warn(
            "reptile takes rule= instead of optimizer=, which version 0.4 will remove: give rule=il.SGD(lr), or "
            "nothing for Adam",
            FutureWarning,
            stacklevel=user_level(),
        )
        if optimizer not in ("adam", "sgd") or options.get("rule") is not None:
            raise ValueError(f'optimizer= takes "adam" or "sgd", without rule=, got {optimizer!r}: give rule= instead')
        rule = rules.SGD(lr) if optimizer == "sgd" else rule
    return composed(model, options, rule=rule, objective=Reptile())


@of_parts(lr="rule", strength=("rule", "objective"), iterations="objective")
def imaml(
    model: nn.Module, lr: float = 0.1, strength: float = 2.0, iterations: int = 5, **options: Unpack[Options]
) -> MetaLearner:
    """Implicit MAML: a proximal inner loop, and a meta-gradient by conjugate gradients (Rajeswaran et al. 2019).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps, which must get close to a minimum.
        strength: the strength of the pull towards the meta-parameters, lambda in the paper.
        iterations: number of conjugate gradient iterations.
        options: as in `MetaLearner`.
    """
    rule = rules.Chain(optimizers.Proximal(strength), rules.SGD(lr))
    return composed(model, options, rule=rule, objective=Implicit(strength, iterations))


@of_parts(lr="rule", head="adapt", order="objective")
def anil(
    model: nn.Module, lr: float = 0.1, head: str | None = None, order: int = 2, **options: Unpack[Options]
) -> MetaLearner:
    """Almost no inner loop: only the head adapts (Raghu et al. 2020).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        head: the qualified name of the head; by default the last submodule with parameters.
        order: 2 differentiates through the updates, 1 treats them as constants.
        options: as in `MetaLearner`.
    """
    citation = "Raghu, Raghu, Bengio, Vinyals. Rapid Learning or Feature Reuse? ICLR 2020. arXiv:1909.09157"
    adapt = options.get("adapt") or head_of(head or head_name(model))
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "objective": Unrolled(order), "citation": citation}
    return composed(model, {**options, "adapt": adapt}, **parts)


@of_parts(lr="rule", head="adapt", order="objective")
def boil(
    model: nn.Module, lr: float = 0.1, head: str | None = None, order: int = 2, **options: Unpack[Options]
) -> MetaLearner:
    """Body only update in the inner loop: everything except the head adapts (Oh et al. 2021).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        head: the qualified name of the head; by default the last submodule with parameters.
        order: 2 differentiates through the updates, 1 treats them as constants.
        options: as in `MetaLearner`.
    """
    citation = "Oh, Yoo, Kim, Yun. BOIL: Towards Representation Change for Few-shot Learning. ICLR 2021"
    adapt = options.get("adapt") or everything - head_of(head or head_name(model))
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "objective": Unrolled(order), "citation": citation}
    return composed(model, {**options, "adapt": adapt}, **parts)


@of_parts(lr="rule")
def cavia(model: nn.Module, lr: float = 1.0, **options: Unpack[Options]) -> MetaLearner:
    """Fast context adaptation: only a context vector adapts, starting from zero (Zintgraf et al. 2019).

    Args:
        model: a model with a frozen parameter called ``context``, such as `innerloop.models.WithContext`.
        lr: the rate of the inner steps.
        options: as in `MetaLearner`; give ``adapt=`` if the context has another name.
    """
    return composed(model, options, rule=rules.SGD(lr), adapt=named("context", "*.context"))


@of_parts(lr="rule", order="objective")
def meta_sgd(model: nn.Module, lr: float = 0.01, order: int = 2, **options: Unpack[Options]) -> MetaLearner:
    """Meta-SGD: MAML with a learned rate for every weight (Li et al. 2017).

    Args:
        model: as in `MetaLearner`.
        lr: the initial rate of every weight.
        order: 2 differentiates through the updates, 1 treats them as constants.
        options: as in `MetaLearner`.
    """
    return composed(model, options, rule=rules.ElementwiseSGD(lr), objective=Unrolled(order))


@of_parts(lr="rule")
def meta_curvature(model: nn.Module, lr: float = 0.01, **options: Unpack[Options]) -> MetaLearner:
    """Meta-Curvature: MAML with a learned Kronecker-factored map of gradients (Park and Oliva 2019).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        options: as in `MetaLearner`.
    """
    return composed(model, options, rule=rules.Chain(optimizers.KroneckerCurvature(), rules.SGD(lr)))


@of_parts(lr="rule", learned_rates="rule", multi_step="objective", first_order="objective", per_step_norms="per_step")
def maml_plus_plus(
    model: nn.Module,
    lr: float = 0.1,
    multi_step: int = 5_000,
    first_order: int = 500,
    learned_rates: bool = True,
    per_step_norms: bool = True,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML++: MAML with five additions that stabilize it (Antoniou et al. 2019, section 4).

    Each addition can be turned off. The sixth, a cosine schedule of the outer learning rate, belongs to the trainer.

    Args:
        model: as in `MetaLearner`.
        lr: the inner rate, or its initial value if it is learned.
        multi_step: the number of iterations with a multi-step loss (MSL): at first the query losses after all steps
            count equally, eventually only the last step's loss counts. With 0 only that counts from the start.
        first_order: the number of first iterations that treat the updates as constants (DA); 0 for none, as in the
            authors' configurations.
        learned_rates: whether to learn a rate for every parameter tensor and step (LSLR).
        per_step_norms: whether norm layers, if any, have per-step scales, shifts and running statistics (BNWB, BNRS).
            These then do not adapt.
        options: as in `MetaLearner`; ``steps`` is 5 by default, and ``per_step`` replaces the norms.

    Raises:
        ValueError: a number of iterations is not an integer from 0, or a switch is not a bool.
    """
    citation = "Antoniou, Edwards, Storkey. How to train your MAML. ICLR 2019. arXiv:1810.09502"
    if any(type(number) is not int or number < 0 for number in (first_order, multi_step)):
        raise ValueError(
            f"first_order and multi_step must be integers of at least 0, got {first_order!r} and {multi_step!r}"
        )
    if any(type(choice) is not bool for choice in (learned_rates, per_step_norms)):
        raise ValueError(
            f"learned_rates and per_step_norms must be True or False, got {learned_rates!r} and {per_step_norms!r}"
        )
    steps = options.setdefault("steps", 5)
    rule = rules.PerStepSGD(lr) if learned_rates else rules.SGD(lr)
    weights = schedules.multi_step(steps, multi_step) if multi_step and steps else None
    objective = Unrolled(schedules.switch(1, 2, at=first_order) if first_order else 2, weights)
    own = options.get("per_step") or (norms if per_step_norms and norms.match(model) else None)
    options["per_step"] = own
    adapt = everything - own if own else everything
    return composed(model, options, rule=rule, adapt=adapt, objective=objective, citation=citation)


@of_parts(lr="rule", head="initial", order="objective")
def protomaml(
    model: nn.Module, lr: float = 0.01, head: str | None = None, order: int = 2, **options: Unpack[Options]
) -> MetaLearner:
    """ProtoMAML: MAML with a linear head that starts at the class prototypes (Triantafillou et al. 2020, section 3).

    Args:
        model: as in `MetaLearner`.
        lr: the rate of the inner steps.
        head: the qualified name of the linear head; by default the last submodule with parameters.
        order: 2 differentiates through the updates, 1 treats them as constants.
        options: as in `MetaLearner`.
    """
    citation = "Triantafillou et al. Meta-Dataset. ICLR 2020. arXiv:1903.03096"
    initial = options.get("initial") or Prototypes(model, head)
    parts: dict[str, Any] = {"rule": rules.SGD(lr), "objective": Unrolled(order), "citation": citation}
    return composed(model, {**options, "initial": initial}, **parts)


@of_parts(("steps",), head="initial")
def prototypical(model: nn.Module, head: str | None = None, **options: Unpack[Options]) -> MetaLearner:
    """Prototypical networks: ProtoMAML without inner steps (Snell et al. 2017).

    It is the baseline that takes no gradient at test time.

    Args:
        model: as in `MetaLearner`.
        head: the qualified name of the linear head; by default the last submodule with parameters.
        options: as in `MetaLearner`, without ``steps``.

    Raises:
        ValueError: ``steps`` is given.
    """
    if options.get("steps"):
        raise ValueError(f"prototypical networks take no inner steps, got steps={options['steps']}: see protomaml")
    initial = options.get("initial") or Prototypes(model, head)
    adapt = options.get("adapt") or head_of(head or head_name(model))
    own: dict[str, Any] = {"steps": 0, "adapt": adapt, "initial": initial}
    return composed(model, {**options, **own}, rule=rules.SGD(0.0), objective=Unrolled(1))


PRESETS: dict[str, Callable[..., MetaLearner]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        maml, fomaml, reptile, imaml, anil, boil, cavia, meta_sgd, meta_curvature, maml_plus_plus, protomaml,
        prototypical,
    )
}  # fmt: skip
"""The presets that a recipe can name."""
