"""Memory does not grow with how long a training or an evaluation goes on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read as Linux tells it"),
]

HEAD = """
import gc, json, resource, sys, tempfile
from pathlib import Path
import torch
from torch.nn import functional as F
import innerloop as il

torch.set_num_threads(1)

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

class Watched:
    def __init__(self, source, at):
        self.source, self.at, self.draws, self.seen = source, at, 0, []
    def sample(self, n, generator):
        self.draws += 1
        if self.draws in self.at:
            self.seen.append(resident())
        return self.source.sample(n, generator)
"""
TRAINING = """
learner = LEARNER
source = Watched(SOURCE, (1_000, 2_500, 5_000, 7_500, 10_000))
with tempfile.TemporaryDirectory() as folder:
    il.Trainer(learner, source, SOURCE, folder, iterations=10_000, tasks=4, val_tasks=4, validate_every=500,
               checkpoint_every=200, log_every=1, lr=1e-4, progress=False).fit()
print(json.dumps(source.seen))
"""
EVALUATION = """
learner = LEARNER
source = Watched(SOURCE, (1_000, 2_500, 5_000, 7_500, 10_000))
il.evaluate(learner, source, num_tasks=10_000)
print(json.dumps(source.seen))
"""
CASES = {
    "functions": ("il.maml(il.models.mlp(1, 40, 40, 1), lr=0.01, loss=F.mse_loss)", "il.Sinusoid(10)"),
    "images": (
        "il.maml_plus_plus(il.models.conv4(channels=1, ways=2, width=4, image_size=16, running=True), steps=1)",
        "il.Strokes(ways=2, shots=1, queries=1, size=16)",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", [TRAINING, EVALUATION], ids=["training", "evaluation"])
def test_memory_is_flat(what, case):
    learner, source = CASES[case]
    program = HEAD + what.replace("LEARNER", learner).replace("SOURCE", source)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) == 5
    assert max(seen) / seen[0] < 1.02, seen
