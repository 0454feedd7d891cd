"""Replacements for torch's operations while tasks run.

They are fast kernels for stacks of tasks, and functions with correct derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..common import private
from ..functional import values
from ..functional.stacks import place
from . import elementary, embeddings, kernels, native
from . import normalization as normalization
from .convolutions import Options, convolution


def norm_pool(x: Tensor, norm: nn.BatchNorm2d, size: int) -> Tensor:
    """Apply batch norm, then ``size x size`` max-pooling: ``[N, C, H, W] -> [N, C, H', W']``.

    With the batch's own statistics it is one operation, which pools first and then normalizes fewer elements, with the
    same result.
    """
    mode, momentum = private.function_mode(), norm.momentum
    own = norm.training or norm.running_mean is None
    if own and momentum is not None and isinstance(mode, TaskOperations) and mode.kernels and kernels.supported(x):
        window: kernels.Window = ([size, size], [size, size], [0, 0], [1, 1], False)
        out, mean, variance = kernels.batch_norm(x, norm.weight, norm.bias, norm.eps, window)
        _move_statistics(x, norm.running_mean, norm.running_var, mean, variance, momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return out
    return F.max_pool2d(norm(x), size)


def _always(*_: Any) -> bool:
    return True


def _where_torch_is_wrong(x: Tensor, options: Options) -> bool:
    """Return whether torch computes wrong or no derivatives of a convolution.

    This is the case for a grouped convolution of one image (see `convolutions`), as under ``vmap`` over tasks, and for
    transposed convolutions without a third derivative in torch.
    """
    one, grouped = x.ndim == len(options.stride) + 1 or len(x) == 1, options.groups > 1 or place() != "plain"
    return (one and grouped) or any(options.output_padding)


def _convolution(
    axes: int, torch_own: Callable[..., Tensor], where: Callable[[Tensor, Options], bool] = _always
) -> Callable[..., Tensor]:
    """Make a convolution over ``axes`` axes of images, which uses the kernel if a condition holds."""

    def call(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        steps, dilations = _each(axes, stride), _each(axes, dilation)
        if isinstance(padding, str):
            input, padding = _padded(input, weight, padding, steps, dilations)
        options = Options(steps, _each(axes, padding), dilations, False, [0] * axes, groups)
        if not where(input, options):
            return torch_own(input, weight, bias, *options[:3], groups)
        return _by_kernel(torch_own, input, weight, bias, options, (*options[:3], groups))

    return call


def _transposed(
    axes: int, torch_own: Callable[..., Tensor], where: Callable[[Tensor, Options], bool] = _always
) -> Callable[..., Tensor]:
    """Make a transposed convolution in the same way."""

    def call(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        steps, sides, dilations, beyond = (_each(axes, v) for v in (stride, padding, dilation, output_padding))
        options = Options(steps, sides, dilations, True, beyond, groups)
        rest = (steps, sides, beyond, groups, dilations)
        if not where(input, options):
            return torch_own(input, weight, bias, *rest)
        return _by_kernel(torch_own, input, weight, bias, options, rest)

    return call


def _by_kernel(
    torch_own: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, rest: Any
) -> Tensor:
    """Use the kernel if it supports the tensors; a single image without a batch axis gets one."""
    axes = len(options.stride)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not kernels.supported(*tensors) or not axes + 1 <= x.ndim <= axes + 2 or weight.ndim != axes + 2:
        return torch_own(x, weight, bias, *rest)
    images = x if x.ndim == axes + 2 else x[None]
    if axes == 1:  # oneDNN is faster on images than on sequences
        stride, padding, dilation, transposed, beyond, groups = options
        flat = Options([1, *stride], [0, *padding], [1, *dilation], transposed, [0, *beyond], groups)
        out = convolution(images[:, :, None], weight[:, :, None], bias, flat)[:, :, 0]
    else:
        out = convolution(images, weight, bias, options)
    return out if x.ndim == axes + 2 else out[0]


def _each(axes: int, value: Any) -> list[int]:
    """Return a number for each axis; torch also allows a list with one number for all axes."""
    values = list(value) if isinstance(value, Iterable) else [value]
    return values * axes if len(values) == 1 else values


def _padded(input: Tensor, weight: Tensor, padding: str, stride: Any, dilation: Any) -> tuple[Tensor, Any]:
    """Return the images to convolve, and the padding as numbers."""
    if padding == "valid":
        return input, 0
    if padding != "same":
        raise ValueError(f'the padding of a convolution must be "same", "valid" or numbers, got {padding!r}')
    if any(step != 1 for step in stride):
        raise ValueError(f'padding="same" needs a stride of 1, got a stride of {tuple(stride)}')
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    odd = [side % 2 for side in total]
    if any(odd):
        input = F.pad(input, [side for o in reversed(odd) for side in (0, o)])
    return input, [side // 2 for side in total]


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or input.ndim != 4 or not kernels.supported(input):
        pool = F.max_pool2d_with_indices if return_indices else F.max_pool2d
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    sides = [_each(2, v) for v in (kernel_size, stride or kernel_size, padding, dilation)]
    return kernels.max_pool2d(input, (sides[0], sides[1], sides[2], sides[3], ceil_mode))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or input.ndim != 4 or not kernels.supported(input):
        return normalization.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    out, mean, variance = kernels.batch_norm(input, weight, bias, eps)
    _move_statistics(input, running_mean, running_var, mean, variance, momentum)
    return out


def _one_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm of one task."""
    if training and native.supported(input, weight, bias):
        return native.batch_norm(input, running_mean, running_var, weight, bias, momentum, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _one_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    if native.supported(input, weight, bias):
        return native.layer_norm(input, normalized_shape, weight, bias, eps)
    return normalization.layer_norm(input, normalized_shape, weight, bias, eps)


def _move_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
) -> None:
    """Move running statistics as batch norm does, in place; ``variance`` is the biased one."""
    each = normalization.values_per_channel(input)
    normalization.move(running_mean, mean, momentum)
    normalization.move(running_var, variance * each / (each - 1), momentum)


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    if _each(2, output_size) == [1, 1]:  # torch's own changes strides in place, so vmap loops over tasks
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


def _torch_order(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adapt a norm to ``torch.batch_norm`` and ``torch.instance_norm``, which have another order of arguments."""

    def call(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *rest: Any,
    ) -> Tensor:
        training, momentum, eps = rest[:3]
        return norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    return call


def _native_layer_norm(norm: Callable[..., Tensor]) -> Callable[..., Any]:
    """Make ``torch.native_layer_norm``, a layer norm that also returns mean and inverse deviation, as constants."""

    def call(input: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        axes = list(range(-len(shape), 0))
        return norm(input, shape, weight, bias, eps), *normalization.statistics(input, axes, eps)

    return call


def _native_batch_norm(norm: Callable[..., Tensor]) -> Callable[..., Any]:
    """Make ``torch.native_batch_norm``, which has the arguments of ``torch.batch_norm`` except the last."""

    def call(input: Tensor, *args: Any) -> Any:
        training, _, eps = args[4:]
        axes = [0, *range(2, input.ndim)]
        saved = normalization.statistics(input, axes, eps) if training else [input.new_empty(0)] * 2
        return _torch_order(norm)(input, *args), *(value.flatten() for value in saved)

    return call


def _refuse(name: str, error: type[Exception], why: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error(f"{name} {why}")

    return call


def _loop(name: str, why: str) -> Callable[..., Any]:
    """Refuse a function while tasks run at once, so that the engine runs them one by one."""
    return _refuse(name, NotImplementedError, why)


_Table = dict[Callable[..., Any], Callable[..., Any]]
_CONVOLUTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], int]] = {
    F.conv1d: (_convolution, 1),
    F.conv2d: (_convolution, 2),
    F.conv3d: (_convolution, 3),
    F.conv_transpose1d: (_transposed, 1),
    F.conv_transpose2d: (_transposed, 2),
    F.conv_transpose3d: (_transposed, 3),
}
_CONVOLUTIONS_WHERE_TORCH_IS_WRONG: _Table = {
    own: make(axes, own, _where_torch_is_wrong) for own, (make, axes) in _CONVOLUTIONS.items()
}


def _under_every_name(name: str) -> Iterator[Callable[..., Any]]:
    """Yield a function of torch and its operators, as far as they exist."""
    if hasattr(torch, name):
        yield getattr(torch, name)
    if operator := getattr(torch.ops.aten, name, None):
        yield operator
        yield from (getattr(operator, overload) for overload in operator.overloads())


_NATIVE = ("_native_batch_norm_legit", "_batch_norm_with_update")
_ALWAYS: _Table = {
    private.weight_norm: normalization.weight_norm,
    F.hardsigmoid: elementary.hardsigmoid,
    F.binary_cross_entropy: elementary.binary_cross_entropy,
    torch.special.i1: elementary.i1,
    **dict.fromkeys((torch.logcumsumexp, torch.Tensor.logcumsumexp), elementary.logcumsumexp),
    **{
        function: _refuse(
            f"torch.{name}", ValueError, "has wrong second derivatives: use the norms of torch.nn.functional"
        )
        for name in _NATIVE
        for function in _under_every_name(name)
    },
    F.embedding: embeddings.embedding,
    F.embedding_bag: embeddings.embedding_bag,
    torch.embedding: embeddings.torch_embedding,
}
if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
    _ALWAYS[F.linear_cross_entropy] = elementary.linear_cross_entropy
_LOOPED: _Table = {
    **_ALWAYS,
    torch.autograd.grad: values.recorded_gradient,
    F.batch_norm: _one_batch_norm,
    F.instance_norm: normalization.instance_norm,
    F.layer_norm: _one_layer_norm,
    torch.layer_norm: _one_layer_norm,
    torch.native_layer_norm: _native_layer_norm(_one_layer_norm),
    torch.native_batch_norm: _native_batch_norm(_one_batch_norm),
    torch.batch_norm: _torch_order(_one_batch_norm),
    torch.instance_norm: _torch_order(normalization.instance_norm),
    **_CONVOLUTIONS_WHERE_TORCH_IS_WRONG,
}
_VECTORIZED: _Table = {
    **_ALWAYS,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.batch_norm: normalization.batch_norm,
    F.instance_norm: normalization.instance_norm,
    F.layer_norm: normalization.layer_norm,
    F.group_norm: normalization.group_norm,
    torch.layer_norm: normalization.layer_norm,
    torch.native_layer_norm: _native_layer_norm(normalization.layer_norm),
    torch.native_batch_norm: _native_batch_norm(normalization.batch_norm),
    torch.group_norm: normalization.group_norm,
    torch.batch_norm: _torch_order(normalization.batch_norm),
    torch.instance_norm: _torch_order(normalization.instance_norm),
    **_CONVOLUTIONS_WHERE_TORCH_IS_WRONG,
    **{getattr(owner, own.__name__): own for own in elementary.METHODS for owner in (torch, torch.Tensor)},
    **dict.fromkeys((torch.max, torch.Tensor.max), elementary.largest),
    **dict.fromkeys((torch.min, torch.Tensor.min), elementary.smallest),
    torch.Tensor.index_fill_: elementary.index_fill_,
    F.one_hot: elementary.one_hot,
    F.gaussian_nll_loss: elementary.gaussian_nll_loss,
    torch.Tensor.as_strided_: _loop("as_strided_", "gives wrong values under vmap"),
    torch.Tensor.register_hook: _loop("hooks of tensors", "do not run while tasks run at once"),
    torch.autograd.grad: values.gradient,
    torch.Tensor.requires_grad_: values.set_requires_grad,
    torch.Tensor.requires_grad.__get__: values.reads_requires_grad,  # type: ignore[attr-defined]
    torch.Tensor.grad_fn.__get__: values.hidden_graph("grad_fn"),  # type: ignore[union-attr]
    torch.Tensor.is_leaf.__get__: values.hidden_graph("is_leaf"),  # type: ignore[attr-defined]
    torch.Tensor.__contains__: values.contains,
    **{read: values.where_tasks_agree(read) for read in values.READS},
}
_KERNELS: _Table = {
    **_VECTORIZED,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_order(_batch_norm),
    **{own: make(axes, own) for own, (make, axes) in _CONVOLUTIONS.items()},
    F.max_pool2d: _max_pool2d,
}


class TaskOperations(TorchFunctionMode):
    """While entered, torch's operations are replaced by versions that are correct and fast for tasks.

    Args:
        vectorized: whether tasks run under ``vmap``.
        kernels: whether the fast kernels may be used; code that records operations needs torch's own.
    """

    def __init__(self, vectorized: bool, kernels: bool = True) -> None:
        super().__init__()
        self.kernels = vectorized and kernels
        self._replaced = _KERNELS if self.kernels else _VECTORIZED if vectorized else _LOOPED

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call every function or its replacement."""
        return self._replaced.get(func, func)(*args, **(kwargs or {}))
