"""Any learner in PyTorch Lightning, here MAML on sinusoids: python examples/lightning_module.py [ITERATIONS]"""

import sys
from collections.abc import Iterator

import lightning
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import innerloop as il


class MetaLearning(lightning.LightningModule):
    """Lightning's optimization, by meta-gradients that hold the graph of some tasks at a time and may be compiled."""

    def __init__(self, learner: il.MetaLearner, lr: float = 3e-3) -> None:
        super().__init__()
        self.learner, self.lr = learner, lr

    def on_fit_start(self) -> None:
        self.learner.compiler.steps_to_come = self.trainer.max_steps

    def training_step(self, tasks: il.Task, index: int) -> torch.Tensor:
        self.grads, outcome = self.learner.meta_gradient(tasks, self.global_step)
        return outcome.objective.mean()

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients are there already. Processes that have to share theirs need torch's: leave this out, and return
        ``self.learner(tasks, self.global_step).objective.mean()`` above."""
        for name, grad in self.grads.items():
            parameter, share = self.learner.get_parameter(name), grad / self.trainer.accumulate_grad_batches
            parameter.grad = share if parameter.grad is None else parameter.grad + share

    def validation_step(self, tasks: il.Task, index: int) -> None:
        outputs = self.learner.predict(tasks, steps=5)  # [tasks, steps + 1, examples, 1]
        self.log_dict({f"val_mse_after_{k}": F.mse_loss(y, tasks.query.y) for k, y in enumerate(outputs.unbind(1))})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.learner.parameters(), self.lr)


def meta_batches(source: il.TaskSource, tasks: int) -> Iterator[il.Task]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield source.sample(tasks, generator)


if __name__ == "__main__":
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    lightning.seed_everything(0)
    module = MetaLearning(il.maml(il.models.mlp(1, 40, 40, 1), lr=0.01, loss=F.mse_loss))
    val = DataLoader([il.Sinusoid().sample(200, torch.Generator().manual_seed(1))], batch_size=None)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_steps=iterations, inference_mode=False, **options)  # adapting needs gradients
    trainer.validate(module, val)
    trainer.fit(module, meta_batches(il.Sinusoid(), 25), val)
    trainer.validate(module, val)
