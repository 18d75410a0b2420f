"""Open the kept patterns of one example; one head is read without the rest."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.kept_patterns.head_pattern import HeadPattern
from analysis.run_files import AGAIN, RunError
from probes.heads import Head, Site

_TOLD = ("key_tower", "columns", "named_queries", "named_keys", "lossless", "row_sums")


class KeptPatterns:
    """The patterns of all heads on one example, as `PatternKeeper` wrote them.

    Attributes:
        strongest: how many keys of each query are kept at most; None for all.
        sites: those that were reached.

    Raises:
        RunError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
            self._about: dict[str, dict[str, Any]] = dict(about["sites"])
            self.strongest: int | None = about["strongest"]
            if any(name not in told for told in self._about.values() for name in _TOLD):
                raise KeyError("what it says of its sites")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"Patterns {path} cannot be read ({error}). {AGAIN}") from error

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """In the order in which the model runs them."""
        return tuple(_site(name) for name in self._about)

    def head(self, head: str | Head) -> HeadPattern:
        """The pattern of one head.

        Raises:
            KeyError: nothing of it is kept; the sentence says of what there is.
            RunError: the file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        named = head if isinstance(head, Head) else Head.parse(head)
        name = str(named.site)
        if name not in self._about:
            raise KeyError(
                f"Patterns of {named} must have been kept, got those of "
                f"{', '.join(self._about) or 'none'}. Choose a head of one of these."
            )
        told = self._about[name]
        try:
            with safe_open(self.path, "numpy") as file:
                there = set(file.keys())
                queries = file.get_tensor(f"{name}.query")
                whole = f"{name}.pattern" in there
                weights = file.get_slice(f"{name}.{'pattern' if whole else 'weight'}")
                count = weights.get_shape()[0]
                if named.head >= count:
                    raise KeyError(f"{named} must be one of {count} heads of {name}.")
                weight = weights[named.head]
                key = None if whole else file.get_slice(f"{name}.key")[named.head]
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"Patterns {self.path} cannot be read ({error}). {AGAIN}") from error
        return HeadPattern(
            queries,
            int(told["columns"]),
            str(told["key_tower"]),
            weight,
            None if key is None else np.asarray(key, np.int64),
            bool(told["lossless"]),
            str(told["row_sums"]),
            bool(told["named_queries"]),
            bool(told["named_keys"]),
        )


def _site(name: str) -> Site:
    tower, _, layer = name.rpartition(".L")
    return Site(tower, int(layer))
