import subprocess
import sys

CODE = """
import sys
for name in ("numpy", "PIL", "rich"):
    sys.modules[name] = None
import torch
from innerloop.data import TASKS
print(tuple(TASKS["strokes"]().train.sample(2, torch.Generator().manual_seed(0)).support.x.shape))
"""


def test_only_torch_is_needed_without_image_files():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(2, 5, 1, 28, 28)", result.stderr
