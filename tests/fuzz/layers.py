# ruff: noqa: E501 - a layer is a line
"""The kinds of layers that random models are made of: for each, which inputs it takes and how one is drawn.

A layer is drawn as an expression, so that a model that fails can be read and run by hand. Inputs are of these layouts,
without their batch axis: ``vec [F]``, ``seq [C, L]``, ``img [C, H, W]``, ``vol [C, D, H, W]``, ``tokens [L]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Shape = tuple[int, ...]


class Draw:
    """Choices. Hypothesis draws where they start from, since its own favor simple and repeated ones; what fails is made
    smaller by `reduce`, which knows what a layer is."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def of(self, *options: Any) -> Any:
        return self.random.choice(options)

    def number(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def rarely(self, one_in: int) -> bool:
        return self.random.random() < 1 / one_in


Make = Callable[[Draw, Shape], str]
KINDS: dict[str, tuple[tuple[str, ...], Make]] = {}
LAYOUTS = {1: "vec", 2: "seq", 3: "img", 4: "vol"}
ANY = ("vec", "seq", "img", "vol")


def kind(name: str, layouts: Sequence[str], make: Make | str) -> None:
    """Register a kind of layer; of a string, a layer without choices."""
    KINDS[name] = tuple(layouts), (lambda d, s: make) if isinstance(make, str) else make


# -- linear -----------------------------------------------------------------------------------------------------------

kind("Linear", ("vec", "seq"), lambda d, s: f"nn.Linear({s[-1]}, {d.number(2, 5)}, bias={d.flag()})")
kind("Bilinear", ("vec", "seq"), lambda d, s: f"Pair(nn.Bilinear({s[-1]}, {s[-1]}, {d.number(2, 3)}, bias={d.flag()}))")
kind("Residual", ("vec", "seq"), lambda d, s: f"Residual(nn.Linear({s[-1]}, {s[-1]}), {activation(d)})")
kind("Twice", ("vec", "seq"), lambda d, s: f"Twice(nn.Linear({s[-1]}, {s[-1]}))")
kind("Tied", ("vec",), lambda d, s: f"Tied({s[0]}, {d.number(2, 4)})")
kind("Frozen", ("vec", "seq"), lambda d, s: f"Frozen(nn.Linear({s[-1]}, {d.number(2, 4)}))")
kind("Gated", ("vec", "seq"), lambda d, s: f"Gated(nn.Linear({s[-1]}, 3), nn.Linear({s[-1]}, 3))")
kind("Checkpointed", ("vec", "seq"), lambda d, s: f"Checkpointed(nn.Sequential(nn.Linear({s[-1]}, 3), nn.Tanh()))")
kind("Keeps", ("vec", "seq"), lambda d, s: f"Keeps(nn.Linear({s[-1]}, 3))")
kind("Film", ("vec", "seq"), lambda d, s: f"Film({s[-1]})")
kind("Counter", ANY, "Counter()")
kind("Average", ANY, "Average()")
kind("Scale", ANY, lambda d, s: f"Scale({d.of(0.5, 1.5)})")
kind("Identity", ANY, "nn.Identity()")


def parametrized(name: str) -> Make:
    def make(d: Draw, s: Shape) -> str:
        size = d.number(2, 3)
        layer = f"nn.Conv2d({s[0]}, 3, {size - 1})" if len(s) == 3 else f"nn.Linear({s[-1]}, {size})"
        options = {
            "parametrizations.weight_norm": f", dim={d.of(0, 1, None)}" if name.endswith("weight_norm") else "",
            "parametrizations.orthogonal": f", orthogonal_map={d.of('matrix_exp', 'cayley', 'householder')!r}",
        }.get(name, "")
        return f"nn.utils.{name}({layer}{options})"

    return make


kind("weight_norm", ("vec", "seq", "img"), parametrized("parametrizations.weight_norm"))
kind("orthogonal", ("vec", "seq"), parametrized("parametrizations.orthogonal"))
kind("spectral_norm", ("vec", "seq", "img"), parametrized("parametrizations.spectral_norm"))
kind("old weight_norm", ("vec", "img"), parametrized("weight_norm"))
kind("old spectral_norm", ("vec", "img"), parametrized("spectral_norm"))


# -- convolutions -----------------------------------------------------------------------------------------------------


def convolution(axes: int) -> Make:
    def make(d: Draw, s: Shape) -> str:
        groups = d.of(1, 1, 1, s[0])
        out = groups * d.number(1, 2) if groups > 1 else d.number(1, 3)
        padding = d.of(0, 1, 1, "same", "valid", 2)
        stride = 1 if padding == "same" else d.of(1, 1, 2)
        mode = d.of("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
        size = tuple(min(d.number(1, 3), n) for n in s[1:]) if d.rarely(3) else min(d.number(1, 3), *s[1:])
        return (
            f"nn.Conv{axes}d({s[0]}, {out}, {size}, stride={stride}, padding={padding!r}, dilation={d.of(1, 1, 1, 2)}, "
            f"groups={groups}, bias={d.flag()}, padding_mode={mode!r})"
        )

    return make


def transposed(axes: int) -> Make:
    def make(d: Draw, s: Shape) -> str:
        groups, stride = d.of(1, 1, s[0]), d.of(1, 2)
        out = groups * d.number(1, 2)
        extra = d.of(0, 1) if stride == 2 else 0
        return (
            f"nn.ConvTranspose{axes}d({s[0]}, {out}, {d.number(1, 3)}, stride={stride}, padding={d.of(0, 0, 1)}, "
            f"output_padding={extra}, groups={groups}, bias={d.flag()}, dilation={d.of(1, 1, 2)})"
        )

    return make


def unbatched(make: Make) -> Make:
    return lambda d, s: f"Unbatched({make(d, s)})"


SPACES = {1: "seq", 2: "img", 3: "vol"}
for n, layout in SPACES.items():
    kind(f"Conv{n}d", (layout,), convolution(n))
    kind(f"Conv{n}d unbatched", (layout,), unbatched(convolution(n)))
    kind(f"ConvTranspose{n}d", (layout,), transposed(n))
kind("ConvTranspose2d unbatched", ("img",), unbatched(transposed(2)))
kind("Linear unbatched", ("vec",), unbatched(KINDS["Linear"][1]))
kind("Fold", ("img",), lambda d, s: "Apply(lambda x: F.fold(F.unfold(x, 2, padding=1), x.shape[-2:], 2, padding=1))")
kind("Unfold", ("img",), lambda d, s: f"nn.Unfold({d.number(1, 2)}, stride={d.of(1, 2)}, padding={d.of(0, 1)})")
kind("Patches", ("img",), lambda d, s: "Apply(lambda x: x.unfold(-1, 2, 1).flatten(-2))")


# -- norms ------------------------------------------------------------------------------------------------------------


def batch_norm(axes: int) -> Make:
    return lambda d, s: (
        f"nn.BatchNorm{axes}d({s[0]}, affine={d.of(True, True, False)}, "
        f"track_running_stats={d.of(True, True, False)}, momentum={d.of(0.1, 0.4, None)})"
    )


def instance_norm(axes: int) -> Make:
    return lambda d, s: (
        f"nn.InstanceNorm{axes}d({s[0]}, affine={d.flag()}, track_running_stats={d.of(False, False, True)})"
    )


def group_norm(d: Draw, s: Shape) -> str:
    groups = d.of(*[g for g in range(1, s[0] + 1) if s[0] % g == 0])
    return f"nn.GroupNorm({groups}, {s[0]}, affine={d.of(True, True, False)})"


for n, layout in SPACES.items():
    kind(f"BatchNorm{n}d", (layout, "vec") if n == 1 else (layout,), batch_norm(n))
    kind(f"InstanceNorm{n}d", (layout,), instance_norm(n))
kind("InstanceNorm2d unbatched", ("img",), unbatched(instance_norm(2)))
kind("GroupNorm", ("vec", "seq", "img", "vol"), group_norm)
kind(
    "LayerNorm", ("vec", "seq", "img"),
    lambda d, s: f"nn.LayerNorm({s[d.number(0, len(s) - 1):]}, elementwise_affine={d.of(True, True, False)}, bias={d.flag()})",
)  # fmt: skip
kind(
    "RMSNorm", ("vec", "seq", "img"), lambda d, s: f"nn.RMSNorm({s[-1:]}, elementwise_affine={d.of(True, True, False)})"
)
kind(
    "LocalResponseNorm", ("seq", "img"), lambda d, s: f"nn.LocalResponseNorm({d.number(1, 3)}, alpha={d.of(0.1, 0.5)})"
)
kind("CrossMapLRN2d", ("img",), lambda d, s: f"nn.CrossMapLRN2d({d.number(1, 3)}, alpha=0.3)")
kind("normalize", ("vec", "seq", "img"), lambda d, s: f"Apply(lambda x: F.normalize(x, dim={d.of(1, -1)}))")

# -- pooling and resizing ---------------------------------------------------------------------------------------------


def max_pool(axes: int) -> Make:
    def make(d: Draw, s: Shape) -> str:
        size = min(d.number(1, 3), *s[1:])
        return (
            f"nn.MaxPool{axes}d({size}, stride={d.of(None, 1, 2)}, padding={d.number(0, size // 2)}, "
            f"dilation={d.of(1, 1, 2)}, ceil_mode={d.flag()})"
        )

    return make


def average_pool(axes: int) -> Make:
    def make(d: Draw, s: Shape) -> str:
        size = min(d.number(1, 3), *s[1:])
        return (
            f"nn.AvgPool{axes}d({size}, stride={d.of(None, 1, 2)}, padding={d.number(0, size // 2)}, "
            f"ceil_mode={d.flag()}, count_include_pad={d.flag()})"
        )

    return make


def adaptive(name: str) -> Make:
    return lambda d, s: f"nn.{name}({d.of(1, 1, 2, 3)})"


def power_pool(n: int) -> Make:
    return lambda d, s: f"nn.LPPool{n}d({d.of(2, 2.0, 3)}, 2, stride={d.of(None, 1)})"


for n, layout in SPACES.items():
    kind(f"MaxPool{n}d", (layout,), max_pool(n))
    kind(f"AvgPool{n}d", (layout,), average_pool(n))
    kind(f"AdaptiveAvgPool{n}d", (layout,), adaptive(f"AdaptiveAvgPool{n}d"))
    kind(f"AdaptiveMaxPool{n}d", (layout,), adaptive(f"AdaptiveMaxPool{n}d"))
    kind(f"LPPool{n}d", (layout,), power_pool(n))
    kind(f"MaxUnpool{n}d", (layout,), f"Unpool({n}, 2)")
kind("MaxPool2d unbatched", ("img",), unbatched(max_pool(2)))
kind(
    "FractionalMaxPool2d", ("img",),
    lambda d, s: f"nn.FractionalMaxPool2d(2, output_ratio=0.6, _random_samples=torch.tensor([[[0.3, 0.6]]]).expand(1, {s[0]}, 2))",
)  # fmt: skip


def resize(d: Draw, s: Shape) -> str:
    linear = {2: "linear", 3: "bilinear", 4: "trilinear"}[len(s)]
    mode = d.of("nearest", "nearest-exact", linear, linear, *(["bicubic"] if len(s) == 3 else []))
    corners = d.flag() if "nearest" not in mode else None
    return f"nn.Upsample(scale_factor={d.of(2, 1.5, 0.7)}, mode={mode!r}, align_corners={corners})"


kind("Upsample", ("seq", "img", "vol"), resize)
kind(
    "interpolate",
    ("img",),
    lambda d, s: f"Apply(lambda x: F.interpolate(x, size=({d.number(1, 4)}, {d.number(1, 4)}), mode='area'))",
)
kind(
    "antialias",
    ("img",),
    lambda d, s: "Apply(lambda x: F.interpolate(x, size=(2, 3), mode='bilinear', antialias=True))",
)
kind(
    "PixelShuffle",
    ("img",),
    lambda d, s: (
        "nn.PixelShuffle(2)" if s[0] % 4 == 0 else f"nn.Sequential(nn.Conv2d({s[0]}, 4, 1), nn.PixelShuffle(2))"
    ),
)
kind("PixelUnshuffle", ("img",), "nn.PixelUnshuffle(2)")
kind(
    "ChannelShuffle",
    ("img", "vol"),
    lambda d, s: f"nn.ChannelShuffle({d.of(*[g for g in (1, 2, 3, 4) if s[0] % g == 0])})",
)
kind(
    "grid_sample",
    ("img",),
    lambda d, s: (
        f"Apply(lambda x: F.grid_sample(x, F.affine_grid(torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.9, 0.1]]], dtype=x.dtype).expand(len(x), 2, 3), (len(x), {s[0]}, 3, 3), align_corners=False), align_corners=False))"
    ),
)


def padding(name: str, n: int) -> Make:
    return lambda d, s: f"nn.{name}{n}d({tuple(d.number(0, min(1, s[-1 - i // 2] - 1)) for i in range(2 * n))})"


for n, layout in SPACES.items():
    for name in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"):
        kind(f"{name}{n}d", (layout,), padding(name, n))
    kind(f"ConstantPad{n}d", (layout,), f"nn.ConstantPad{n}d(1, 0.5)")

# -- activations ------------------------------------------------------------------------------------------------------

ACTIVATIONS = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.Tanh()", "nn.Sigmoid()", "nn.GELU()",
    "nn.GELU(approximate='tanh')", "nn.SiLU()", "nn.ELU()", "nn.ELU(alpha=0.7, inplace=True)", "nn.CELU(alpha=0.8)",
    "nn.SELU()", "nn.LeakyReLU(0.1)", "nn.LeakyReLU(0.2, inplace=True)", "nn.Hardtanh()", "nn.Hardsigmoid()",
    "nn.Hardswish()", "nn.Hardshrink(0.2)", "nn.Softshrink(0.2)", "nn.Tanhshrink()", "nn.Softsign()", "nn.Softplus()",
    "nn.Softplus(beta=2)", "nn.LogSigmoid()", "nn.Mish()", "nn.Threshold(0.1, 0.3)", "nn.RReLU(0.2, 0.2)",
)  # fmt: skip


def activation(d: Draw) -> str:
    return d.of(*ACTIVATIONS)


for expression in ACTIVATIONS:
    kind(expression[3:].replace("()", ""), ANY, expression)
kind("PReLU", ANY, lambda d, s: f"nn.PReLU({d.of(1, s[0])})")
kind("GLU", ANY, lambda d, s: f"nn.GLU(dim={d.of(*[i for i in range(1, len(s) + 1) if s[i - 1] % 2 == 0] or [1])})")
kind("Softmax", ANY, lambda d, s: f"nn.Softmax({d.number(1, len(s))})")
kind("Softmin", ANY, lambda d, s: f"nn.Softmin({d.number(1, len(s))})")
kind("LogSoftmax", ANY, lambda d, s: f"nn.LogSoftmax({d.number(1, len(s))})")
kind("Softmax2d", ("img",), "nn.Softmax2d()")
for name in ("Dropout", "AlphaDropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"):
    layouts = {"1": ("seq",), "2": ("img",), "3": ("vol",)}.get(name[-2], ANY)
    kind(name, layouts, f"nn.{name}(0.5)")
kind("CosineSimilarity", ("seq",), "Pair(nn.CosineSimilarity(dim=-1))")
kind("PairwiseDistance", ("seq",), lambda d, s: f"Pair(nn.PairwiseDistance(p={d.of(2, 1, 3)}))")

FUNCTIONS = {
    "cumsum": "x.cumsum(-1)", "cumprod": "x.cumprod(-1)", "sort": "x.sort(-1).values", "logsumexp": "x.logsumexp(-1, keepdim=True) - x",
    "std": "x / (x.std(-1, keepdim=True) + 1)" , "var": "x * x.var(dim=-1, keepdim=True)", "roll": "x.roll(1, -1)",
    "flip": "x.flip(-1) * 2", "clamp": "x.clamp(-0.5, 1.5)", "where": "torch.where(x > 0.1, x, x.exp())",
    "masked_fill": "x.masked_fill(x > 1, 0.3)", "einsum": "torch.einsum('n...i,n...j->n...j', x, x.cos())", "abs": "x.abs().sqrt()",
    "norm": "x / (1 + x.norm(dim=-1, keepdim=True))", "gather": "x.gather(-1, x.argsort(-1))", "atan2": "torch.atan2(x, 1 + x * x)",
    "cat": "torch.cat([x, x.sin()], 1)", "index": "x[:, [0, 0, -1]]", "topk": "x.topk(1, -1).values * x", "amax": "x - x.amax(-1, keepdim=True)",
    "mean of examples": "x - x.mean(0, keepdim=True)", "diff": "x.cumsum(1).diff(dim=1, prepend=x[:, :1])", "fft": "torch.fft.rfft(x).abs()",
    "softmax of examples": "x.softmax(0)", "erf": "torch.erf(x)", "outer": "x * x.new_tensor([2.0])", "pow": "x ** 3", "expm1": "torch.expm1(x.tanh())",
}  # fmt: skip
for name, body in FUNCTIONS.items():
    kind(name, ANY, f"Apply(lambda x: {body})")
kind("matmul", ("seq", "img"), "Apply(lambda x: x @ x.mT)")
kind(
    "attention",
    ("seq",),
    lambda d, s: f"Apply(lambda x: F.scaled_dot_product_attention(x, x, x.tanh(), is_causal={d.flag()}))",
)
kind("bmm", ("seq",), "Apply(lambda x: torch.bmm(x, x.transpose(1, 2).tanh()))")
kind("cdist", ("seq",), "Apply(lambda x: torch.cdist(x, x + 1))")
kind(
    "solve",
    ("seq",),
    lambda d, s: f"Apply(lambda x: torch.linalg.solve(torch.eye({s[0]}, dtype=x.dtype) + x @ x.mT, x))",
)

# -- sequences --------------------------------------------------------------------------------------------------------


def recurrent(name: str) -> Make:
    def make(d: Draw, s: Shape) -> str:
        layers, swap = d.of(1, 1, 2), d.rarely(4)
        extra = {"RNN": f", nonlinearity={d.of('tanh', 'relu')!r}"}.get(name, "")
        extra += ", proj_size=2" if name == "LSTM" and d.rarely(3) else ""
        layer = (
            f"nn.{name}({s[-1]}, 3, num_layers={layers}, bidirectional={d.rarely(3)}, bias={d.of(True, True, False)}, "
            f"batch_first={not swap}{extra})"
        )
        if swap:
            return f"Output({layer}, swap=True)"
        return f"{d.of('Output', 'State')}({layer})"

    return make


def unrolled(name: str) -> Make:
    return lambda d, s: f"Unroll(nn.{name}Cell({s[-1]}, 3, bias={d.of(True, True, False)}))"


for name in ("RNN", "LSTM", "GRU"):
    kind(name, ("seq",), recurrent(name))
    kind(f"{name}Cell", ("seq",), unrolled(name))
kind("GRU unbatched", ("seq",), lambda d, s: f"Unbatched(Output(nn.GRU({s[-1]}, 3, batch_first=True)))")


def heads(d: Draw, width: int) -> int:
    return d.of(*[h for h in (1, 2) if width % h == 0])


def attention(d: Draw, s: Shape) -> str:
    extra = d.of("", "", ", add_bias_kv=True", ", add_zero_attn=True", ", bias=False")
    causal = d.flag() and "add" not in extra
    return f"Attend(nn.MultiheadAttention({s[-1]}, {heads(d, s[-1])}, batch_first=True{extra}), causal={causal}, weights={d.flag()})"


def transformer(name: str) -> Make:
    def make(d: Draw, s: Shape) -> str:
        layer = (
            f"nn.{name}({s[-1]}, {heads(d, s[-1])}, 3, dropout=0.0, activation={d.of('relu', 'gelu')!r}, batch_first=True, "
            f"norm_first={d.flag()})"
        )
        return f"Decode({layer})" if "Decoder" in name else layer

    return make


kind("MultiheadAttention", ("seq",), attention)
kind("TransformerEncoderLayer", ("seq",), transformer("TransformerEncoderLayer"))
kind("TransformerDecoderLayer", ("seq",), transformer("TransformerDecoderLayer"))
kind(
    "TransformerEncoder",
    ("seq",),
    lambda d, s: (
        f"nn.TransformerEncoder({transformer('TransformerEncoderLayer')(d, s)}, 2, enable_nested_tensor=False)"
    ),
)
kind(
    "Transformer",
    ("seq",),
    lambda d, s: f"Decode(nn.Transformer({s[-1]}, {heads(d, s[-1])}, 1, 1, 3, dropout=0.0, batch_first=True))",
)

TOKENS = 7
"""How many different ones there are."""


def bag(d: Draw, s: Shape) -> str:
    mode = d.of("sum", "mean", "max")
    part = f"nn.EmbeddingBag({TOKENS}, {d.number(2, 4)}, mode={mode!r}, padding_idx={d.of(None, None, 1)}"
    if mode == "sum" and d.flag():
        return f"Bag({part}), {s[0]})"
    return f"{part})"


kind(
    "Embedding",
    ("tokens",),
    lambda d, s: (
        f"nn.Embedding({TOKENS}, {d.number(2, 4)}, padding_idx={d.of(None, None, 0, -1)}, scale_grad_by_freq={d.rarely(5)})"
    ),
)
kind("EmbeddingBag", ("tokens",), bag)
kind("one_hot", ("tokens",), f"Apply(lambda x: F.one_hot(x, {TOKENS}).to(torch.get_default_dtype()))")
kind("Embedding max_norm", ("tokens",), f"nn.Embedding({TOKENS}, 3, max_norm=0.7)")

# -- changes of layout ------------------------------------------------------------------------------------------------

kind("Flatten", ("seq", "img", "vol"), "nn.Flatten()")
kind("Flatten the last", ("img", "vol"), "nn.Flatten(2)")
kind(
    "Unflatten",
    ("vec",),
    lambda d, s: (
        f"nn.Unflatten(1, {d.of((1, s[0]), (s[0], 1), (1, 1, s[0]), *([(2, s[0] // 2)] if s[0] % 2 == 0 else []))})"
    ),
)
kind("transpose", ("seq", "img"), "Apply(lambda x: x.transpose(1, -1))")
kind("mean", ("seq", "img", "vol"), "Apply(lambda x: x.mean(-1))")
kind("max", ("seq", "img"), "Apply(lambda x: x.max(-1).values)")
kind("channels last", ("img",), "Apply(lambda x: x.contiguous(memory_format=torch.channels_last))")
