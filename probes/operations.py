"""What a torch function does to lineage: reshapes, works by element, multiplies, or normalises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

SHAPE = frozenset(
    "view reshape transpose permute contiguous flatten unflatten squeeze unsqueeze expand "
    "expand_as view_as reshape_as swapaxes swapdims movedim moveaxis clone detach to type type_as "
    "float half bfloat16 double dropout dropout1d dropout2d feature_dropout alpha_dropout "
    "dropout_ t mT T __get__ as_subclass alias _to_copy cpu cuda rearrange narrow_copy "
    "requires_grad_ refine_names rename identity pin_memory".split()
)
"""Functions that move, cast or copy values and change none (dropout: in evaluation)."""

SLICE = frozenset(
    "__getitem__ narrow select chunk split tensor_split split_with_sizes unbind index_select "
    "gather take_along_dim roll flip".split()
)
"""Functions that pick or reorder part of their input."""

JOIN = frozenset(
    "cat concat concatenate stack hstack vstack dstack repeat repeat_interleave".split()
)

LAYOUT_CHANGE = frozenset(
    "pad as_strided unfold fold constant_pad_nd new_zeros index_put scatter scatter_add "
    "index_add pixel_shuffle pixel_unshuffle".split()
)
"""Functions after which a pattern no longer has one row per query."""

PRODUCT = frozenset("matmul __matmul__ __rmatmul__ bmm einsum baddbmm baddbmm_".split())
PROJECTION = frozenset(
    "linear addmm addmm_ mm conv1d conv2d conv3d bilinear conv_transpose2d embedding".split()
)
NORM = frozenset("layer_norm rms_norm group_norm batch_norm instance_norm normalize".split())
SOFTMAX = frozenset({"softmax"})
ATTENTION = "scaled_dot_product_attention"


def name_of(function: Callable[..., Any]) -> str:
    """The bare name of a torch function or tensor method."""
    return getattr(function, "__name__", "")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results, in order, lists and tuples opened."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter of a model."""
    return isinstance(tensor, nn.Parameter)
