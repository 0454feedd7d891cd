"""The MetaLearner: an inner loop with its model, update rule, selection and objective."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .adapted import Adapted, AdaptedTasks, depends_on_inputs, outputs, refuse_joint, warn_of_statistics
from .checks.dependence import Chosen, refuse_hooks
from .checks.examination import Use, examine, judging
from .engine.compiling import SOON, Compiler
from .engine.compiling import Compile as Compile
from .engine.engine import Engine
from .engine.engine import Vectorize as Vectorize
from .engine.recording import signature, tensors
from .episode import Episode, Loss, Memory, Step, anew, check_known, detach, scalar
from .functional.contracts import normal_tensors, refuse_inference_parameters, without_kept_tensors
from .functional.quick import members_of, modules_of
from .functional.randomness import Draws
from .functional.stand_ins import mine
from .functional.stateless import Precision, Stateless, Statistics, in_mode
from .functional.twins import Shared
from .functional.undisturbed import guarded, in_turn, undisturbed
from .functional.writes import unchanged
from .initializations import Initialization
from .losses import extras_of, refuse_extras, refuse_query_inputs
from .objectives import Objective, Outcome, Unrolled
from .operations.replacements import TaskOperations
from .per_step import PerStepModel, Slots, average
from .rules import Composed, UpdateRule, require_step
from .select import Selection, everything
from .support_norm import joint
from .task import Batch, Params, Task, count, require_batch, select, stack, tensors_of
from .task_model import TaskModel
from .updates import follow, require_kept, require_start

Left = tuple[Params, Params]
"""What tasks pass on to later ones: the slots of inner steps, and what the update rule keeps of its state."""


class MetaLearner(nn.Module):
    """Runs one inner loop on each task and turns the result into one scalar per task.

    A rule moves the selected parameters on each task's support set. An objective computes one scalar per task, usually
    from the query set, whose gradient is the meta-gradient.

    Args:
        model: any module; adapting and evaluating never change it.
        rule: how an inner step moves the parameters.
        adapt: which parameters the inner loop moves; the others are only meta-learned.
        objective: computes the scalar that is differentiated; by default ``Unrolled()``.
        loss: the outer loss, ``(output, y) -> scalar``.
        inner_loss: the loss of the inner loop; by default the outer loss. A module's parameters are meta-learned.
        initial: computes the start of a task's adapted parameters; by default they start at the meta-parameters.
        output: the part of the model's output that losses and predictions use, if the output is a mapping or has named
            parts: ``"logits"`` for the models of transformers.
        steps: the number K of inner steps.
        batch_size: support examples per inner step, taken in order and cyclically; ``None``, or more than there are,
            takes the whole support set.
        statistics: what batch norm normalizes with, in ``train()`` and in ``eval()`` mode. ``"batch"`` uses the
            statistics of the current examples, as the papers do: predictions on a query set then depend on the whole
            set. ``"running"`` uses stored statistics, for pretrained models; meta-training does not change them. With
            ``per_step``, inner steps always use the current examples, and meta-training updates stored statistics of
            each step: ``"running"`` uses these in predictions on query examples, ``"shared"`` uses one set for all
            steps.
        per_step: parameters, such as those of norms, that are separate for every inner step, together with the running
            statistics of their batch norm layers; see `innerloop.per_step.Slots`.
        memory: ``"graph"`` keeps what the backward pass needs of every inner step. ``"constant"`` recomputes it, one
            step at a time, which takes about a third longer and a small part of the memory. The gradients are the same.
        precision: ``"float32"``, or ``"bfloat16"`` for matrix products and convolutions.
        vectorize: ``"auto"``, ``True``, ``False``, a number of tasks, or of tasks and threads; see
            `innerloop.engine.engine.Engine`.
        compile: ``"auto"``, ``True`` or ``False``: whether `meta_gradient` runs compiled; see
            `innerloop.engine.compiling.Compiler`.
        citation: the paper of the algorithm, if its parts do not cite it.
    """

    outer: Any = None
    """How meta-gradients move the meta-parameters, if that is part of the algorithm (`innerloop.train.outer`)."""
    _asking: tuple[Any, tuple[str, ...]] | None = None

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        adapt: Selection = everything,
        objective: Objective | None = None,
        loss: Loss = F.cross_entropy,
        *,
        inner_loss: Loss | None = None,
        initial: Initialization | None = None,
        output: str | None = None,
        steps: int = 1,
        batch_size: int | None = None,
        statistics: Statistics = "batch",
        per_step: Selection | None = None,
        memory: Memory = "graph",
        precision: Precision = "float32",
        vectorize: Vectorize = "auto",
        compile: Compile = "auto",
        citation: str = "",
    ) -> None:
        super().__init__()
        check_known(steps, batch_size, statistics, memory, precision)
        require_step(rule)
        refuse_inference_parameters(model, rule)
        warn_of_statistics(model, statistics)
        self.model, self.rule, self.loss, self.inner_loss = model, rule, loss, inner_loss or loss
        self.objective, self.initial, self.steps, self.batch_size = objective or Unrolled(), initial, steps, batch_size
        self.statistics, self.memory, self.precision, self.citation = statistics, memory, precision, citation
        refuse_extras(loss)
        if "model" in self._extras and joint(model):
            raise ValueError(
                "the inner loss takes the model (its keyword model), but the model has a SupportNorm2d, which needs "
                "the support set in every call: compute the loss from the output instead, or use another norm"
            )
        self._chosen = chosen = Chosen(adapt, model)
        self.selection, self.adapted = adapt.description, chosen.names
        parts = rule, loss, inner_loss, self.objective, initial
        options = self.selection, steps, batch_size, statistics, precision, output, per_step and per_step.description
        self.engine = Engine(model, vectorize, memory == "constant", parts, options)
        self.compiler = Compiler(compile, lean=memory == "constant")
        self.slots = None if per_step is None else Slots(model, per_step, steps, self.adapted)
        if self.slots is None and statistics == "shared":
            raise ValueError('statistics="shared" needs per_step=; without per_step= give "batch" or "running"')
        if self.slots is not None and statistics != "batch":
            self.slots.require_statistics(model)
        self._stateless, self._joint, self._examined = Stateless(model, precision, output), joint(model), set[Any]()
        self._shared = Shared(model, *self.engine.parts.values(), moving=self._moving)
        rule.bind({name: p.detach() for name, p in model.named_parameters() if name in self.adapted}, steps)

    @undisturbed(alone=True)
    def forward(self, tasks: Task, iteration: int = 0, objective: Objective | None = None) -> Outcome:
        """Adapt to every task and evaluate the result.

        Args:
            tasks: a meta-batch, every tensor with a leading task axis ``[T, ...]``.
            iteration: the outer iteration, for schedules.
            objective: replaces the learner's own objective.
        """
        with in_mode(self.model, self._training_statistics):
            self._examine(tasks := normal_tensors(tasks), judging(objective or self.objective), objective)
            judge = self.engine.isolated(self._judge, iteration=iteration, objective=objective)
            outcome, left = self.engine.map(judge, tasks, *self._own(), ("judge", "forward")[torch.is_grad_enabled()])
            self._renew((average(left[0]), {}))
        return Outcome(*outcome)

    @guarded
    @torch.enable_grad()
    def meta_gradient(self, tasks: Task, iteration: int = 0) -> tuple[Params, Outcome]:
        """Return the gradient of the mean objective with respect to every meta-parameter, and the detached outcome.

        The gradient is computed for one chunk of tasks after another, so memory holds the graph of one chunk.
        Meta-parameters that the objective does not depend on get a gradient of zero.

        Raises:
            ValueError: every parameter is frozen.
        """
        with self._shared.lock:
            values, step = tensors(self, tasks := normal_tensors(tasks)), partial(self._gradients, iteration=iteration)
            key = signature(self, tasks, values), self.steps, self.batch_size, self.objective.constants(iteration)
            if (compiled := self.compiler.get(key)) is not None:  # it runs on values: no snapshot of modules is needed
                refuse_hooks(self.model, self.rule, self.adapted, judged=True)
                grads, outcome, left = compiled(values, partial(in_turn, partial(step, tasks), self._shared))
            else:
                self._examine(tasks, judging(self.objective))
                lasting = partial(self._lasting, iteration)
                run = partial(self.compiler.run, self, key, step, tasks, values, lasting)
                grads, outcome, left = in_turn(run, self._shared)
            self._renew(left)
            return grads, outcome

    def _lasting(self, iteration: int) -> bool:
        """Return whether the objective stays the same for some iterations."""
        return self.objective.constants(iteration) == self.objective.constants(iteration + SOON)

    def _gradients(self, tasks: Task, iteration: int) -> tuple[Params, Outcome, Left]:
        """Return the meta-gradient, the outcome, and what the tasks pass on to later ones."""
        learned = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not learned:
            raise ValueError("nothing to meta-learn: every parameter of the learner is frozen (requires_grad=False)")
        number, total, outcomes = count(tasks), [torch.zeros_like(p) for p in learned.values()], []

        def differentiate(result: tuple[Outcome, Left]) -> tuple[Sequence[Tensor], tuple[Outcome, Left]]:
            # Differentiate the mean: if the backward pass is not linear, dividing afterwards would give another result.
            objective, by = result[0].objective.sum() / number, list(learned.values())
            return torch.autograd.grad(objective, by, allow_unused=True, materialize_grads=True), detach(result)

        with in_mode(self.model, self._training_statistics):
            judge = self.engine.isolated(self._judge, iteration=iteration)
            for grads, outcome in self.engine.chunks(judge, tasks, *self._own(), "meta-gradient", differentiate):
                total = [a + b for a, b in zip(total, grads, strict=True)]
                outcomes.append(outcome)
        outcome, left = pytree.tree_map(lambda *parts: torch.cat(parts), *outcomes)
        return dict(zip(learned, total, strict=True)), Outcome(*outcome), (average(left[0]), average(left[1]))

    def _judge(
        self, task: Task, params: Params, buffers: Params, *, iteration: int, objective: Objective | None = None
    ) -> tuple[Outcome, Left]:
        """Return the outcome, and what the task passes on to later ones."""
        episode = self._episode(task, params, buffers, iteration=iteration)
        value, query = (objective or self.objective)(episode)
        losses = query.step.losses
        steps = torch.stack(losses) if losses else query.loss.new_zeros(0)
        outcome = Outcome(scalar(value), query.loss.detach(), detach(query.output), steps)
        return outcome, self._left(episode, query.step)

    def _left(self, episode: Episode, last: Step) -> Left:
        """Return what a task passes on to later ones: its slots, and what the rule keeps of its state."""
        slots = episode.model.left(last.buffers, self.steps) if isinstance(episode.model, PerStepModel) else {}
        return slots, detach(require_kept(episode.rule.kept(last.state), episode.rule)) if last.index else {}

    @property
    def _training_statistics(self) -> Statistics:
        """The statistics of meta-training and of inner steps, with per-step norms always those of the examples."""
        return self.statistics if self.slots is None else "batch"

    def _in_use(self) -> Any:
        """Set batch norm as in training, and turn off dropout and the like, also in losses and rules."""
        others = map(mine, (self.rule, self.loss, self.inner_loss, self.initial))
        return in_mode(mine(self.model), self._training_statistics, training=False, others=others)

    def _takes(self, steps: int | None) -> int:
        """Return the number of inner steps; `None` stands for that of training."""
        return self.steps if steps is None else steps

    @property
    def _extras(self) -> tuple[str, ...]:
        """The keyword-only parameters of the inner loss."""
        if self._asking is None or self._asking[0] is not self.inner_loss:
            self._asking = self.inner_loss, extras_of(self.inner_loss)
        return self._asking[1]

    @property
    def carried(self) -> Params:
        """The buffers that meta-training updates from what tasks pass on (statistics of slots, and what rules keep)."""
        named = (part.named_buffers(prefix=str(number)) for number, part in enumerate(self._moving))
        return {name: buffer for buffers in named for name, buffer in buffers}

    @property
    def _moving(self) -> list[nn.Module]:
        """The parts with these buffers."""
        rules = [rule for rule in self.rule.modules() if isinstance(rule, UpdateRule)]
        keeping = [rule for rule in rules if type(rule).keep not in (UpdateRule.keep, Composed.keep)]
        return [*keeping, *([] if self.slots is None else [self.slots])]

    def _renew(self, left: Left) -> None:
        """Store the average of what tasks pass on."""
        slots, state = left
        if self.training and slots and self.slots is not None:
            in_turn(partial(self.slots.renew, slots), self._shared)
        if self.training and state and all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            in_turn(partial(self.rule.keep, state), self._shared)

    # -- using what was learned ---------------------------------------------------------------------------------------

    @undisturbed()
    @torch.no_grad()
    def predict(
        self, tasks: Task, steps: int | None = None, transductive: bool = True, at: Collection[int] | None = None
    ) -> Any:
        """Return the model's output on the query sets after 0, 1, ..., K inner steps, ``[T, K + 1, Q, ...]``.

        No graph is kept, and dropout is off.

        Args:
            tasks: a meta-batch of T tasks.
            steps: inner steps, which may exceed the trained number; ``None`` takes as many as in training.
            transductive: batch norm normalizes the query set with its own statistics. If false, or if there is a single
                query example, each query example is normalized together with the support set alone, so that its
                prediction does not depend on the others (Nichol et al. 2018, section 6.1). Without batch norm on batch
                statistics both are the same.
            at: the numbers of steps after which to predict; the result is then ``[T, len(at), Q, ...]``, in ascending
                order.

        Raises:
            ValueError: ``at`` is empty, repeats a number, or has one that is not from 0 to K.
        """
        if at is not None and (not at or len(set(at)) < len(at) or not set(at) <= set(range(self._takes(steps) + 1))):
            raise ValueError(f"at= takes distinct numbers of steps from 0 to {self._takes(steps)}, got {list(at)}")
        single = all(leaf.shape[1] == 1 for leaf in pytree.tree_leaves(tasks.query.x) if isinstance(leaf, Tensor))
        alone = self.depends_on_query_set and (single or not transductive)

        def predictions(task: Task, params: Params, buffers: Params) -> Any:
            episode = self._episode(task, params, buffers, steps, stored=self.statistics != "batch")
            # Outputs are computed along the way, since buffers move with the parameters.
            output = partial(outputs, episode, x=task.query.x, statistics=self.statistics, alone=alone)
            path = chain((episode.start,), episode.path(order=1))
            return stack([output(step) for step in path if at is None or step.index in at])

        self._examine(tasks, Use.ADAPT if self._takes(steps) else Use.ANSWER)
        with self._shared.apart(), self._in_use():
            tasks, own = normal_tensors(tasks), self._own(self.statistics == "shared")
            return self.engine.map(self.engine.isolated(predictions), tasks, *own, "predict")

    @undisturbed()
    def adapt(self, support: Batch, steps: int | None = None, transductive: bool = True) -> Adapted:
        """Adapt to one task, with dropout turned off.

        Args:
            support: the examples, without a task axis: ``x`` is ``[S, ...]``.
            steps: inner steps; ``None`` takes as many as in training.
            transductive: how batch norm treats the inputs that the result is called on; see `predict`.
        """
        support = pytree.tree_map_only(Tensor, Tensor.clone, require_batch(support))  # the caller may write to it later
        refuse_query_inputs(self._extras)
        task = Task(support, support)
        if self._takes(steps):
            self._examine(pytree.tree_map_only(Tensor, lambda leaf: leaf[None], task), Use.ADAPT)
        with torch.no_grad(), self._shared.apart(), self._in_use():
            own, stored = self._own(self.statistics == "shared"), self.statistics != "batch"
            episode = self._episode(task, *own, steps, stored=stored)
            with TaskOperations(vectorized=False), without_kept_tensors(*map(mine, self.children())):
                step = episode.last(order=1)
                losses = torch.stack([*step.losses, episode.support_loss(step, step.index)])
        last, model = step.latest, episode.model
        parts = model.fixed_at(last), step.params, model.buffers_at(step.buffers, last)
        fixed, params, buffers = pytree.tree_map(Tensor.clone, detach(parts))  # as in `adapt_all`
        episode = replace(episode, model=TaskModel(model.stateless, fixed, model.joint), start=Step(params, buffers))
        return Adapted(self.statistics, episode, losses, transductive, self.depends_on_query_set, self._shared)

    @undisturbed()
    @torch.no_grad()
    def adapt_all(self, support: Batch, steps: int | None = None, batch_size: int | None = None) -> AdaptedTasks:
        """Adapt to many tasks at once, with dropout turned off.

        Args:
            support: the examples of T tasks: ``x`` is ``[T, S, ...]``.
            steps: inner steps; ``None`` takes as many as in training.
            batch_size: support examples per inner step; ``None`` takes as many as in training.
        """
        refuse_joint(self.model)
        refuse_query_inputs(self._extras)

        def last(task: Task, params: Params, buffers: Params) -> tuple[Params, Params]:
            episode = self._episode(task, params, buffers, steps, stored=self.statistics != "batch")
            step, model = replace(episode, batch_size=batch_size or self.batch_size).last(order=1), episode.model
            return model.parameters(step.params, step.latest), model.buffers_at(step.buffers, step.latest)

        task = normal_tensors(Task(require_batch(support), support))
        if self._takes(steps):
            self._examine(task, Use.ADAPT)
        with self._shared.apart(), self._in_use():
            # Copies, so that training on does not change what was adapted.
            params, buffers = pytree.tree_map(Tensor.clone, self._own(self.statistics == "shared"))
            params, buffers = self.engine.map(self.engine.isolated(last), task, params, buffers, "adapt")
        return AdaptedTasks(self._stateless, self.statistics, params, buffers, self._shared)

    @property
    def depends_on_query_set(self) -> bool:
        """Whether predictions depend on the other query examples by default, through batch statistics."""
        return depends_on_inputs(self.model, self.statistics)

    @property
    def citations(self) -> tuple[str, ...]:
        """The papers behind the parts in use."""
        own = self, self.slots, self.objective, self.initial, self.outer, self.inner_loss, self.loss
        parts: list[Any] = [*own, *modules_of(self.rule, self.model)]
        return tuple(dict.fromkeys(c for part in parts if isinstance(c := getattr(part, "citation", ""), str) and c))

    def references(self) -> None:
        """Print the citations of the parts in use."""
        print("\n".join(self.citations))

    @property
    def choices(self) -> list[str]:
        """How tasks run and why, in words, as far as it has been decided."""
        return [*self.engine.reasons, *self.compiler.reasons.values()]

    def extra_repr(self) -> str:
        """Return what ``repr`` shows besides the submodules, namely selection, objective and number of inner steps."""
        return f"adapt={self.selection}, objective={type(self.objective).__name__}, steps={self.steps}"

    # -- one task -----------------------------------------------------------------------------------------------------

    def _own(self, shared: bool = False) -> tuple[Params, Params]:
        """Return the model's parameters and buffers, or their slots, of which every task gets its own copies."""
        params, buffers = self._stateless.own()
        return (params, buffers) if self.slots is None else self.slots.put(params, buffers, shared)

    def _episode(
        self,
        task: Task,
        params: Params,
        buffers: Params,
        steps: int | None = None,
        iteration: int = 0,
        stored: bool = False,
    ) -> Episode:
        if steps is not None and steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        fixed = dict(params)
        start = Step({name: fixed.pop(name) for name in self.adapted}, dict(buffers))
        model = TaskModel(self._stateless, fixed, self._joint)
        episode = Episode(
            model=model if self.slots is None else self.slots.on(model, stored),
            rule=mine(self.rule),
            loss=mine(self.loss),
            inner_loss=mine(self.inner_loss),
            task=task,
            start=start,
            steps=self._takes(steps),
            iteration=iteration,
            batch_size=self.batch_size,
            memory=self.memory,
            extras=self._extras,
        )
        if self.initial is None:
            return episode
        # New nodes of the graph: one parameter's start may be computed from another, and the gradient with respect to
        # that one must not run through it.
        params = require_start(mine(self.initial)(episode), start.params, type(self.initial).__name__)
        return replace(episode, start=start.at(anew(params)))

    def _examine(self, tasks: Task, use: Use, objective: Objective | None = None) -> None:
        """Refuse what would silently give wrong results: hooks in each call, the rest once for each set of shapes."""
        with self._shared.lock:
            refuse_hooks(self.model, self.rule, self.adapted, use >= Use.JUDGE)
            every = *tensors_of(tasks), *members_of(modules_of(self.model))[0]
            shapes = [(tensor.shape[1:], tensor.dtype, tensor.requires_grad) for tensor in every]
            if (key := (*shapes, self.model.training, use)) not in self._examined:
                self._examine_first(tasks, use, objective)
                self._examined.add(key)

    @undisturbed(alone=True)
    def _examine_first(self, tasks: Task, use: Use, objective: Objective | None) -> None:
        """Run one task and check what its parts do; the first time, also find unused parameters."""
        count(tasks)
        self._chosen.warn_of_change(self.model, judged=use >= Use.JUDGE)
        follow(self.rule, dict(self.model.named_parameters()))
        mode = in_mode(self.model, self._training_statistics) if use >= Use.JUDGE else self._in_use()
        kept, same = without_kept_tensors(*self.children()), unchanged(self, initial=self.initial)
        with mode as trained, torch.enable_grad(), TaskOperations(vectorized=False), kept as left, same as moved:
            known = any(earlier >= use for *_, earlier in self._examined)
            with (draws := Draws((self.model, *self.engine.parts.values()), self.parameters())):
                episode = self._episode(select(normal_tensors(tasks), 0), *self._own())
            result = examine(episode, use, draws, trained, None if known else objective or self.objective)
        self.engine.note(result.random, result.changing or bool(moved), result.separable, draws)
        self._shared.entangled |= bool(left) or not result.separable
