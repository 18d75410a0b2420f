"""Take whatever a user has for a source of head outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae.activations.source import Activations
from sae.activations.stored_rows import StoredActivations
from sae.activations.tensor_rows import TensorActivations


def as_activations(given: Any, name: str = "input", heads: int = 1) -> Activations:
    """A source as it is; a folder as a store; tensors, arrays and streams of tensors as rows.

    Args:
        name, heads: of the site, where rows are given.

    Raises:
        ValueError: it is none of these.

    >>> as_activations(torch.zeros(5, 6), heads=2).widths
    {'input': 6}
    """
    if isinstance(given, Activations):
        return given
    if isinstance(given, (str, Path)):
        return StoredActivations(given)
    if type(given).__module__ == "numpy":
        given = torch.as_tensor(given)
    return TensorActivations(given, name, heads)
