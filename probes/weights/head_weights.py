"""The weights of each head: from what a layer reads to query, key and value, and back out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from probes.anatomy import OutputProjection, linear_map
from probes.heads import Site
from probes.weights.norm_gain import NormGain


@dataclass(frozen=True)
class LinearSource:
    """A linear map in a model, by its weights or, where those are packed, by its module.

    Attributes:
        path: module path, or the module whose code used the weight.
        width: width of what it reads.
        transposed: whether the weight is ``[in, out]`` as in GPT-2, and not ``[out, in]``.
    """

    path: str
    width: int
    weight: Tensor | None = field(default=None, repr=False)
    bias: Tensor | None = field(default=None, repr=False)
    transposed: bool = False
    module: nn.Module | None = field(default=None, repr=False)

    def matrix(self, columns: Tensor) -> Tensor:
        """Float32 ``[in, *columns]``: what the outputs at ``columns`` take of each input."""
        flat = columns.flatten()
        if self.weight is None:
            assert self.module is not None
            chosen = linear_map(self.module, self.width)[:, flat]
        else:
            weight = self.weight.detach()
            chosen = (weight[:, flat] if self.transposed else weight[flat].T).float()
        return chosen.reshape(self.width, *columns.shape)

    def offset(self, columns: Tensor) -> Tensor:
        """Float32 ``[*columns]``: the outputs at ``columns`` for an input of zeros."""
        if self.weight is None:
            return self._at_zero()[columns]
        if self.bias is None:
            return torch.zeros(columns.shape, device=self.weight.device)
        return self.bias.detach().float()[columns]

    def _at_zero(self) -> Tensor:
        assert self.module is not None
        reference = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if reference is None else reference.dtype
        device = next(self.module.parameters()).device
        with torch.no_grad():
            return self.module.forward(torch.zeros(1, self.width, dtype=dtype, device=device))[
                0
            ].float()


@dataclass(frozen=True)
class HeadMap:
    """What heads compute of a layer's input: ``x @ matrix[head] + bias[head]``.

    Verified on one forward: every number of the model's own query, key or value tensor was found
    in the output of ``source``.

    Attributes:
        columns: long ``[head, head_width]``: output of ``source`` that is this head's number.
        factor: what the model multiplies the output with before it is used.
        reads: path of the norm whose output is read, empty where it is something else.
        norm: what that norm does to directions, ``None`` where it is of no known form.
        shift: float ``[head, head_width]``: a learned bias that the model adds by itself.
    """

    source: LinearSource
    columns: Tensor = field(repr=False)
    factor: float = 1.0
    reads: str = ""
    norm: NormGain | None = None
    shift: Tensor | None = field(default=None, repr=False)

    @property
    def heads(self) -> int:
        return self.columns.shape[0]

    def matrix(self) -> Tensor:
        """Float32 ``[head, width, head_width]``, acting on what the layer reads."""
        return self.source.matrix(self.columns).movedim(1, 0) * self.factor

    def bias(self) -> Tensor:
        """Float32 ``[head, head_width]``."""
        bias = self.source.offset(self.columns)
        return (bias if self.shift is None else bias + self.shift) * self.factor

    def stream_matrix(self) -> Tensor:
        """Float32 ``[head, width, head_width]``, acting on the stream before the layer's norm.

        The gains of the norm (and the centring of a LayerNorm) are multiplied in; its scale,
        which depends on the token, is not. The plain `matrix` where no norm stands before.
        """
        matrix = self.matrix()
        return matrix if self.norm is None else self.norm.fold(matrix)


@dataclass(frozen=True)
class HeadWeights:
    """The four matrices of each head of one attention layer, as far as they could be verified.

    Attributes:
        site: the layer.
        query: one matrix per query head.
        key, value: one per key and value head: fewer than query heads under GQA.
        projection: the verified output projection, one matrix per query head.
        written: what happens to its output before it is added to the stream (LayerScale, a norm);
            ``None`` where that is not known, with the reason in ``missing["stream"]``.
        kv_of_head: which key and value head each query head uses.
        rotary: whether queries and keys are turned by position afterwards; then
            ``W_Q W_K^T`` holds for a key at the query's own place.
        normed: path of a norm that queries or keys pass after their projection, else empty: then
            scores are not bilinear in the input.
        missing: sentence by part (``query``, ``key``, ``value``, ``output``, ``stream``) that was
            not found.
    """

    site: Site
    heads: int
    query: HeadMap | None = None
    key: HeadMap | None = None
    value: HeadMap | None = None
    projection: OutputProjection | None = None
    written: NormGain | None = None
    value_width: int = 0
    kv_of_head: tuple[int, ...] = ()
    rotary: bool = False
    normed: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all four matrices are known."""
        return not set(self.missing) - {"stream"}

    def output(self) -> Tensor | None:
        """Float32 ``[head, head_width, model_width]``: what each head writes per unit of z."""
        if self.projection is None:
            return None
        return self.projection.matrix(self.heads, self.value_width)

    def stream_output(self) -> Tensor | None:
        """Float32 ``[head, head_width, model_width]``: the directions that reach the stream.

        `output` with the gains of LayerScale, constants or a norm behind it multiplied in.
        """
        output = self.output()
        return None if output is None or self.written is None else self.written.fold_output(output)

    def per_query_head(self, of_kv_heads: Tensor) -> Tensor:
        """``[kv_head, ...]`` to ``[head, ...]``: each query head's own copy."""
        return of_kv_heads[torch.tensor(self.kv_of_head, device=of_kv_heads.device)]
