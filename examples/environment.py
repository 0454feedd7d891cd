"""A family of decision processes of one's own: a swing that is to be held at an angle which differs from task to task.

All episodes of all tasks are stepped at once, as tensors [tasks, episodes]; `rl.VectorTasks` takes Gymnasium's instead.
"""

import torch

import innerloop as il
from innerloop import rl


class Swing:
    observations, actions, discrete, horizon = 2, 1, False, 30

    def tasks(self, n, generator):
        return 2 * torch.rand(n, 1, generator=generator) - 1  # the angles, which the policy does not see

    def reset(self, tasks, episodes, generator):
        self.wanted = tasks
        self.angle, self.speed = (0.1 * torch.randn(len(tasks), episodes, generator=generator) for _ in range(2))
        return self.seen()

    def step(self, action):
        push = action[..., 0].clamp(-1, 1)
        self.speed = 0.9 * self.speed + 0.2 * push - 0.1 * torch.sin(self.angle)
        self.angle = self.angle + 0.2 * self.speed
        return rl.Step(self.seen(), -(self.angle - self.wanted).abs(), torch.zeros_like(self.angle, dtype=torch.bool))

    def seen(self):
        return torch.stack([self.angle, self.speed], -1)


torch.manual_seed(0)
learner = rl.maml_trpo(rl.gaussian_policy(2, 1, hidden=(16,)), lr=0.2, episodes=10, steps=1)
tasks = rl.Interaction(Swing())
print(il.evaluate(learner, tasks, num_tasks=40))
il.Trainer(learner, tasks, iterations=20, tasks=10).fit()
print(il.evaluate(learner, tasks, num_tasks=40))
