from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import innerloop as il


def learners(number):
    for seed in range(number):
        torch.manual_seed(seed)
        yield il.maml(il.models.mlp(1, 8, 1), lr=0.01, steps=2, loss=F.mse_loss)


def test_outputs_are_averaged_after_each_has_adapted_by_itself():
    members, tasks = list(learners(3)), il.Sinusoid().sample(4, torch.Generator().manual_seed(0))
    together = il.Ensemble(members)
    expected = torch.stack([learner.predict(tasks, steps=1) for learner in members]).mean(0)
    torch.testing.assert_close(together.predict(tasks, steps=1), expected)
    assert len(list(together.parameters())) == 3 * len(list(members[0].parameters()))


def test_an_ensemble_is_evaluated_like_a_learner():
    members = list(learners(3))
    found = il.evaluate(il.Ensemble(members), il.Sinusoid(), num_tasks=20)
    alone = [il.evaluate(learner, il.Sinusoid(), num_tasks=20) for learner in members]
    assert (found.metric, found.num_tasks, len(found.steps)) == ("mse", 20, 3)
    assert found.mean < sum(one.mean for one in alone) / 3  # the mean square is convex
    assert il.evaluate(il.Ensemble(members[:1]), il.Sinusoid(), num_tasks=20) == alone[0]


def test_an_empty_ensemble_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        il.Ensemble([])
