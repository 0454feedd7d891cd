import subprocess
import sys

CODE = """
import sys
for name in ("numpy", "PIL", "rich"):
    sys.modules[name] = None
import torch
from innerloop.data import TASKS
TASKS["strokes"]().train.sample(2, torch.Generator().manual_seed(0))
"""


def test_only_torch_is_needed_without_image_files():
    subprocess.run([sys.executable, "-c", CODE], check=True)
