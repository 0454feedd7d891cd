"""Interrupts at any instruction of Python, and learners of several kinds to interrupt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import innerloop as il


class Looping(nn.Module):
    """Refers to its layers by a list, too, and reads a value: no twins, no vectorization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.layers = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers[1](torch.tanh(self.layers[0](x)))
        return output * (2 if float(x.sum()) > 1e9 else 1)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)[:, None]
        output: Tensor = self.head(self.attend(tokens, tokens, tokens)[0][:, 0])
        return output


class Recurring(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.kept = self.cell(x[:, None])[0][:, 0]
        output: Tensor = self.head(self.kept)
        return output


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2))


MODELS: dict[str, Callable[[], il.MetaLearner]] = {
    "norms": lambda: il.maml(normed(), 0.1, steps=2),
    "no twins": lambda: il.maml(Looping(), 0.1, steps=2),
    "attention": lambda: il.fomaml(Attending(), 0.1, steps=2),
    "recurrent": lambda: il.maml(Recurring(), 0.1, steps=2),
    "constant memory": lambda: il.maml(normed(), 0.1, steps=2, memory="constant", vectorize=2),
    "per step": lambda: il.maml_plus_plus(normed(), steps=2),
}


class Interrupt:
    """Raises a ``KeyboardInterrupt`` before the n-th instruction of Python that runs within; ``None`` only counts."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 traces them only if a frame asked before
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name == "__del__" or frame.f_code is Interrupt.__exit__.__code__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def prepared(model: str) -> il.MetaLearner:
    torch.manual_seed(0)
    learner = MODELS[model]()
    learner.register_buffer("marker", torch.zeros(2))
    return learner
