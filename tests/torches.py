"""What the oldest supported torch cannot do: tests that need it are skipped there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def _checkpoints_at_once() -> bool:
    x = torch.ones(2, 3, requires_grad=True)
    try:
        torch.vmap(lambda row: checkpoint(torch.sin, row, use_reentrant=False))(x)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return False
    return True


def _fits_rows() -> bool:
    try:
        F.gaussian_nll_loss(torch.ones(4, 3), torch.ones(4, 3), torch.ones(1, 3))
    except ValueError:
        return False
    return True


FITS_ROWS = _fits_rows()
"""Whether a variance for each column is accepted, which broadcasts over the rows."""
CHECKPOINTS_AT_ONCE = _checkpoints_at_once()
checkpoints_at_once = pytest.mark.skipif(
    not CHECKPOINTS_AT_ONCE, reason=f"torch {torch.__version__} cannot checkpoint under vmap"
)
compiles_scatter = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="TorchInductor of torch 2.6 fails on the gradient of cross-entropy"
)
AT_ONCE_AND_ONE_BY_ONE = [pytest.param(True, marks=checkpoints_at_once), False]
"""Values of ``vectorize`` for models that checkpoint."""


def exports_norms() -> bool:
    """Whether torch's exporter to ONNX knows batch norm."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    try:
        torch.onnx.export(module, (torch.ones(1, 1, 4, 4),), dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError:
        return False
    return True
