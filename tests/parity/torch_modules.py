"""PyTorch's own transformer modules, and attention that somebody wrote themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .family import Seen, numbers, redraw


@dataclass(frozen=True)
class ModuleFamily:
    """A module built by a function; fields as in `Family`."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    towers: Mapping[str, Seen] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    note: str = ""
    group: str = "torch"

    def build(self) -> nn.Module:
        model = self.make()
        redraw(model, self.name, gain=1.0)
        return model.eval()


class TalkingHeads(nn.Module):
    """Softmax attention whose heads are mixed before and after the softmax (Shazeer 2020)."""

    def __init__(self, width: int = 60, heads: int = 6) -> None:
        super().__init__()
        self.num_heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * self.head_width**-0.5
        scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pattern = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = (pattern @ value).transpose(1, 2).reshape(batch, length, width)
        return x + self.out(z)


class BottomRight(nn.Module):
    """A window of queries at the end of a longer sequence, causal from the bottom right."""

    def __init__(self, width: int = 60, heads: int = 6, queries: int = 4) -> None:
        super().__init__()
        self.num_heads, self.queries = heads, queries
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, -self.queries :]
        query = self.q(last).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        allowed = torch.ones(self.queries, x.shape[1], dtype=torch.bool)
        allowed = allowed.tril(x.shape[1] - self.queries)
        z = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return last + self.out(z.transpose(1, 2).flatten(2))


class WithWeights(nn.Module):
    """``nn.MultiheadAttention`` as most people call it: weights wanted, averaged over heads."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(60, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=self.need_weights)[0]


class Windows(nn.Module):
    """One call per window of the sequence, windows of different lengths, one output map."""

    def __init__(self, sizes: tuple[int, ...] = (4, 7, 2)) -> None:
        super().__init__()
        self.sizes = sizes
        self.qkv, self.out = nn.Linear(60, 180), nn.Linear(60, 60)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, 6, 10)).permute(2, 0, 3, 1, 4)
        parts = zip(*(part.split(self.sizes, dim=2) for part in qkv), strict=True)
        z = torch.cat([functional.scaled_dot_product_attention(*part) for part in parts], dim=2)
        return x + self.out(z.transpose(1, 2).flatten(2))


class ChannelAttention(nn.Module):
    """Softmax between channels (cross-covariance attention): no pattern over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(60, 180)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 6, 10)).permute(2, 0, 3, 4, 1)
        pattern = (query @ key.transpose(-2, -1)).softmax(-1)
        return x + (pattern @ value).permute(0, 3, 1, 2).flatten(2)


class LinearAttention(nn.Module):
    """Keys and values are summed first: there is no pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(60, 180)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        summary = functional.elu(key).add(1).transpose(1, 2) @ value
        return x + functional.elu(query).add(1) @ summary


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _x(name: str = "x", length: int = 13) -> dict[str, Any]:
    return {name: numbers(2, length, 60)}


def _padded() -> dict[str, Any]:
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padding[1, 9:] = True
    return _x("src") | {"src_key_padding_mask": padding}


def _encoder(**settings: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(60, 6, 68, batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _both() -> nn.Module:
    return nn.Transformer(60, 6, 2, 2, 68, batch_first=True)


TWO = {"encoder": Seen(2, 6)}

FAMILIES = [
    ModuleFamily(
        "multihead_attention",
        lambda: Stack(WithWeights(False), WithWeights(False)),
        _x,
        TWO,
        kinds=("fast path",),
    ),
    ModuleFamily(
        "multihead_attention_with_weights",
        lambda: Stack(WithWeights(True), WithWeights(True)),
        _x,
        TWO,
        kinds=("fast path",),
    ),
    ModuleFamily("transformer_encoder", _encoder, lambda: _x("src"), TWO, kinds=("fast path",)),
    ModuleFamily(
        "transformer_encoder_norm_first",
        lambda: _encoder(norm_first=True),
        lambda: _x("src"),
        TWO,
        kinds=("fast path",),
    ),
    ModuleFamily("transformer_encoder_padded", _encoder, _padded, TWO, kinds=("fast path",)),
    ModuleFamily(
        "transformer",
        _both,
        lambda: _x("src") | _x("tgt", 7),
        {"encoder": Seen(2, 6), "decoder": Seen(2, 6), "cross": Seen(2, 6)},
        kinds=("fast path",),
    ),
    ModuleFamily(
        "talking_heads",
        lambda: Stack(TalkingHeads(), TalkingHeads()),
        _x,
        TWO,
        kinds=("talking heads",),
    ),
    ModuleFamily("bottom_right_causal", BottomRight, _x, {"encoder": Seen(1, 6)}),
    ModuleFamily(
        "windows_call_by_call", lambda: Stack(Windows(), Windows()), _x, TWO, kinds=("window",)
    ),
    ModuleFamily(
        "channel_attention",
        lambda: Stack(ChannelAttention(), ChannelAttention()),
        _x,
        refused={"layers.0": "between channels"},
        kinds=("channel attention",),
    ),
    ModuleFamily(
        "linear_attention",
        lambda: Stack(LinearAttention(), LinearAttention()),
        _x,
        refused={"layers.0": "softmax"},
        kinds=("linear",),
    ),
]
