"""Every layer and loss of ``torch.nn`` through an inner loop: what becomes of it, as a page of the documentation.

`python -m tests.layers --write` writes ``docs/layers.md``; names behind it judge and print these alone. Each is judged
in all its variants against a plain loop in float64 (`tests.fuzz.cases`), and the worst of them counts.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.cases import Case
from tests.fuzz.operators import Verdict, judge

PAGE = Path(__file__).parents[1] / "docs" / "layers.md"
NO_LAYERS = {
    "Container", "Module", "RNNBase", "RNNCellBase", "DataParallel", "ModuleDict", "ModuleList", "ParameterDict",
    "ParameterList", "Sequential",
}  # fmt: skip
"""Classes that hold others or are made to derive from."""

LAYERS: dict[str, list[str]] = {
    # constructor @ inputs: R adapted numbers, U such between 0 and 1, P positive ones, I integers below the first
    # argument, B booleans, K numbers that are not adapted.
    "Linear": ["nn.Linear(3, 2) @ R(4, 3)", "nn.Linear(3, 2, bias=False) @ R(3)", "nn.Linear(3, 2) @ R(2, 4, 3)"],
    "Bilinear": ["nn.Bilinear(3, 2, 4) @ R(5, 3), R(5, 2)", "nn.Bilinear(3, 2, 4, bias=False) @ R(3), R(2)"],
    "Identity": ["nn.Identity() @ R(4, 3)"],
    "LazyLinear": ["nn.LazyLinear(2) @ R(4, 3)"],
    "Flatten": ["nn.Flatten() @ R(2, 3, 4)"],
    "Unflatten": ["nn.Unflatten(1, (2, 3)) @ R(2, 6)"],
    # convolutions
    **{
        f"Conv{d}d": [
            f"nn.Conv{d}d(2, 4, 3, padding=1) @ {x(3, 2)}",
            f"nn.Conv{d}d(2, 4, 3, padding='same', bias=False) @ {x(1, 2)}",
            f"nn.Conv{d}d(2, 4, 2, padding='same') @ {x(2)}",
            f"nn.Conv{d}d(4, 4, 2, groups=2, stride=2, padding=1) @ {x(1, 4)}",
            f"nn.Conv{d}d(4, 4, 2, groups=4, dilation=2) @ {x(2, 4)}",
            f"nn.Conv{d}d(2, 2, 3, padding=1, padding_mode='circular') @ {x(1, 2)}",
            f"nn.Conv{d}d(2, 2, 3, padding=1, padding_mode='reflect') @ {x(1, 2)}",
            *([f"last(nn.Conv2d(4, 4, 2, groups=2)) @ last({x(1, 4)})", f"last(nn.Conv2d(2, 3, 2)) @ last({x(3, 2)})"]
              if d == 2 else []),
        ]
        for d, x in (
            (1, lambda *s: f"R{(*s, 5)}"), (2, lambda *s: f"R{(*s, 5, 4)}"), (3, lambda *s: f"R{(*s, 4, 3, 4)}")
        )
    },
    **{
        f"ConvTranspose{d}d": [
            f"nn.ConvTranspose{d}d(2, 4, 3, padding=1) @ {x(3, 2)}",
            f"nn.ConvTranspose{d}d(4, 4, 3, groups=2, stride=2, output_padding=1) @ {x(1, 4)}",
            f"nn.ConvTranspose{d}d(2, 2, 2, dilation=2, bias=False) @ {x(2)}",
        ]
        for d, x in (
            (1, lambda *s: f"R{(*s, 4)}"), (2, lambda *s: f"R{(*s, 3, 4)}"), (3, lambda *s: f"R{(*s, 2, 3, 2)}")
        )
    },
    **{f"LazyConv{d}d": [f"nn.LazyConv{d}d(3, 2) @ R{(2, 2, *[3] * d)}"] for d in (1, 2, 3)},
    **{f"LazyConvTranspose{d}d": [f"nn.LazyConvTranspose{d}d(3, 2) @ R{(2, 2, *[3] * d)}"] for d in (1, 2, 3)},
    "Unfold": ["nn.Unfold(2, padding=1) @ R(2, 2, 4, 3)", "nn.Unfold(2, stride=2) @ R(2, 4, 4)"],
    "Fold": ["nn.Fold((4, 3), 2) @ R(2, 8, 6)", "nn.Fold((4, 4), 2, stride=2) @ R(8, 4)"],
    # pooling
    **{f"MaxPool{d}d": [
        f"nn.MaxPool{d}d(2) @ R{(2, 2, *[4] * d)}", f"nn.MaxPool{d}d(3, 2, 1, ceil_mode=True) @ R{(1, 2, *[5] * d)}",
        f"nn.MaxPool{d}d(2, dilation=2) @ R{(2, *[5] * d)}",
        f"nn.MaxPool{d}d(2, return_indices=True) @ R{(2, 2, *[4] * d)}",
    ] for d in (1, 2, 3)},
    **{f"MaxUnpool{d}d": [f"nn.MaxUnpool{d}d(2) @ R{(2, 2, *[2] * d)}, pooled{(2, 2, *[4] * d)}"] for d in (1, 2, 3)},
    **{f"AvgPool{d}d": [
        f"nn.AvgPool{d}d(2) @ R{(2, 2, *[4] * d)}",
        f"nn.AvgPool{d}d(3, 2, 1, ceil_mode=True, count_include_pad=False) @ R{(2, *[5] * d)}",
        f"nn.AvgPool{d}d(3, 2, 1) @ R{(1, 2, *[5] * d)}",
    ] for d in (1, 2, 3)},
    **{f"LPPool{d}d": [f"nn.LPPool{d}d(2, 2) @ P{(2, 2, *[4] * d)}", f"nn.LPPool{d}d(3, 2) @ P{(2, *[4] * d)}"]
       for d in (1, 2, 3)},
    **{f"Adaptive{kind}Pool{d}d": [
        f"nn.Adaptive{kind}Pool{d}d(2) @ R{(2, 2, *[5] * d)}", f"nn.Adaptive{kind}Pool{d}d(1) @ R{(1, 2, *[3] * d)}",
        f"nn.Adaptive{kind}Pool{d}d(1) @ R{(2, *[3] * d)}",
    ] for kind in ("Avg", "Max") for d in (1, 2, 3)},
    **{f"FractionalMaxPool{d}d": [
        f"nn.FractionalMaxPool{d}d(2, output_size=3, _random_samples=torch.rand(2, 2, {d})) @ R{(2, 2, *[5] * d)}"
    ] for d in (2, 3)},
    # padding, upsampling
    **{f"{kind}Pad{d}d": [f"nn.{kind}Pad{d}d(1{', 0.5' if kind == 'Constant' else ''}) @ R{(*n, 2, *[3] * d)}"
                          for n in ((2,), (1,), ())]
       for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero") for d in (1, 2, 3)},
    "Upsample": [
        "nn.Upsample(scale_factor=2) @ R(2, 2, 3)", "nn.Upsample(scale_factor=2, mode='linear') @ R(1, 2, 3)",
        "nn.Upsample(size=(5, 4), mode='bilinear', align_corners=True) @ R(2, 2, 3, 3)",
        "nn.Upsample(scale_factor=2, mode='bicubic') @ R(1, 2, 3, 3)",
        "nn.Upsample(scale_factor=1.5) @ R(2, 2, 3, 3)",
        "nn.Upsample(scale_factor=2) @ R(1, 2, 2, 3, 2)",
        "nn.Upsample(scale_factor=2, mode='trilinear') @ R(2, 2, 2, 3, 2)",
        "nn.Upsample(size=(2, 2), mode='nearest-exact') @ last(R(2, 2, 3, 3))",
    ],
    "UpsamplingBilinear2d": ["nn.UpsamplingBilinear2d(scale_factor=2) @ R(2, 2, 3, 3)"],
    "UpsamplingNearest2d": ["nn.UpsamplingNearest2d(scale_factor=2) @ R(1, 2, 3, 3)"],
    "PixelShuffle": ["nn.PixelShuffle(2) @ R(2, 4, 2, 3)", "nn.PixelShuffle(2) @ R(4, 2, 3)"],
    "PixelUnshuffle": ["nn.PixelUnshuffle(2) @ R(1, 2, 4, 2)"],
    "ChannelShuffle": ["nn.ChannelShuffle(2) @ R(2, 4, 3, 3)", "nn.ChannelShuffle(2) @ last(R(1, 4, 3, 3))"],
    # activations
    **{name: [f"nn.{name}() @ R(4, 3)"] for name in (
        "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
        "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
    )},
    "GLU": ["nn.GLU() @ R(3, 4)"],
    "PReLU": ["nn.PReLU() @ R(4, 3)", "nn.PReLU(3) @ R(2, 3, 4)"],
    "RReLU": ["nn.RReLU().eval() @ R(4, 3)"],
    "Threshold": ["nn.Threshold(0.1, 2.0) @ R(4, 3)"],
    **{name: [f"nn.{name}(-1) @ R(4, 3)"] for name in ("Softmax", "LogSoftmax", "Softmin")},
    "Softmax2d": ["nn.Softmax2d() @ R(2, 3, 2, 2)", "nn.Softmax2d() @ R(3, 2, 2)"],
    "MultiheadAttention": [
        "nn.MultiheadAttention(4, 2) @ R(3, 2, 4), R(5, 2, 4), R(5, 2, 4)",
        "nn.MultiheadAttention(4, 2, batch_first=True) @ R(2, 3, 4), R(2, 3, 4), R(2, 3, 4), padding()",
        "nn.MultiheadAttention(4, 2) @ R(3, 2, 4), R(3, 2, 4), R(3, 2, 4), attn_mask=causal(3)",
        "nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3, vdim=2) @ R(3, 2, 4), R(5, 2, 3), R(5, 2, 2)",
        "nn.MultiheadAttention(4, 2) @ R(3, 4), R(5, 4), R(5, 4)",
        "nn.MultiheadAttention(4, 2).eval() @ R(3, 2, 4), R(5, 2, 4), R(5, 2, 4), need_weights=False",
    ],
    # norms
    **{f"BatchNorm{d}d": [
        f"nn.BatchNorm{d}d(3) @ R{s}", f"nn.BatchNorm{d}d(3, affine=False, track_running_stats=False) @ R{s}",
        f"nn.BatchNorm{d}d(3, momentum=None) @ R{s}", f"nn.BatchNorm{d}d(3).eval() @ R{s}",
    ] for d, s in ((1, (4, 3)), (2, (3, 3, 2, 2)), (3, (2, 3, 2, 2, 2)))},
    **{f"LazyBatchNorm{d}d": [f"nn.LazyBatchNorm{d}d() @ R{(3, 2, *[2] * d)}"] for d in (1, 2, 3)},
    "SyncBatchNorm": ["nn.SyncBatchNorm(3).eval() @ R(4, 3)"],
    **{f"InstanceNorm{d}d": [
        f"nn.InstanceNorm{d}d(3) @ R{(2, 3, *[3] * d)}",
        f"nn.InstanceNorm{d}d(3, affine=True, track_running_stats=True) @ R{(1, 3, *[3] * d)}",
        f"nn.InstanceNorm{d}d(3, affine=True, track_running_stats=True).eval() @ R{(2, 3, *[3] * d)}",
        f"nn.InstanceNorm{d}d(3, affine=True) @ R{(3, *[3] * d)}",
    ] for d in (1, 2, 3)},
    **{f"LazyInstanceNorm{d}d": [f"nn.LazyInstanceNorm{d}d(affine=True) @ R{(2, 2, *[3] * d)}"] for d in (1, 2, 3)},
    "LayerNorm": [
        "nn.LayerNorm(4) @ R(3, 4)", "nn.LayerNorm((3, 4)) @ R(2, 3, 4)",
        "nn.LayerNorm(4, elementwise_affine=False) @ R(2, 3, 4)", "nn.LayerNorm(4, bias=False) @ R(4)",
    ],
    "RMSNorm": ["nn.RMSNorm(4) @ R(3, 4)", "nn.RMSNorm((3, 4), elementwise_affine=False) @ R(2, 3, 4)"],
    "GroupNorm": [
        "nn.GroupNorm(2, 4) @ R(3, 4)", "nn.GroupNorm(2, 4) @ R(1, 4, 3, 3)",
        "nn.GroupNorm(4, 4, affine=False) @ last(R(2, 4, 3, 3))",
        "after_convolution(nn.GroupNorm(2, 4)) @ R(2, 2, 4, 4)",
    ],
    "LocalResponseNorm": ["nn.LocalResponseNorm(2) @ R(2, 4, 3)", "nn.LocalResponseNorm(3) @ R(1, 4, 3, 3)"],
    "CrossMapLRN2d": ["nn.CrossMapLRN2d(2) @ R(2, 4, 3, 3)"],
    # recurrent networks
    **{name: [
        f"nn.{name}(3, 4) @ R(5, 2, 3)", f"nn.{name}(3, 4, num_layers=2, batch_first=True) @ R(2, 5, 3)",
        f"nn.{name}(3, 4, bidirectional=True, bias=False) @ R(5, 2, 3)", f"nn.{name}(3, 4) @ R(5, 3)",
        f"nn.{name}(3, 4).eval() @ R(5, 1, 3)",
    ] for name in ("RNN", "LSTM", "GRU")},
    **{name: [f"nn.{name}(3, 4) @ R(2, 3)", f"nn.{name}(3, 4) @ R(3)"] for name in ("RNNCell", "LSTMCell", "GRUCell")},
    # transformers
    "Transformer": ["nn.Transformer(4, 2, 1, 1, 6, dropout=0.0) @ R(3, 2, 4), R(2, 2, 4)"],
    "TransformerEncoder": [
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0), 2) @ R(3, 2, 4)",
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), 2).eval() @ R(2, 3, 4)",
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), 1) @ R(2, 3, 4), "
        "src_key_padding_mask=padding()",
    ],
    "TransformerEncoderLayer": [
        "nn.TransformerEncoderLayer(4, 2, 6, 0.0) @ R(3, 2, 4)",
        "nn.TransformerEncoderLayer(4, 2, 6, 0.0, F.gelu, norm_first=True).eval() @ R(3, 4), src_mask=causal(3)",
    ],
    "TransformerDecoder": [
        "nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, 0.0), 1) @ R(3, 2, 4), R(2, 2, 4)"
    ],
    "TransformerDecoderLayer": ["nn.TransformerDecoderLayer(4, 2, 6, 0.0) @ R(3, 2, 4), R(2, 2, 4)"],
    # dropout: judged without drawing
    **{name: [f"nn.{name}(0.0) @ R{s}", f"nn.{name}(0.5).eval() @ R{s}"] for name, s in (
        ("Dropout", (4, 3)), ("Dropout1d", (2, 3, 4)), ("Dropout2d", (2, 3, 2, 2)), ("Dropout3d", (2, 3, 2, 2, 2)),
        ("AlphaDropout", (4, 3)), ("FeatureAlphaDropout", (2, 3, 2, 2)),
    )},
    # embeddings
    "Embedding": [
        "nn.Embedding(5, 3) @ I(5, 4, 2)", "nn.Embedding(5, 3, padding_idx=0) @ I(5, 4)",
        "nn.Embedding(5, 3, padding_idx=-1) @ I(5, 4)",
    ],
    "EmbeddingBag": [
        "nn.EmbeddingBag(5, 3) @ I(5, 4, 2)", "nn.EmbeddingBag(5, 3, mode='sum') @ I(5, 6), offsets()",
        "nn.EmbeddingBag(5, 3, mode='max') @ I(5, 4, 2)", "nn.EmbeddingBag(5, 3, padding_idx=1) @ I(5, 4, 2)",
        "nn.EmbeddingBag(5, 3, mode='sum') @ I(5, 4, 2), None, R(4, 2)",
    ],
    # distances and losses
    "CosineSimilarity": ["nn.CosineSimilarity() @ R(3, 4), R(3, 4)"],
    "PairwiseDistance": ["nn.PairwiseDistance() @ R(3, 4), R(3, 4)"],
    **{name: [f"nn.{name}() @ R(4, 3), K(4, 3)", f"nn.{name}(reduction='none') @ R(4, 3), R(4, 3)"]
       for name in ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")},
    "BCELoss": ["nn.BCELoss() @ U(4, 3), torch.rand(4, 3)", "nn.BCELoss(weight=torch.rand(3)) @ U(4, 3), U(4, 3)"],
    "BCEWithLogitsLoss": [
        "nn.BCEWithLogitsLoss() @ R(4, 3), torch.rand(4, 3)",
        "nn.BCEWithLogitsLoss(pos_weight=torch.rand(3), weight=torch.rand(3)) @ R(4, 3), torch.rand(4, 3)",
    ],
    "CrossEntropyLoss": [
        "nn.CrossEntropyLoss() @ R(4, 3), I(3, 4)", "nn.CrossEntropyLoss(label_smoothing=0.1) @ R(4, 3), I(3, 4)",
        "nn.CrossEntropyLoss(weight=torch.rand(3), ignore_index=0) @ R(4, 3), I(3, 4)",
        "nn.CrossEntropyLoss() @ R(4, 3), torch.rand(4, 3).softmax(-1)",
        "nn.CrossEntropyLoss(reduction='sum', weight=torch.rand(3)) @ R(2, 3, 2, 2), I(3, 2, 2, 2)",
        "nn.CrossEntropyLoss() @ R(3), I(3)",
    ],
    "NLLLoss": ["nn.NLLLoss() @ R(4, 3), I(3, 4)", "nn.NLLLoss(weight=torch.rand(3)) @ R(2, 3, 2), I(3, 2, 2)"],
    "NLLLoss2d": ["nn.NLLLoss2d() @ R(2, 3, 2, 2), I(3, 2, 2, 2)"],
    "LinearCrossEntropyLoss": [
        "nn.LinearCrossEntropyLoss(4, 3) @ R(6, 4), I(3, 6)",
        "nn.LinearCrossEntropyLoss(4, 3, options=in_chunks()) @ R(6, 4), I(3, 6)",
    ],
    "KLDivLoss": ["nn.KLDivLoss() @ R(4, 3), U(4, 3)", "nn.KLDivLoss(log_target=True, reduction='sum') @ R(4), R(4)"],
    "PoissonNLLLoss": ["nn.PoissonNLLLoss() @ R(4, 3), P(4, 3)", "nn.PoissonNLLLoss(full=True) @ R(4), K(4) + 5"],
    "GaussianNLLLoss": [
        "nn.GaussianNLLLoss() @ R(4, 3), K(4, 3), P(4, 3)", "nn.GaussianNLLLoss(full=True) @ R(4, 3), K(4, 3), P(4, 1)"
    ],
    "CosineEmbeddingLoss": ["nn.CosineEmbeddingLoss(0.1) @ R(4, 3), R(4, 3), sign(4)"],
    "HingeEmbeddingLoss": ["nn.HingeEmbeddingLoss() @ R(4, 3), sign(4, 3)"],
    "MarginRankingLoss": ["nn.MarginRankingLoss(0.1) @ R(4), R(4), sign(4)"],
    "SoftMarginLoss": ["nn.SoftMarginLoss() @ R(4, 3), sign(4, 3)"],
    "MultiMarginLoss": [
        "nn.MultiMarginLoss() @ R(4, 3), I(3, 4)", "nn.MultiMarginLoss(2, weight=torch.rand(3)) @ R(4, 3), I(3, 4)"
    ],
    "MultiLabelMarginLoss": ["nn.MultiLabelMarginLoss() @ R(2, 4), labels()"],
    "MultiLabelSoftMarginLoss": ["nn.MultiLabelSoftMarginLoss() @ R(4, 3), I(2, 4, 3)"],
    "TripletMarginLoss": [
        "nn.TripletMarginLoss() @ R(4, 3), R(4, 3), R(4, 3)",
        "nn.TripletMarginLoss(swap=True) @ R(4, 3), R(4, 3), R(4, 3)",
    ],
    "TripletMarginWithDistanceLoss": ["nn.TripletMarginWithDistanceLoss() @ R(4, 3), R(4, 3), R(4, 3)"],
    "CTCLoss": [
        "of_logs(nn.CTCLoss()) @ R(6, 2, 4), I(3, 2, 2) + 1, torch.tensor([6, 5]), torch.tensor([2, 1])",
        "of_logs(nn.CTCLoss(reduction='sum')) @ R(6, 4), I(3, 2) + 1, torch.tensor(6), torch.tensor(2)",
    ],
    "AdaptiveLogSoftmaxWithLoss": [
        "nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4]) @ R(5, 4), torch.tensor([0, 1, 3, 5, 2])"
    ],
    # parametrizations
    "utils.parametrizations.weight_norm": [
        "nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)) @ R(2, 3)",
        "nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 2), dim=None) @ R(1, 2, 3, 3)",
    ],
    "utils.weight_norm": ["nn.utils.weight_norm(nn.Linear(3, 4), dim=1) @ R(2, 3)"],
    "utils.parametrizations.spectral_norm": [
        "nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)) @ R(2, 3)",
        "nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)).eval() @ R(2, 3)",
        "nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 2)) @ R(2, 2, 3, 3)",
    ],
    "utils.spectral_norm": ["nn.utils.spectral_norm(nn.Linear(3, 4)) @ R(2, 3)"],
    "utils.parametrizations.orthogonal": [
        f"nn.utils.parametrizations.orthogonal(nn.Linear(3, {n}), orthogonal_map='{kind}') @ R(2, 3)"
        for kind in ("matrix_exp", "cayley", "householder") for n in (3, 4)
    ],
}  # fmt: skip


# -- how a variant is read --------------------------------------------------------------------------------------------


class OfLogs(nn.Module):
    """A loss of logarithms of probabilities, of logits: torch's CTC loss has the right gradient for these alone."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return self.loss(x.log_softmax(-1), *rest)


def _adapted(x: Tensor) -> Tensor:
    return x.requires_grad_()


NAMES: dict[str, Any] = {
    "nn": nn,
    "F": F,
    "torch": torch,
    "R": lambda *s: _adapted(torch.randn(s)),
    "U": lambda *s: _adapted(0.1 + 0.8 * torch.rand(s)),
    "P": lambda *s: _adapted(0.5 + torch.rand(s)),
    "K": lambda *s: torch.randn(s),
    "I": lambda high, *s: torch.randint(high, s),
    "last": lambda x: x.to(memory_format=torch.channels_last),
    "after_convolution": lambda norm: nn.Sequential(nn.Conv2d(2, 4, 2), norm, nn.Tanh(), nn.Conv2d(4, 2, 2)),
    "padding": lambda: torch.tensor([[False, False, True], [False, True, True]]),
    "causal": lambda n: nn.Transformer.generate_square_subsequent_mask(n),
    "offsets": lambda: torch.tensor([0, 2, 3]),
    "sign": lambda *s: 2.0 * torch.randint(2, s) - 1,
    "labels": lambda: torch.tensor([[3, 0, -1, 1], [0, 1, -1, 1]]),
    "of_logs": lambda loss: OfLogs(loss),
    "in_chunks": lambda: nn.modules.linear_cross_entropy_options.LinearCrossEntropyOptions(batch_chunk_size=2),
    "pooled": lambda *s: getattr(F, f"max_pool{len(s) - 2}d")(torch.rand(s), 2, return_indices=True)[1],
}


def case(variant: str, varied: bool = False) -> Case:
    """A variant as a model, in the default type."""
    torch.manual_seed(0)
    made, given = variant.split(" @ ")
    module = eval(made, NAMES)
    args, kwargs = eval(f"(lambda *args, **kwargs: (args, kwargs))({given})", NAMES)
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        module(*args, **kwargs)
    slots = [*args, *kwargs.values()]
    tensors = [x for x in slots if isinstance(x, Tensor) and x.requires_grad]
    others = [x for x in slots if isinstance(x, Tensor) and not x.requires_grad]

    def call(module: nn.Module, *values: Tensor) -> Any:
        adapted, fixed = iter(values[: len(tensors)]), iter(values[len(tensors) :])
        filled = [next(adapted if x.requires_grad else fixed) if isinstance(x, Tensor) else x for x in slots]
        return module(*filled[: len(args)], **dict(zip(kwargs, filled[len(args) :], strict=True)))

    return Case(call, tensors, others, varied, module)


def verdicts(name: str) -> Iterator[Verdict]:
    """Of all variants of a class, in float64; with integers and masks of each task's own where it has some."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for variant in LAYERS[name]:
            for varied in (False, True):
                made = case(variant, varied)
                if varied and not made.constants:
                    continue
                # Values that change from call to call, or that are whole numbers, have no finite differences.
                check = "spectral_norm" not in variant and "householder" not in variant
                verdict = judge(f"{variant}{' (varied)' if varied else ''}", made, check=check)
                if verdict is not None:
                    yield verdict
                elif not varied:
                    raise AssertionError(f"{variant} has nothing to differentiate")
    finally:
        torch.set_default_dtype(before)


# -- the page ---------------------------------------------------------------------------------------------------------


def summary(found: list[Verdict]) -> tuple[str, str]:
    """What becomes of a class, and why."""
    for verdict in found:
        assert not verdict.silent, verdict
    for verdict in found:
        if not verdict.looped.startswith("right"):
            return "refused", _reason(verdict.looped)
    looped = [v for v in found if not v.vectorized.startswith("right")]
    first = [v for v in found if v.order == 1 and v.looped == "right"]
    reason = f"{_reason(looped[0].vectorized)}" if looped else ""
    if first:
        how = "one task at a time" if looped else "vectorized"
        return "first order only", f"torch has no second derivative; {how}"
    if looped:
        return ("one task at a time" if len(looped) == len(found) else "vectorized but for some options"), reason
    return "vectorized", ""


def _reason(text: str) -> str:
    text = re.sub(r"^refused: \w+: ", "", text)
    return text.split("Torch said: ")[-1].split(". If you")[0].strip()[:160].replace("|", "\\|")


def rows() -> Iterator[tuple[str, str, str]]:
    for name in LAYERS:
        yield name, *summary(list(verdicts(name)))


HEAD = """# Layers and losses

What becomes of every layer and loss of `torch.nn` in an inner loop, in torch {version} on a CPU.
`python -m tests.layers --write` made this page: it puts each through two inner steps, and compares outcome,
meta-gradient and the meta-gradient differentiated again with a plain loop in double precision, to 1e-8.

- **vectorized**: all tasks run at once; every derivative is right.
- **one task at a time**: `vectorize="auto"` runs tasks one after the other, and says so; every derivative is right.
- **vectorized but for some options**: with these, tasks run one at a time.
- **first order only**: torch has no second derivative, and says so. `il.fomaml`, `il.reptile` and `order=1` work.
- **refused**: an error says why.

| layer or loss | what becomes of it | why |
| --- | --- | --- |
"""


def page() -> str:
    """The page, made anew."""
    lines = [f"| `nn.{name}` | {what} | {why} |" for name, what, why in rows()]
    return HEAD.format(version=torch.__version__.split("+")[0]) + "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--write" in arguments:
        PAGE.write_text(page())
        return
    for name in arguments or LAYERS:
        try:
            found = list(verdicts(name))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        for v in found:
            if v.looped != "right" or v.vectorized != "right" or v.wrong or v.order == 1 or name in arguments:
                print(f"{v.name}: order {v.order}, torch's errors {v.errors}, looped {v.looped}, vectorized "
                      f"{v.vectorized}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
