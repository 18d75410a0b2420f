"""Several coders looked at in one pass over rows of head outputs, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.as_activations import as_activations
from sae.activations.source import Activations
from sae.coders.coder import Coder

_BLOCK = 1 << 24
"""Strengths that are in memory at once: rows times latents."""


@dataclass(frozen=True)
class CodedRows:
    """A block of rows as a coder sees and writes them, in the coder's dtype and on its device."""

    x: Float[Tensor, "row width"]
    strengths: Float[Tensor, "row latent"]
    reconstruction: Float[Tensor, "row width"]


class Sums(Protocol):
    """What is added up over all rows."""

    def add(self, coded: CodedRows) -> None: ...


def one_pass(
    coders: Mapping[str, Coder],
    activations: Any,
    sums: Mapping[str, Sequence[Sums]],
    sites: Mapping[str, str] | None = None,
) -> None:
    """Give every row of the data (epoch 0) to the sums of each coder of its site.

    Blocks end where chunks end, so what is added up must not depend on how rows are grouped.
    Memory: one chunk, and strengths of a block.

    Args:
        sums: by the names of the coders.
        sites: which site each coder reads, as `sites_of` takes it.

    Raises:
        ValueError: as `sites_of`; a site without any row; a reconstruction that is not finite.
    """
    source = as_activations(activations)
    of = sites_of(coders, source, sites)
    rows_seen = dict.fromkeys(coders, 0)
    for chunk in source.chunks(0):
        for name, coder in coders.items():
            rows = chunk.get(of[name])
            if rows is None or not rows.shape[0]:
                continue
            rows_seen[name] += rows.shape[0]
            for coded in coded_blocks(coder, rows):
                if not bool(coded.reconstruction.isfinite().all()):
                    raise ValueError(
                        f"Reconstructions of {name!r} must be finite, got NaN or infinity at "
                        f"{of[name]}. Train the coder again."
                    )
                for each in sums[name]:
                    each.add(coded)
    empty = next((of[name] for name, count in rows_seen.items() if not count), None)
    if empty is not None:
        raise ValueError(f"{empty} must have at least one row, the data gave none. Give more data.")


def coded_blocks(coder: Coder, rows: Float[Tensor, "row width"]) -> Iterator[CodedRows]:
    """Rows of any dtype and device, coded in blocks whose strengths fit into memory."""
    for block in rows.split(max(1, _BLOCK // coder.latents)):
        with torch.no_grad():
            x = block.detach().to(coder.decoder.device, coder.decoder.dtype)
            strengths = coder.encode(x)
            yield CodedRows(x, strengths, coder.decode(strengths))


def sites_of(
    coders: Mapping[str, Coder], source: Activations, sites: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The site of each coder: as given, its name, what it says itself, or the only one there is.

    Raises:
        ValueError: the site is not known or not in the data, or is not as wide as the coder.
    """
    found = {}
    for name, coder in coders.items():
        site = _site_of(name, coder, source.widths, (sites or {}).get(name))
        if source.widths[site] != coder.width:
            raise ValueError(
                f"The coder {name!r} must be as wide as the rows of {site}, "
                f"{source.widths[site]}, got {coder.width}. Choose the site it was trained on."
            )
        found[name] = site
    return found


def _site_of(name: str, coder: Coder, known: Iterable[str], given: str | None) -> str:
    named = [given] if given is not None else [name, coder.about.get("site")]
    there = list(known)
    for site in named:
        if site in there:
            return str(site)
    if given is None and len(there) == 1:
        return there[0]
    raise ValueError(
        f"The site of the coder {name!r} must be one of {', '.join(there)}, got "
        f"{given if given is not None else coder.about.get('site')!r}. Name it with `sites`."
    )
