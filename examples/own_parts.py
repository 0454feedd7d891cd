"""A module, an update rule and a task source of one's own: python examples/own_parts.py [ITERATIONS]"""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from innerloop.testing import check_rule, check_source


class Gestures:
    """Tell three noisy movements apart, each a sequence of ten points in the plane: a task source."""

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        shapes = torch.randn(n, 1, 3, 10, 2, generator=generator).cumsum(3)
        x = shapes + 0.5 * torch.randn(n, 6, 3, 10, 2, generator=generator)
        y = torch.arange(3).expand(n, 6, 3)
        halves = [(x[:, i : i + 3].flatten(1, 2), y[:, i : i + 3].flatten(1, 2)) for i in (0, 3)]
        return il.Task(*(il.Batch(*half) for half in halves))


class Reader(nn.Module):
    """An ordinary module: attention over the points, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 16)
        self.attend = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.attend(self.embed(x)).mean(1))


class ClippedSGD(il.UpdateRule):
    """Clipped gradients at a rate that is meta-learned."""

    def __init__(self, lr: float = 0.1, clip: float = 1.0) -> None:
        super().__init__()
        self.lr, self.clip = nn.Parameter(torch.tensor(lr)), clip

    def forward(self, grads: il.Params, params: il.Params, state: object, step: int) -> tuple[il.Params, object]:
        return {name: -self.lr * grad.clamp(-self.clip, self.clip) for name, grad in grads.items()}, state


check_rule(ClippedSGD())
check_source(Gestures())
torch.manual_seed(0)
learner = il.MetaLearner(Reader(), ClippedSGD(), adapt=il.head | il.norms, loss=F.cross_entropy, steps=3)
trainer = il.Trainer(learner, Gestures(), iterations=int(sys.argv[1]) if len(sys.argv) > 1 else 500, tasks=8)
print("before meta-training:", il.evaluate(learner, Gestures(), num_tasks=200))
trainer.fit()
print("after meta-training: ", il.evaluate(learner, Gestures(), num_tasks=200))
print("the learned inner rate:", round(learner.rule.lr.item(), 4))
