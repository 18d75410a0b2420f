"""Norms, eigenvalues and composition of factored circuits, without their large products.

A circuit is a product of two thin matrices: ``W_V W_O`` (what a head moves) and ``W_Q W_K^T``
(where it looks), both ``[model_width model_width]`` of rank ``head_width``. Everything here is
computed from ``head_width x head_width`` matrices, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored_norm(left: Tensor, right: Tensor) -> Tensor:
    """Float64 ``[...]``: Frobenius norm of ``left [... a w] @ right [... w b]``.

    ``|L R|^2 = trace((L^T L)(R R^T))``.
    """
    return _trace_of_product(gram(left.mT), gram(right)).clamp_min(0).sqrt()


def gram(rows: Tensor) -> Tensor:
    """Float64 ``[... w w]`` on the CPU: products of the rows of ``[... w d]`` with each other."""
    rows = rows.cpu().double()
    return rows @ rows.mT


def copying(write: Tensor, read: Tensor, between: Tensor | None = None) -> Tensor:
    """Float64 ``[...]``, -1 to 1: sum of the eigenvalues over the sum of their sizes.

    Of the map ``read [... d w] @ write [... w d]``; its eigenvalues other than 0 are those of the
    small product ``write @ read``. 1 where everything that goes in comes out the same way
    (copying), -1 where it comes out reversed. Complex eigenvalues come in pairs, so that the sum
    is real. NaN for a map of zeros.

    Args:
        between: ``[d d]`` applied between ``write`` and ``read``, for the map from words to words.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), "Detecting
    copying behavior".
    """
    write, read = write.cpu().double(), read.cpu().double()
    small = write @ read if between is None else write @ between.cpu().double() @ read
    eigenvalues = torch.linalg.eigvals(small)
    return eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)


def absorbed(left: Tensor, right: Tensor) -> Tensor:
    """``[... w b]``: rows that stand for ``left [... a w] @ right [... w b]`` in every norm.

    ``|L R M| = |absorbed(L, R) M|`` for all M: L is replaced by the root of ``L^T L``.
    """
    return (_root(gram(left.mT)) @ right.cpu().double()).to(right.device, right.dtype)


def composition(write: Tensor, read: Tensor) -> Tensor:
    """Float64 ``[earlier later]``: Frobenius norm of earlier circuit times later circuit.

    Args:
        write: ``[earlier w d]``, rows that stand for ``W_V W_O`` (`absorbed`).
        read: ``[later d u]``, columns that stand for the later circuit.
    """
    earlier, width = write.shape[:2]
    later, _, own = read.shape
    flat = write.flatten(0, 1) @ read.movedim(0, 1).flatten(1).to(write.device, write.dtype)
    squares = flat.square().reshape(earlier, width, later, own).sum(3).cpu().double().sum(1)
    return squares.sqrt()


def random_write(write: Tensor, generator: torch.Generator) -> Tensor:
    """``[head w d]`` with the inner products of ``write`` and directions drawn at random.

    What a head would write if its output were turned by a random rotation of the stream.
    """
    heads, width, across = write.shape
    noise = torch.randn(heads, across, min(width, across), generator=generator).double()
    directions = torch.linalg.qr(noise).Q.mT
    if width >= across:
        return (write.cpu().double() @ directions).to(write.device, write.dtype)
    return (_root(gram(write)) @ directions).to(write.device, write.dtype)


def _root(positive: Tensor) -> Tensor:
    """The symmetric square root of ``[... w w]``."""
    values, vectors = torch.linalg.eigh(positive)
    return vectors * values.clamp_min(0).sqrt()[..., None, :] @ vectors.mT


def mismatched(heads: int, group: tuple[int, ...], most: int = 64) -> list[tuple[int, int]]:
    """Pairs of different heads of a layer, evenly spread, at most about ``most``.

    Args:
        group: the key and value head of each head; heads that share theirs are no pair.
    """
    pairs = [
        (head, (head + step) % heads)
        for step in range(1, heads)
        for head in range(heads)
        if group[head] != group[(head + step) % heads]
    ]
    return pairs[: max(most, heads)]


def _trace_of_product(one: Tensor, other: Tensor) -> Tensor:
    return (one * other.mT).sum((-2, -1))
