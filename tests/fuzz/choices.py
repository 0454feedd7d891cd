# ruff: noqa: E501 - a loss is a line
"""What random problems choose from, beside layers: losses, heads, update rules, selections."""

from __future__ import annotations

CLASSES, WIDTH = 3, 2
_CLASSES = f"torch.linspace(0.5, 1.5, {CLASSES})"
LOSSES: dict[str, tuple[str, ...]] = {
    "classes": (
        "F.cross_entropy", "F.cross_entropy", "nn.CrossEntropyLoss()", f"nn.CrossEntropyLoss(weight={_CLASSES})",
        "nn.CrossEntropyLoss(label_smoothing=0.1)", f"nn.CrossEntropyLoss(weight={_CLASSES}, label_smoothing=0.2)",
        "nn.CrossEntropyLoss(reduction='sum')", "nn.CrossEntropyLoss(ignore_index=2, reduction='sum')",
        "nn.MultiMarginLoss()", f"nn.MultiMarginLoss(p=2, weight={_CLASSES})", "Tempered()", "Uncertain(F.cross_entropy)",
        "lambda output, y: F.nll_loss(output.log_softmax(-1), y)",
        f"lambda output, y: F.nll_loss(output.log_softmax(-1), y, weight={_CLASSES}.to(output))",
        "lambda output, y: ((1 - output.softmax(-1).gather(1, y[:, None])) ** 2 * -output.log_softmax(-1).gather(1, y[:, None])).mean()",
        "lambda output, y: F.cross_entropy(output, y) + 0.01 * output.logsumexp(-1).square().mean()",
        f"lambda output, y: F.mse_loss(output.softmax(-1), F.one_hot(y, {CLASSES}).to(output))",
        f"lambda output, y: F.cross_entropy(output, F.one_hot(y, {CLASSES}).to(output) * 0.8 + 0.1)",
    ),
    "pixels": ("F.cross_entropy", f"nn.CrossEntropyLoss(weight={_CLASSES})", "nn.CrossEntropyLoss(label_smoothing=0.1)", "lambda output, y: F.nll_loss(output.log_softmax(1), y)"),
    "logarithms": ("F.nll_loss", "nn.NLLLoss()", f"nn.NLLLoss(weight={_CLASSES}, reduction='sum')"),
    "numbers": (
        "F.mse_loss", "F.mse_loss", "nn.MSELoss()", "nn.MSELoss(reduction='sum')", "nn.L1Loss()", "F.l1_loss", "nn.SmoothL1Loss(beta=0.5)",
        "nn.HuberLoss(delta=0.7)", "Judge()", "Uncertain(F.mse_loss)", "lambda output, y: torch.log(torch.cosh(output - y)).mean()",
        "lambda output, y: F.gaussian_nll_loss(output, y, F.softplus(output.flip(-1)) + 0.1)",
        "lambda output, y: F.gaussian_nll_loss(output, y, torch.full_like(output, 0.5), full=True)",
        "lambda output, y: (1 - F.cosine_similarity(output, y, dim=-1)).mean()",
        "lambda output, y: F.triplet_margin_loss(output, y, y.flip(0) + 0.3, margin=2.0)",
        "lambda output, y: F.poisson_nll_loss(output, y.abs())", "lambda output, y: F.poisson_nll_loss(output, y.abs(), log_input=True, full=True)",
        "lambda output, y: F.soft_margin_loss(output, y.sign())", "lambda output, y: F.margin_ranking_loss(output, y, y.sign(), margin=0.5)",
        "lambda output, y: F.hinge_embedding_loss(output, y.sign())", "lambda output, y: torch.maximum(0.7 * (y - output), 0.3 * (output - y)).mean()",
        "lambda output, y: (output - y).square().mean().sqrt()", "il.losses.OutputLoss(output_width, output_width, hidden=3)",
        "lambda output, y: (output - y).norm(dim=-1).mean()",
    ),
    "vectors": (
        "lambda output, y: F.cosine_embedding_loss(output, y, torch.ones(len(output)).to(output))",
        "lambda output, y: F.cosine_embedding_loss(output, y, -torch.ones(len(output)).to(output), margin=-0.9)",
        "nn.MSELoss()",
        "lambda output, y: nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: (a - b).square().sum(-1), margin=3.0)(output, y, -y)",
    ),
    "halves": (
        "F.binary_cross_entropy_with_logits", "nn.BCEWithLogitsLoss()", f"nn.BCEWithLogitsLoss(pos_weight=torch.linspace(0.5, 2, {WIDTH}))",
        "nn.MultiLabelSoftMarginLoss()", "lambda output, y: F.binary_cross_entropy(output.sigmoid(), y)",
        "lambda output, y: 1 - (2 * (output.sigmoid() * y).sum() + 1) / (output.sigmoid().sum() + y.sum() + 1)",
        "lambda output, y: F.soft_margin_loss(output, 2 * y - 1)",
    ),
    "chances": ("nn.BCELoss()", "F.binary_cross_entropy"),
    "shares": (
        "nn.KLDivLoss(reduction='batchmean')", "lambda output, y: F.kl_div(output, y.log(), reduction='batchmean', log_target=True)",
        "lambda output, y: F.cross_entropy(output, y)",
    ),
    "nothing": ("lambda output, y: output.square().mean()",),
}  # fmt: skip
HEADS = {
    "classes": "nn.Flatten(), nn.Linear({n}, 3)", "numbers": "nn.Flatten(), nn.Linear({n}, 2)", "vectors": "nn.Flatten(), nn.Linear({n}, 3)",
    "halves": "nn.Flatten(), nn.Linear({n}, 2)", "chances": "nn.Flatten(), nn.Linear({n}, 2), nn.Sigmoid()",
    "logarithms": "nn.Flatten(), nn.Linear({n}, 3), nn.LogSoftmax(-1)", "shares": "nn.Flatten(), nn.Linear({n}, 3), nn.LogSoftmax(-1)",
    "pixels": "nn.Conv2d({c}, 3, 1)", "nothing": "nn.Flatten(), nn.Linear({n}, 2)",
}  # fmt: skip
RULES = (
    "il.SGD(0.1)", "il.SGD(0.1)", "il.SGD(0.1, learned=True)", "il.PerStepSGD(0.1)", "il.PerStepSGD([0.1, 0.05])",
    "il.ElementwiseSGD(0.1)", "il.Chain(il.Momentum(0.5), il.SGD(0.1))", "il.Chain(il.Clip(0.05), il.SGD(0.5, learned=True))",
    "il.Adam(0.05, eps=0.02)", "il.Adam(0.03, betas=(0.0, 0.999), eps=0.02)", "il.Chain(il.KroneckerCurvature(), il.SGD(0.1))",
    "il.Chain(il.Proximal(0.5), il.SGD(0.1, learned=True))",
    "il.Chain(il.Clip(1.0), il.KroneckerCurvature(), il.Momentum(0.9), il.ElementwiseSGD(0.05))",
)  # fmt: skip
SELECTIONS = (
    "il.everything", "il.everything", "il.everything", "il.head", "il.body", "il.named('*weight*')", "il.named('0.*', '*bias*')",
    "il.everything - il.norms", "il.head | il.named('0.*')",
)  # fmt: skip
TARGETS = (
    "classes",
    "classes",
    "numbers",
    "numbers",
    "numbers",
    "vectors",
    "halves",
    "chances",
    "logarithms",
    "shares",
)
"""What is predicted, of any output."""
