"""Models that were adapted to one task or to many."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils import _pytree as pytree

from .common import private
from .common.errors import user_level
from .common.interrupts import raise_interrupt_behind
from .episode import Episode, Step
from .functional.contracts import normal_tensors, without_kept_tensors
from .functional.stand_ins import copied, mine
from .functional.stateless import BATCH_NORMS, INSTANCE_NORMS, Stateless, Statistics, arguments, in_mode
from .functional.twins import Shared
from .functional.undisturbed import undisturbed
from .operations.replacements import TaskOperations
from .rules import UpdateRule
from .support_norm import joint
from .task import Params, rows, select, size, stack
from .task_model import TaskModel


def depends_on_inputs(model: nn.Module, statistics: Statistics) -> bool:
    """Return whether batch norm makes a prediction depend on the other inputs."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    return any(statistics == "batch" or norm.running_mean is None for norm in norms)


def warn_of_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Warn of norm statistics that the learner does not use, or that meta-training will not update."""
    _warn_of_unused_statistics(model, statistics)
    _warn_of_spectral_norms(model)


def _warn_of_unused_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Warn that batch norms in ``eval()`` mode will not use the running statistics that they have stored."""
    for name, norm in model.named_modules():
        gathered = isinstance(norm, BATCH_NORMS) and norm.num_batches_tracked is not None
        if statistics == "batch" and gathered and not norm.training and norm.num_batches_tracked:
            warnings.warn(
                f"the batch norm {name!r} is in eval() mode and has stored running statistics, but the learner ignores "
                'them and normalizes with batch statistics: give statistics="running" to use the stored ones, or, if '
                "you want batch statistics, call model.train() before you make the learner",
                stacklevel=user_level(),
            )
            return


def _warn_of_spectral_norms(model: nn.Module) -> None:
    """Warn that meta-training does not update the estimates of spectral norms.

    Their vectors are buffers, which are dropped after every task.
    """
    for name, module in model.named_modules():
        hooks = module._forward_pre_hooks.values()
        if isinstance(module, private.SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            warnings.warn(
                f"the spectral norm in {name!r} keeps its estimates in buffers, and each task has its own copy of "
                "these, so meta-training does not update them: after every outer update, call the model once in "
                "train() mode under torch.no_grad(), which updates them, or use another normalization",
                stacklevel=user_level(),
            )
            return


def outputs(episode: Episode, step: Step, x: Any, statistics: Statistics, alone: bool) -> Any:
    """Return the model's outputs on inputs ``[N, ...]`` with adapted parameters.

    Args:
        episode: the episode of the task.
        step: the adapted parameters and buffers.
        x: the inputs.
        statistics: what batch norm normalizes with.
        alone: whether each input is evaluated separately, together with the support set.
    """
    if not alone:
        with in_mode(mine(episode.model.stateless.model), statistics, training=False):
            return episode.answer(step, x)[0]

    def one(example: Any) -> Any:
        output, _ = episode.beside_support(step, pytree.tree_map(lambda q: q[None], example))
        return pytree.tree_map(lambda out: out[0], output)

    # One query after the other: the tasks of a meta-batch still run at once, with kernels for stacks of tasks. These
    # kernels do not support stacks of queries within them.
    return stack([one(select(x, index)) for index in range(rows(x))])


class Adapted:
    """A model adapted to one task: call it on inputs.

    Attributes:
        parameters: all parameters of the model by name, with the adapted ones in place.
        losses: the support loss before each step and after the last, ``[K + 1]``.
        reached: the end of the path, with the state of the update rule, to go on from.
        path: the adapted parameters before the first and after each inner step that led here; empty unless `adapt` was
            called with ``path=True``.
    """

    def __init__(
        self,
        statistics: Statistics,
        episode: Episode,
        losses: Tensor,
        transductive: bool,
        dependent: bool,
        shared: Shared,
        reached: Step,
        path: tuple[Params, ...] = (),
    ) -> None:
        self._shared, self.reached, self.path = shared, reached, path
        self._model, self._statistics, self._episode = episode.model.stateless.model, statistics, episode
        self._transductive, self._dependent, self._warned = transductive, dependent, False
        self.losses = losses
        self.parameters: Params = {**episode.model.fixed, **episode.start.params}

    @undisturbed()
    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        """Return the outputs on inputs ``x``, ``[N, ...]``.

        Batch norm with the inputs' own statistics needs enough inputs: a single input is normalized together with the
        support set (as with ``transductive=False``), and fewer inputs than support examples give a warning, once.
        """
        alone = self._dependent and (not self._transductive or size(x) == 1)
        if self._dependent and not alone and not self._warned and size(x) < size(self._episode.task.support.x):
            self._warned = True
            warnings.warn(
                f"batch norm normalizes these {size(x)} inputs by their own statistics, which few inputs estimate "
                "poorly: pass more inputs at once, or adapt with transductive=False, which treats each input by itself",
                stacklevel=user_level(),
            )
        with self._shared.apart(), TaskOperations(vectorized=False):
            model = mine(self._model)
            with in_mode(model, self._statistics, training=False), without_kept_tensors(model):
                return outputs(
                    self._episode, self._episode.start.at(self.parameters), normal_tensors(x), self._statistics, alone
                )

    def require_of(self, shared: Shared) -> None:
        """Refuse to go on with another learner than the one that adapted the model.

        Raises:
            ValueError: it is another one.
        """
        if shared is not self._shared:
            raise ValueError(
                "after= takes what this learner has adapted, and this was adapted by another one: give "
                "learner.restore(adapted.state_dict()), which compares them"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, to save and to give to `MetaLearner.restore`.

        Raises:
            ValueError: the update rule keeps something of another structure than it begins with.
        """
        reached, support = self.reached, self._episode.task.support
        leaves, structure = pytree.tree_flatten(reached.state)
        if reached.index and structure != _structure(self._episode.rule, reached.params):
            raise ValueError(
                f"the state of {type(self._episode.rule).__name__} has another structure than its init() returns, so "
                "that it cannot be saved: return everything that it keeps from init()"
            )
        return {
            "format": FORMAT,
            "support": (support.x, support.y),
            "parameters": dict(self.parameters),
            "buffers": dict(self._episode.start.buffers),
            "losses": self.losses,
            "transductive": self._transductive,
            "reached": {
                "params": dict(reached.params), "buffers": dict(reached.buffers), "index": reached.index,
                "state": leaves, "losses": list(reached.losses),
            },
        }  # fmt: skip

    @property
    def joint(self) -> bool:
        """Whether the model needs the support set in every call, and so cannot become a plain module."""
        return joint(self._model)

    def module(self) -> nn.Module:
        """Return a plain copy of the model with the adapted parameters, in ``eval()`` mode.

        Its buffers are the task's own. If the learner normalizes with batch statistics, every batch norm that keeps
        running statistics gets those of the support set, which ``eval()`` mode then uses. After
        ``adapt(transductive=False)`` every batch norm does, so each input is normalized independently of the others.

        Raises:
            ValueError: the model needs the support set in every call.
        """
        refuse_joint(self._model)
        module = copied(self._model)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.parameters[name])
            self._episode.model.stateless.set_buffers(module, self._episode.start.buffers)
        module.eval()
        if self._statistics == "batch":
            for layer in module.modules():
                if isinstance(layer, INSTANCE_NORMS):  # they normalize each example by itself
                    layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
            if not self._transductive:
                keep_statistics(module)
            elif unkept := [
                n for n, m in module.named_modules() if isinstance(m, BATCH_NORMS) and m.running_mean is None
            ]:
                warnings.warn(
                    f"{unkept[0]} and other batch norms of this module normalize inputs by their own statistics, which "
                    "few inputs estimate poorly: for a module that treats each input by itself, adapt with "
                    "transductive=False",
                    stacklevel=user_level(),
                )
            gather_statistics(module, self._episode.task.support.x)
        return module


FORMAT = 1
"""The format of `Adapted.state_dict`."""


def _structure(rule: UpdateRule, params: Params) -> Any:
    """How the tensors of a rule's state are nested."""
    return pytree.tree_flatten(rule.init(params))[1]


def restored(
    state: Mapping[str, Any], episode: Episode, statistics: Statistics, dependent: bool, shared: Shared
) -> Adapted:
    """Return the adapted model whose `Adapted.state_dict` is given.

    Args:
        state: its state.
        episode: of the learner, on the support set of that model.
        statistics: of batch norm.
        dependent: whether predictions depend on the other inputs.
        shared: what threads share of the learner.

    Raises:
        ValueError: it is the state of something else, or of a model that another learner adapted.
    """
    start = episode.start
    reached = pytree.tree_map_only(Tensor, Tensor.clone, dict(state["reached"]))
    model = episode.model
    here = start.params, model.parameters(start.params, 0), model.buffers_at(start.buffers, 0)
    there = reached["params"], state["parameters"], state["buffers"]
    for own, saved in zip(here, there, strict=True):
        for name in sorted(own.keys() | saved.keys()):
            shapes = [str(tuple(names[name].shape)) if name in names else "missing" for names in (saved, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the adapted model is that of another learner: {name} is {shapes[0]} there and {shapes[1]} here"
                )
    kept = None
    if reached["index"]:
        structure = _structure(episode.rule, start.params)
        if structure.num_leaves != len(reached["state"]):
            raise ValueError(
                f"the adapted model was adapted by another update rule than {type(episode.rule).__name__}: it kept "
                f"{len(reached['state'])} values, and this one keeps {structure.num_leaves}"
            )
        kept = pytree.tree_unflatten(reached["state"], structure)
    step = Step(reached["params"], reached["buffers"], reached["index"], kept, losses=tuple(reached["losses"]))
    fixed, buffers = (pytree.tree_map(Tensor.clone, dict(state[name])) for name in ("parameters", "buffers"))
    params = {name: fixed.pop(name) for name in start.params}
    episode = replace(episode, model=TaskModel(model.stateless, fixed, model.joint), start=Step(params, buffers))
    return Adapted(statistics, episode, state["losses"].clone(), state["transductive"], dependent, shared, step)


def require_adapted(state: Any) -> None:
    """Refuse what no `Adapted.state_dict` returned.

    Raises:
        ValueError: it is something else.
    """
    wanted = {"support", "parameters", "buffers", "losses", "transductive", "reached"}
    if not isinstance(state, Mapping) or state.get("format") != FORMAT or not wanted <= state.keys():
        raise ValueError("this is not the state of an adapted model: give what its state_dict() returned")


def refuse_joint(model: nn.Module) -> None:
    """Refuse a model that needs the support set in every call.

    Raises:
        ValueError: the model has a ``SupportNorm2d``.
    """
    if joint(model):
        raise ValueError(
            "a model with a SupportNorm2d needs the support set in every call, so adapted parameters alone do not make "
            "a model: call what `adapt` returns"
        )


class AdaptedTasks:
    """A model adapted to T tasks: call it on the inputs of all tasks.

    Attributes:
        parameters: all parameters of the model, by name, ``[T, ...]``.
    """

    def __init__(
        self, model: Stateless, statistics: Statistics, parameters: Params, buffers: Params, shared: Shared
    ) -> None:
        self._model, self._statistics, self.parameters, self._buffers = model, statistics, parameters, buffers
        self._shared = shared

    @undisturbed()
    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        """Return the outputs ``[T, N, ...]`` for inputs ``[T, N, ...]``.

        Warns if batch norm uses the statistics of the inputs and a task has a single input.
        """

        def one(params: Params, buffers: Params, x: Any) -> Any:
            return self._model(params, buffers, x)[0]

        model = self._model.model
        if size(select(x, 0)) == 1 and depends_on_inputs(model, self._statistics):
            warnings.warn(
                "batch norm normalizes each task's single input by its own statistics, which are a poor estimate: pass "
                "more inputs at once, or use `predict`, which normalizes it together with the support set",
                stacklevel=user_level(),
            )
        with self._shared.apart(), self._in_mode():
            every = self.parameters, self._buffers, normal_tensors(x)
            try:
                with TaskOperations(vectorized=True, kernels=False), without_kept_tensors(mine(model)):
                    return vmap(one)(*every)
            except Exception as error:  # it cannot be vectorized; a mistake of the caller raises again below
                raise_interrupt_behind(error)
                with TaskOperations(vectorized=False):
                    return stack([one(*select(every, index)) for index in range(size(every))])

    @contextmanager
    def _in_mode(self) -> Iterator[None]:
        model = mine(self._model.model)
        with in_mode(model, self._statistics, training=False), without_kept_tensors(model):
            yield


def keep_statistics(module: nn.Module) -> None:
    """Turn on running statistics in the batch norm layers that keep none."""
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS) and layer.running_mean is None:
            like = next(layer.parameters(), torch.empty(0))
            layer.track_running_stats = True
            layer.register_buffer("running_mean", torch.zeros(layer.num_features, device=like.device, dtype=like.dtype))
            layer.register_buffer("running_var", torch.ones(layer.num_features, device=like.device, dtype=like.dtype))
            layer.register_buffer("num_batches_tracked", torch.tensor(0, device=like.device))


@torch.no_grad()
def gather_statistics(module: nn.Module, x: Any) -> None:
    """Set the running statistics of batch norm layers to those of the inputs ``x``."""
    layers = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta, values = [layer.momentum for layer in layers], dict[nn.Module, int]()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values[layer] = inputs[0].numel() // inputs[0].shape[1]

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average, which for one batch is its own statistics
        layer.training = True
    if layers:
        args, kwargs = arguments(x)
        module(*args, **kwargs)
    for layer, hook, momentum in zip(layers, hooks, momenta, strict=True):
        hook.remove()
        if (number := values.get(layer, 0)) > 1:  # torch stores the unbiased variance; the batch's own is smaller
            layer.get_buffer("running_var").mul_((number - 1) / number)
        layer.momentum, layer.training = momentum, False
