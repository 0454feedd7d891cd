"""A learner inside of a LightningModule, as the example has it."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import innerloop as il

lightning = pytest.importorskip("lightning")
EXAMPLE = Path(__file__).parents[1] / "examples" / "lightning_module.py"


def first_gradients(learner: il.MetaLearner, batches: list[il.Task], **options: Any) -> dict[str, Tensor]:
    """What the outer optimizer is given for its first step."""
    found: dict[str, Tensor] = {}

    class Watched(runpy.run_path(str(EXAMPLE))["MetaLearning"]):  # type: ignore[misc]
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            found.update({n: p.grad.clone() for n, p in self.learner.named_parameters() if p.grad is not None})

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", **quiet, **options)
    trainer.fit(Watched(learner), torch.utils.data.DataLoader(batches, batch_size=None))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_the_librarys_own(accumulate: int) -> None:
    learner = il.maml(il.models.mlp(1, 8, 1), 0.1, loss=F.mse_loss, steps=2)
    rng = torch.Generator().manual_seed(0)
    batches = [il.Sinusoid().sample(3, rng) for _ in range(accumulate)]
    each = [learner.meta_gradient(batch)[0] for batch in batches]
    expected = {name: torch.stack([grads[name] for grads in each]).mean(0) for name in each[0]}
    torch.testing.assert_close(
        first_gradients(copy.deepcopy(learner), batches, accumulate_grad_batches=accumulate), expected
    )
