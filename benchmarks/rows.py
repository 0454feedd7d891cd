"""What is measured: each row is one problem that every library solves in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["sinusoid", "images", "pairs", "iteration"]

INNERLOOP = "innerloop"
CONSTANT = "innerloop, constant memory"
PLAIN, PLAIN_BARE = "plain", "plain, no validation"
OWN = (INNERLOOP, CONSTANT)
CHECKOUTS = ("learn2learn", "higher", "torchopt")
PROFILED = (*OWN, PLAIN, PLAIN_BARE)
PEERS = (PLAIN, *CHECKOUTS)


@dataclass(frozen=True)
class Row:
    """One problem.

    Attributes:
        name: on the command line and in the table.
        what: in words, for the table.
        kind: where the tasks come from, and with that the network and the loss.
        tasks, ways, shots, queries: of a meta-batch; shots and queries are for each class.
        steps, lr, order, batch_size: of the inner loop; plain gradient descent.
        outer_lr: of the outer Adam.
        width: filters of the convolutional network.
        libraries: that are asked, innerloop first.
        training: meta-steps of the training that this stands for: innerloop decides by it whether compiling pays.
        note: what a reader has to know to judge the ratios.
        quick: the fields that differ in a run for the tests.
    """

    name: str
    what: str
    kind: Kind
    tasks: int
    steps: int
    lr: float
    ways: int = 1
    shots: int = 1
    queries: int = 1
    order: int = 2
    batch_size: int | None = None
    outer_lr: float = 1e-3
    width: int = 64
    libraries: tuple[str, ...] = (INNERLOOP, *PEERS)
    training: int = 60_000
    note: str = ""
    quick: Mapping[str, Any] = field(default_factory=dict)

    def small(self) -> Row:
        """The same problem, tiny. Nothing is compiled, for no training is to follow."""
        return replace(self, **{"training": 0, **self.quick})


TINY_IMAGES = {"tasks": 2, "width": 4}

PAIRS_NOTE = (
    "First order: 45 steps are 15 epochs of 3 mini-batches. `plain` also judges the network on the query images one by "
    "one after every epoch, with the graph recorded, as the tutorial does that this row stands for; the other lines "
    "compute the query loss once, after the last step. The data loading of the tutorial is in no line. The network "
    "ends in a sigmoid and the loss takes the sigmoid again, as there. TorchOpt is not asked: its differentiable "
    "optimizers always take second derivatives."
)
ITERATION_NOTE = (
    "Each library draws its own tasks, so losses are not compared. An iteration draws 32 training tasks and 32 "
    "validation tasks, takes an outer step on the former, and has loss and accuracy of the latter. learn2learn reads "
    "and shrinks the PNG files as its own example does; innerloop holds them decoded, in bytes."
)
MEMORY_NOTE = "Here the memory is what matters. The plain loop differentiates one task at a time."

SINUSOID = Row(
    "sinusoid-1",
    "multi-layer perceptron 1-40-40-1, 25 sinusoids, 10 and 10 points, 1 step",
    "sinusoid",
    tasks=25,
    shots=10,
    queries=10,
    steps=1,
    lr=0.01,
    training=70_000,
    quick={"tasks": 3},
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        SINUSOID,
        replace(SINUSOID, name="sinusoid-5", what=SINUSOID.what.replace("1 step", "5 steps"), steps=5),
        Row(
            "conv4-5w1s-q1",
            "Conv-4, 64 filters, 32 tasks of 5 ways and 1 shot, 1 query a class, 1 step",
            "images",
            tasks=32,
            ways=5,
            steps=1,
            lr=0.1,
            quick=TINY_IMAGES,
        ),
        Row(
            "conv4-5w1s-q15",
            "Conv-4, 64 filters, 32 tasks of 5 ways and 1 shot, 15 queries a class, 1 step",
            "images",
            tasks=32,
            ways=5,
            queries=15,
            steps=1,
            lr=0.1,
            quick=TINY_IMAGES | {"queries": 2},
        ),
        Row(
            "conv4-20w1s-5steps",
            "Conv-4, 64 filters, 8 tasks of 20 ways and 1 shot, 1 query a class, 5 steps",
            "images",
            tasks=8,
            ways=20,
            steps=5,
            lr=0.01,
            quick=TINY_IMAGES | {"ways": 6, "steps": 2},
        ),
        Row(
            "alphabet-pairs",
            "two characters of an alphabet at 105 x 105, 8 problems, 45 first-order steps on batches of 8",
            "pairs",
            tasks=8,
            ways=2,
            shots=15,
            queries=5,
            steps=45,
            lr=0.01,
            order=1,
            batch_size=8,
            libraries=(INNERLOOP, PLAIN, PLAIN_BARE, "learn2learn", "higher"),
            training=10_000,
            note=PAIRS_NOTE,
            quick={"tasks": 2, "steps": 6},
        ),
        Row(
            "omniglot-iteration",
            "a whole iteration with its data: fully connected network, 32 + 32 Omniglot tasks, 5 ways, 1 shot, 1 step",
            "iteration",
            tasks=32,
            ways=5,
            steps=1,
            lr=0.5,
            outer_lr=3e-3,
            libraries=(INNERLOOP, "learn2learn"),
            note=ITERATION_NOTE,
            quick={"tasks": 2},
        ),
        Row(
            "memory-50",
            "Conv-4, 64 filters, 2 tasks of 5 ways and 5 shots, 1 query a class, 50 steps",
            "images",
            tasks=2,
            ways=5,
            shots=5,
            steps=50,
            lr=0.01,
            libraries=(INNERLOOP, CONSTANT, PLAIN),
            training=10_000,
            note=MEMORY_NOTE,
            quick=TINY_IMAGES | {"steps": 4},
        ),
    )
}
