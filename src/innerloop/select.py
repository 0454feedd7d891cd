"""Selections: which of a model's parameters the inner loop moves.

A `Selection` is a set of parameter names that is resolved against a model, and can be combined like a set:

>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
>>> (everything - norms).names(net)
('0.weight', '0.bias', '2.weight', '2.bias')
>>> (head | named("0.bias")).names(net)
('0.bias', '2.weight', '2.bias')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from re import fullmatch

from torch import nn

from .support_norm import SupportNorm2d


@dataclass(frozen=True)
class Selection:
    """A named set of parameters, resolved against a model when a learner is made.

    A parameter with ``requires_grad=False`` is *frozen*: it is not meta-learned, and `everything` leaves it out. If a
    selection names it explicitly (`named`, `head_of`), the inner loop adapts it from its fixed value, as CAVIA does
    with its context vector. A module can have an attribute ``meta_learned_only`` with the names of submodules, as
    `innerloop.support_norm.SupportNorm2d` has: `everything` leaves these out, but they are meta-learned.
    """

    description: str
    match: Callable[[nn.Module], set[str]]

    def names(self, model: nn.Module) -> tuple[str, ...]:
        """Return the selected names, in the order of ``model.named_parameters()``.

        Raises:
            ValueError: nothing is selected; the message lists the parameters.
        """
        chosen = self.match(model)
        available = [name for name, _ in model.named_parameters()]
        names = tuple(name for name in available if name in chosen)
        if not names:
            raise ValueError(_nothing(self.description, model))
        return names

    def __or__(self, other: Selection) -> Selection:
        return Selection(f"({self.description} | {other.description})", lambda m: self.match(m) | other.match(m))

    def __and__(self, other: Selection) -> Selection:
        return Selection(f"({self.description} & {other.description})", lambda m: self.match(m) & other.match(m))

    def __sub__(self, other: Selection) -> Selection:
        return Selection(f"({self.description} - {other.description})", lambda m: self.match(m) - other.match(m))

    def __repr__(self) -> str:
        return self.description


def named(*patterns: str) -> Selection:
    """Select the parameters with qualified names that match a shell pattern, e.g. ``named("*.norm.*", "head.*")``.

    It is an error if no parameter matches, also in ``everything - named(...)``, so that typos do not go unnoticed.
    """
    description = f"named({', '.join(map(repr, patterns))})"
    return _some(description, lambda name: any(fnmatchcase(name, pattern) for pattern in patterns))


def head_of(name: str) -> Selection:
    """Select the parameters of the submodule called ``name``, which must exist."""
    return _some(f"head_of({name!r})", lambda parameter: parameter.startswith(f"{name}."))


def _some(description: str, chosen: Callable[[str], bool]) -> Selection:
    """Select parameters by any of their names (a shared parameter has several); at least one must match."""

    def match(model: nn.Module) -> set[str]:
        first = {id(p): name for name, p in model.named_parameters()}
        every = model.named_parameters(remove_duplicate=False)
        matched = {first[id(p)] for name, p in every if chosen(name)}
        if not matched:
            raise ValueError(_nothing(description, model))
        return matched

    return Selection(description, match)


def _nothing(description: str, model: nn.Module) -> str:
    available = ", ".join(n if p.requires_grad else f"{n} (frozen)" for n, p in model.named_parameters()) or "none"
    return (
        f"the selection {description} matches no parameter of {type(model).__name__}; its parameters are: {available}"
    )


def head_name(model: nn.Module) -> str:
    """Return the qualified name of the last submodule with parameters of its own, which `head` selects.

    The parameters of a parametrization (``torch.nn.utils.parametrize``) belong to the parametrized module.

    Raises:
        ValueError: the model has no submodule with parameters.
    """
    owners: list[str] = [
        name.partition("parametrizations.")[0].rstrip(".")
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    owners = [name for name in owners if name]
    if not owners:
        raise ValueError(
            f"{type(model).__name__} has no submodule with parameters, so it has no head: select parameters with "
            "il.named(...)"
        )
    return owners[-1]


def _types(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[str]:
    modules = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, kinds)]
    return {f"{prefix}.{n}" if prefix else n for prefix, module in modules for n, _ in module.named_parameters()}


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, SupportNorm2d)


def _norms(model: nn.Module) -> set[str]:
    """Find norms by their class, or by the name of the class, since many libraries have their own classes."""
    kinds = {type(m) for m in model.modules() if isinstance(m, _NORMS) or fullmatch(_NAMED, type(m).__name__)}
    return _types(model, tuple(kinds))


_NAMED = r"\w*Norm(alization|alisation)?([123]d)?"


def _adaptable(model: nn.Module) -> set[str]:
    parts = [(prefix, getattr(module, "meta_learned_only", ())) for prefix, module in model.named_modules()]
    left_out = {f"{prefix}.{part}." if prefix else f"{part}." for prefix, own in parts for part in own}
    learned = (name for name, p in model.named_parameters() if p.requires_grad)
    return {name for name in learned if not any(f"{name}.".startswith(part) for part in left_out)}


everything = Selection("everything", _adaptable)
"""Every parameter that is not frozen (MAML), except those that modules declare as meta-learned only."""

head = Selection("head", lambda model: head_of(head_name(model)).match(model))
"""The last submodule with parameters of its own (ANIL)."""

body = Selection("body", (everything - head).match)
"""Every parameter that is neither frozen nor in the head (BOIL)."""

norms = Selection("norms", _norms)
"""The parameters of normalization layers: scales, shifts, and the network of a `SupportNorm2d`. These are torch's norms
and any class with a name like that of a norm, such as ``LlamaRMSNorm``."""


def _adapters(model: nn.Module) -> set[str]:
    """Find adapters by attributes of peft's layers, which name the submodules with adapters and the active ones."""
    starts = []
    for prefix, module in model.named_modules():
        prompts = ("prompt_encoder",) if hasattr(module, "prompt_encoder") else ()
        holders, active = getattr(module, "adapter_layer_names", prompts), getattr(module, "active_adapters", ())
        starts += [".".join(filter(None, (prefix, holder, name, ""))) for holder in holders for name in active]
    return _some("adapters", lambda parameter: f"{parameter}.".startswith(tuple(starts))).match(model)


adapters = Selection("adapters", _adapters)
"""The parameters of the active adapters of a peft model (LoRA), and the heads that are fully trained with them."""
