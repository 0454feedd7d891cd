"""Torch's private interfaces. What fails here names what the installed torch changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

import innerloop
from innerloop.common import private

PACKAGE = Path(innerloop.__file__).parent
PRIVATE = re.compile(r"\btorch(?:\.\w+)*\._[A-Za-z]\w*|from torch(?:\.\w+)* import _\w+")
ALLOWED = {"from torch.utils import _pytree", "torch.default_generator._cdata"}


def test_torch_has_every_interface() -> None:
    assert private.MISSING == []
    assert callable(private.inductor().compile)


def test_modules_and_tensors_have_every_attribute() -> None:
    examples = (torch.nn.Linear(1, 1), torch.zeros(1), torch.Generator(), torch.zeros(1).untyped_storage())
    for cls, names in private.ATTRIBUTES.items():
        (example,) = (one for one in examples if isinstance(one, cls))
        assert [name for name in names if not hasattr(example, name)] == []


def test_trees_flatten_as_everything_here_expects() -> None:
    leaves, spec = _pytree.tree_flatten({"b": (1, [2]), "a": None})
    assert leaves == [1, 2, None]
    assert _pytree.tree_unflatten(leaves, spec) == {"b": (1, [2]), "a": None}


def test_what_is_missing_fails_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "MISSING", [])
    gone = private._interface("torch._C._gone_with_the_next_version")
    assert private.MISSING == ["torch._C._gone_with_the_next_version"]
    with pytest.raises(private.MissingInterfaceError, match=r"does not have torch\._C\._gone_with_the_next_version"):
        gone(1)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_uses_one(path: Path) -> None:
    if path.name != "private.py":
        assert set(PRIVATE.findall(path.read_text())) <= ALLOWED
