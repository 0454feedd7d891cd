"""The MetaLearner: an inner loop with its model, update rule, selection and objective."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from . import unequal
from .adapted import (
    Adapted,
    AdaptedTasks,
    depends_on_inputs,
    outputs,
    refuse_joint,
    require_adapted,
    restored,
    warn_of_statistics,
)
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
from .objectives import Implicit, Objective, Outcome, Reptile, Unrolled
from .operations.replacements import TaskOperations
from .padding import ignores_padding, terms_of
from .per_step import PerStepModel, Slots, average
from .rules import Composed, UpdateRule, require_step
from .select import Selection, everything
from .support_norm import joint
from .task import (
    Batch,
    Params,
    Task,
    Tasks,
    count,
    is_stacked,
    joined,
    kind_of,
    require_batch,
    select,
    stack,
    tensors_of,
)
from .task_model import TaskModel
from .updates import follow, require_kept, require_start

Run = Callable[[unequal.Group], Any]
"""Runs the tasks of a group at once."""
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
        self._padding: dict[Any, bool | None] = {}
        self._shared = Shared(model, *self.engine.parts.values(), moving=self._moving)
        rule.bind({name: p.detach() for name, p in model.named_parameters() if name in self.adapted}, steps)

    @undisturbed(alone=True)
    def forward(self, tasks: Tasks, iteration: int = 0, objective: Objective | None = None) -> Outcome:
        """Adapt to every task and evaluate the result.

        Args:
            tasks: a meta-batch, every tensor with a leading task axis ``[T, ...]``, or a list of tasks.
            iteration: the outer iteration, for schedules.
            objective: replaces the learner's own objective.
        """
        judge = self.engine.isolated(self._judge, iteration=iteration, objective=objective)
        purpose = ("judge", "forward")[torch.is_grad_enabled()]

        def run(group: unequal.Group) -> tuple[Outcome, Left]:
            return self.engine.map(judge, group.tasks, *self._own(), purpose, group.kind)  # type: ignore[no-any-return]

        with in_mode(self.model, self._training_statistics):
            use = judging(objective or self.objective)
            groups = self._groups(normal_tensors(tasks), use, run, objective)
            outcomes, left = zip(*map(run, groups), strict=True)
            self._renew((unequal.weighted_mean(groups, [average(each[0]) for each in left]), {}))
        return Outcome(*outcomes[0]) if is_stacked(tasks) else unequal.together(groups, outcomes)

    @guarded
    @torch.enable_grad()
    def meta_gradient(self, tasks: Tasks, iteration: int = 0) -> tuple[Params, Outcome]:
        """Return the gradient of the mean objective with respect to every meta-parameter, and the detached outcome.

        The gradient is computed for one chunk of tasks after another, so memory holds the graph of one chunk.
        Meta-parameters that the objective does not depend on get a gradient of zero.

        Args:
            tasks: a meta-batch, every tensor with a leading task axis ``[T, ...]``, or a list of tasks.
            iteration: the outer iteration, for schedules.

        Raises:
            ValueError: every parameter is frozen.
        """
        with self._shared.lock:
            tasks = normal_tensors(tasks)
            if not isinstance(tasks, list) and is_stacked(tasks):
                grads, outcome, left = self._step(unequal.Group.of_equal(tasks), iteration)
                self._renew(left)
                return grads, outcome
            total = count(tasks)

            def run(group: unequal.Group) -> tuple[Params, Outcome, Left]:
                return self._step(group, iteration, total)

            groups = self._groups(tasks, judging(self.objective), run)
            grads_of, outcomes, left_of = zip(*map(run, groups), strict=True)
            slots, state = zip(*left_of, strict=True)
            self._renew((unequal.weighted_mean(groups, slots), unequal.weighted_mean(groups, state)))
            grads = {name: torch.stack([each[name] for each in grads_of]).sum(0) for name in grads_of[0]}
            return grads, unequal.together(groups, outcomes)

    def _step(self, group: unequal.Group, iteration: int, total: int | None = None) -> tuple[Params, Outcome, Left]:
        """Return the part of a group in the meta-gradient of a meta-batch of ``total`` tasks, compiled or not."""
        tasks, values = group.tasks, tensors(self, group.tasks)
        step = partial(self._gradients, iteration=iteration, total=total, kind=group.kind)
        key = signature(self, tasks, values), self.steps, self.batch_size, total, self.objective.constants(iteration)
        if (compiled := self.compiler.get(key)) is not None:  # it runs on values: no snapshot is needed
            refuse_hooks(self.model, self.rule, self.adapted, judged=True)
            return compiled(values, partial(in_turn, partial(step, tasks), self._shared))  # type: ignore[no-any-return]
        if not group.kind:
            self._examine(tasks, judging(self.objective))
        if group.kind and self.compiler.setting is not True:  # hardly any shapes come twice
            return in_turn(partial(step, tasks), self._shared)  # type: ignore[no-any-return]
        run = partial(self.compiler.run, self, key, step, tasks, values, partial(self._lasting, iteration))
        return in_turn(run, self._shared)  # type: ignore[no-any-return]

    def _lasting(self, iteration: int) -> bool:
        """Return whether the objective stays the same for some iterations."""
        return self.objective.constants(iteration) == self.objective.constants(iteration + SOON)

    def _gradients(
        self, tasks: Task, iteration: int, total: int | None = None, kind: str = ""
    ) -> tuple[Params, Outcome, Left]:
        """Return the meta-gradient, the outcome, and what the tasks pass on to later ones.

        The tasks are a group of this kind (`innerloop.unequal.Group`) in a meta-batch of ``total`` tasks.
        """
        learned = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not learned:
            raise ValueError("nothing to meta-learn: every parameter of the learner is frozen (requires_grad=False)")
        number, summed, outcomes = total or count(tasks), [torch.zeros_like(p) for p in learned.values()], []

        def differentiate(result: tuple[Outcome, Left]) -> tuple[Sequence[Tensor], tuple[Outcome, Left]]:
            # Differentiate the mean: if the backward pass is not linear, dividing afterwards would give another result.
            objective, by = result[0].objective.sum() / number, list(learned.values())
            return torch.autograd.grad(objective, by, allow_unused=True, materialize_grads=True), detach(result)

        with in_mode(self.model, self._training_statistics):
            judge = self.engine.isolated(self._judge, iteration=iteration)
            for grads, outcome in self.engine.chunks(judge, tasks, *self._own(), "meta-gradient", differentiate, kind):
                summed = [a + b for a, b in zip(summed, grads, strict=True)]
                outcomes.append(outcome)
        outcome, left = pytree.tree_map(lambda *parts: torch.cat(parts), *outcomes)
        return dict(zip(learned, summed, strict=True)), Outcome(*outcome), (average(left[0]), average(left[1]))

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
        self, tasks: Tasks, steps: int | None = None, transductive: bool = True, at: Collection[int] | None = None
    ) -> Any:
        """Return the model's output on the query sets after 0, 1, ..., K inner steps, ``[T, K + 1, Q, ...]``.

        For tasks of different sizes, it is a list with ``[K + 1, Q, ...]`` for each task. No graph is kept, and dropout
        is off.

        Args:
            tasks: a meta-batch of T tasks, or a list of them.
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

        def predictions(task: Task, params: Params, buffers: Params, alone: bool) -> Any:
            episode = self._episode(task, params, buffers, steps, stored=self.statistics != "batch")
            # Outputs are computed along the way, since buffers move with the parameters.
            output = partial(outputs, episode, x=task.query.x, statistics=self.statistics, alone=alone)
            path = chain((episode.start,), episode.path(order=1))
            return stack([output(step) for step in path if at is None or step.index in at])

        def run(group: unequal.Group) -> Any:
            alone = self.depends_on_query_set and (not transductive or set(group.queries) == {1})
            predict = self.engine.isolated(predictions, alone=alone)
            with self._shared.apart(), self._in_use():
                own = self._own(self.statistics == "shared")
                return self.engine.map(predict, group.tasks, *own, "predict", group.kind)

        groups = self._groups(normal_tensors(tasks), Use.ADAPT if self._takes(steps) else Use.ANSWER, run)
        if is_stacked(tasks):
            return run(groups[0])
        return unequal.in_order(groups, [list(unequal.outputs_of(group, run(group), axis=1)) for group in groups])

    @undisturbed()
    def adapt(
        self,
        support: Batch,
        steps: int | None = None,
        transductive: bool = True,
        *,
        after: Adapted | None = None,
        path: bool = False,
    ) -> Adapted:
        """Adapt to one task, with dropout turned off.

        Args:
            support: the examples, without a task axis: ``x`` is ``[S, ...]``.
            steps: inner steps; ``None`` takes as many as in training.
            transductive: how batch norm treats the inputs that the result is called on; see `predict`.
            after: what to go on from, with the state of its update rule: 3 steps after 2 are 5 steps. The examples may
                be others. What the inner loop does not move is the learner's own.
            path: whether to keep the parameters before and after each step, as its ``path``.
        """
        support = pytree.tree_map_only(Tensor, Tensor.clone, require_batch(support))  # the caller may write to it later
        refuse_query_inputs(self._extras)
        if after is not None:
            after.require_of(self._shared)
        task = Task(support, support)
        if self._takes(steps):
            self._examine(pytree.tree_map_only(Tensor, lambda leaf: leaf[None], task), Use.ADAPT)
        with torch.no_grad(), self._shared.apart(), self._in_use():
            own, stored = self._own(self.statistics == "shared"), self.statistics != "batch"
            episode = self._episode(task, *own, steps, stored=stored)
            start = episode.start if after is None else after.reached
            with TaskOperations(vectorized=False), without_kept_tensors(*map(mine, self.children())):
                taken = [start, *episode.path(order=1, start=start)] if path else []
                step = taken[-1] if path else episode.last(order=1, start=start)
                losses = torch.stack([*step.losses, episode.support_loss(step, step.index)])
        kept = [pytree.tree_map(Tensor.clone, detach(each.params)) for each in taken]
        last, model = step.latest, episode.model
        parts = model.fixed_at(last), step.params, model.buffers_at(step.buffers, last)
        fixed, params, buffers = pytree.tree_map(Tensor.clone, detach(parts))  # as in `adapt_all`
        episode = replace(episode, model=TaskModel(model.stateless, fixed, model.joint), start=Step(params, buffers))
        how = transductive, self.depends_on_query_set
        return Adapted(self.statistics, episode, losses, *how, self._shared, step.kept(), tuple(kept))

    @undisturbed()
    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> Adapted:
        """Return the adapted model whose `Adapted.state_dict` is given. It predicts and goes on as that one does.

        Raises:
            ValueError: it was adapted by another learner, or ``state`` is something else.
        """
        require_adapted(state)
        with self._shared.apart(), self._in_use():
            own, support = self._own(self.statistics == "shared"), Batch(*state["support"])
            episode = self._episode(Task(support, support), *own, steps=0, stored=self.statistics != "batch")
            return restored(state, episode, self.statistics, self.depends_on_query_set, self._shared)

    @undisturbed()
    @torch.no_grad()
    def adapt_all(
        self, support: Batch | list[Batch], steps: int | None = None, batch_size: int | None = None
    ) -> AdaptedTasks:
        """Adapt to many tasks at once, with dropout turned off.

        Args:
            support: the examples of T tasks: ``x`` is ``[T, S, ...]``; or a list with the support set of each task.
            steps: inner steps; ``None`` takes as many as in training.
            batch_size: support examples per inner step; ``None`` takes as many as in training.
        """
        refuse_joint(self.model)
        refuse_query_inputs(self._extras)

        def last(task: Task, params: Params, buffers: Params) -> tuple[Params, Params]:
            episode = self._episode(task, params, buffers, steps, stored=self.statistics != "batch")
            step, model = replace(episode, batch_size=batch_size or self.batch_size).last(order=1), episode.model
            return model.parameters(step.params, step.latest), model.buffers_at(step.buffers, step.latest)

        def run(group: unequal.Group) -> tuple[Params, Params]:
            with self._shared.apart(), self._in_use():
                # Copies, so that training on does not change what was adapted.
                own: tuple[Params, Params] = pytree.tree_map(Tensor.clone, self._own(self.statistics == "shared"))
                adapt = self.engine.isolated(last)
                return self.engine.map(adapt, group.tasks, *own, "adapt", group.kind)  # type: ignore[no-any-return]

        tasks, use = normal_tensors(unequal.tasks_of(support)), Use.ADAPT if self._takes(steps) else None
        groups = self._groups(tasks, use, run, pads=batch_size is None)
        adapted = [run(group) for group in groups]
        params, buffers = pytree.tree_map(lambda *parts: unequal.stacked_in_order(groups, parts), *adapted)
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

    def _groups(
        self, tasks: Tasks, use: Use | None, run: Run, objective: Objective | None = None, pads: bool = True
    ) -> list[unequal.Group]:
        """Examine a meta-batch, and decide which of its tasks run at once.

        ``run`` does with a group what the examination is for (``use``). Without a use, nothing is examined or padded.
        """
        tasks = unequal.prepared(tasks)
        if not isinstance(tasks, list):
            if use is not None:
                self._examine(tasks, use, objective)
            return [unequal.Group.of_equal(tasks)]
        if use is None:
            return unequal.equal_groups(tasks)
        alike = [[tasks[place] for place in places] for places in unequal.by_kind(tasks).values()]
        for some in alike:
            self._examine(stack(some[:1]), use, objective, sizes=False)
        if not pads or not all(self._pads(some, objective or self.objective) for some in alike):
            return unequal.equal_groups(tasks)
        groups, name = partial(unequal.padded_groups, tasks), unequal.name_of(tasks[0])
        return groups(self.engine.groups(name, len(tasks), lambda number: list(map(run, groups(number)))))

    def _pads(self, tasks: list[Task], objective: Objective) -> bool:
        """Whether examples that fill up tasks of one kind change nothing but rounding."""
        plain = self.initial is None and self.slots is None and not self._extras and not self._joint
        whole = self.batch_size is None and type(objective) in (Unrolled, Reptile, Implicit)
        means = terms_of(self.loss) is not None and terms_of(self.inner_loss) is not None
        engine = self.engine
        if not (plain and whole and means and engine.vectorized) or engine.random or engine.changing:
            return False
        if depends_on_inputs(self.model, self._training_statistics):
            return False
        if isinstance(joined(tasks), Task):
            return True  # nothing of them is filled up
        key = kind_of(tasks[0]), self.model.training
        if (known := self._padding.get(key)) is None:
            known = self._padding[key] = self._ignores_padding(tasks)
        return bool(known)

    @undisturbed(alone=True)
    @torch.no_grad()
    def _ignores_padding(self, tasks: list[Task]) -> bool | None:
        with TaskOperations(vectorized=False), without_kept_tensors(*self.children()):
            return ignores_padding(partial(self._stateless, *self._own()), tasks)

    def _examine(self, tasks: Task, use: Use, objective: Objective | None = None, sizes: bool = True) -> None:
        """Refuse what would silently give wrong results: hooks in each call, the rest once for each set of shapes.

        With ``sizes=False``, the numbers of examples do not count as part of the shapes.
        """
        with self._shared.lock:
            refuse_hooks(self.model, self.rule, self.adapted, use >= Use.JUDGE)
            data, own = tensors_of(tasks), members_of(modules_of(self.model))[0]
            every = [(t.shape[1 if sizes else 2 :], t) for t in data] + [(p.shape[1:], p) for p in own]
            shapes = [(shape, tensor.dtype, tensor.requires_grad) for shape, tensor in every]
            if (key := (*shapes, sizes, self.model.training, use)) not in self._examined:
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
