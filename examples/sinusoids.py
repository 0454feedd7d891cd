"""MAML on sinusoids in a loop of one's own: python examples/sinusoids.py [ITERATIONS]"""

import sys

import torch
from torch.nn import functional as F

import innerloop as il

torch.manual_seed(0)
learner = il.maml(il.models.mlp(1, 40, 40, 1), lr=0.01, steps=1, loss=F.mse_loss)
tasks, rng = il.Sinusoid(shots=10), torch.Generator().manual_seed(0)
optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)

print("before meta-training:", il.evaluate(learner, tasks, num_tasks=600, steps=10))
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000):
    optimizer.zero_grad()
    learner(tasks.sample(25, rng)).objective.mean().backward()
    optimizer.step()
print("after meta-training: ", il.evaluate(learner, tasks, num_tasks=600, steps=10))
learner.references()
