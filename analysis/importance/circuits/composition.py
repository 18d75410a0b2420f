"""How much every later head reads of what every earlier head writes, by their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.importance.circuits.circuits import absorbed, composition, random_write
from analysis.importance.circuits.data_free import Line
from analysis.statistics import null_interval
from probes.heads import Site
from probes.weights.head_weights import HeadWeights

if TYPE_CHECKING:
    import pandas as pd

    from probes.subject import Subject

KINDS = ("q", "k", "v")
_DRAWS = 4
PAIR_COLUMNS = ("kind", "tower", "from_layer", "from_head", "layer", "head", "value", "null")
Reasons = dict[tuple[str, str], str]


@dataclass
class _Scores:
    """Scores of one later layer and kind, earlier layers one after the other.

    Attributes:
        values: ``[earlier later]`` per earlier layer; ``nulls``: ``[draw earlier later]``.
        earlier: layer and head of each row.
    """

    values: list[Tensor] = field(default_factory=list)
    nulls: list[Tensor] = field(default_factory=list)
    earlier: list[tuple[int, int]] = field(default_factory=list)


def compositions(
    subject: Subject, weights: Mapping[Site, HeadWeights], *, seed: int
) -> tuple[pd.DataFrame, list[Line], Reasons]:
    """Scores of all pairs, their largest per later head, and what was not measured.

    The table has one line per kind (``q``, ``k``, ``v``), earlier and later head, with ``null``:
    the mean score if the earlier head's output were turned at random.
    """
    import pandas as pd

    frames: list[pd.DataFrame] = []
    lines: list[Line] = []
    reasons: Reasons = {}
    for tower in subject.layout.towers:
        mine = [one for site, one in weights.items() if site.tower == tower]
        problem = _tower_problem(subject, tower, mine)
        if problem:
            reasons.update({(tower, f"{kind}_composition"): problem for kind in KINDS})
            continue
        readers: list[tuple[int, str]] = []
        for number, later in enumerate(mine[1:], 1):
            for kind in KINDS:
                why = _problem(later, kind)
                if why:
                    reasons[tower, f"{kind}_composition"] = why
                else:
                    readers.append((number, kind))
        for (number, kind), scores in _scores(subject, mine, readers, seed).items():
            frames.append(_frame(kind, mine[number].site, scores))
            lines += _summary(kind, mine[number].site, scores)
    columns = list(PAIR_COLUMNS)
    pairs = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return pairs, lines, reasons


def _scores(
    subject: Subject, tower: list[HeadWeights], readers: list[tuple[int, str]], seed: int
) -> dict[tuple[int, str], _Scores]:
    """Scores by place of the later layer in ``tower`` and kind, in the order of ``readers``."""
    generator = torch.Generator().manual_seed(seed)
    found = {reader: _Scores() for reader in readers}
    for place, earlier in enumerate(tower):
        if not _writes(subject, earlier):
            continue
        write = absorbed(_side(earlier, "v"), _output(earlier))
        turned = [random_write(write, generator) for _ in range(_DRAWS)]
        size = write.double().flatten(1).norm(dim=1).cpu()
        for (number, kind), scores in found.items():
            if number <= place:
                continue
            read = _reading(tower[number], kind)
            if read.shape[1] != write.shape[2]:
                continue  # another stage of the model, with a stream of another width
            scale = size[:, None] * read.double().flatten(1).norm(dim=1).cpu()[None]
            scores.values.append(composition(write, read) / scale)
            scores.nulls.append(torch.stack([composition(t, read) for t in turned]) / scale)
            scores.earlier += [(earlier.site.layer, head) for head in range(earlier.heads)]
    return {reader: scores for reader, scores in found.items() if scores.values}


def _problem(weights: HeadWeights, kind: str) -> str:
    """Why nothing is known of one side of a layer's circuits, empty if it is known."""
    parts = ("value", "output", "stream") if kind == "v" else ("query", "key")
    problem = next((weights.missing[part] for part in parts if part in weights.missing), "")
    if problem or kind == "v" or not weights.normed:
        return problem
    return (
        f"Queries or keys pass a norm ({weights.normed}) after their projection, so scores are "
        "not bilinear in what earlier heads wrote."
    )


def _reading(weights: HeadWeights, kind: str) -> Tensor:
    """``[head model_width width]``: columns that stand for the circuit as the stream meets it."""
    if kind == "v":
        return absorbed(_output(weights).mT, _side(weights, "v").mT).mT
    query, key = _side(weights, "q"), _side(weights, "k")
    here, behind = (query, key) if kind == "q" else (key, query)
    return absorbed(behind, here.mT).mT


def _side(weights: HeadWeights, kind: str) -> Tensor:
    """``[head model_width width]``: what of each head meets the stream."""
    head_map = {"q": weights.query, "k": weights.key, "v": weights.value}[kind]
    assert head_map is not None
    matrix = head_map.stream_matrix()
    return matrix if kind == "q" else weights.per_query_head(matrix)


def _output(weights: HeadWeights) -> Tensor:
    output = weights.stream_output()
    assert output is not None
    return output


def _writes(subject: Subject, weights: HeadWeights) -> bool:
    """Whether its heads are known to write into a residual stream."""
    block = subject.layout.anatomy.blocks.get(weights.site)
    known = not {"value", "output", "stream"} & set(weights.missing)
    return known and block is not None and block.residual


def _tower_problem(subject: Subject, tower: str, mine: list[HeadWeights]) -> str:
    places = subject.layout.towers[tower].sites.values()
    if any(place.cross for place in places):
        return f"The keys of {tower} come from another stream than its queries."
    if len(mine) < 2:
        return f"{tower} has one layer of attention, so no head comes before another."
    if not any(_writes(subject, one) for one in mine[:-1]):
        return (
            f"No head of {tower} was seen to write into a residual stream by a known W_V and W_O."
        )
    return ""


def _frame(kind: str, site: Site, scores: _Scores) -> pd.DataFrame:
    import pandas as pd

    values, null = torch.cat(scores.values), torch.cat(scores.nulls, dim=1).mean(0)
    writers, heads = values.shape
    return pd.DataFrame(
        {
            "kind": kind,
            "tower": site.tower,
            "from_layer": np.repeat([layer for layer, _ in scores.earlier], heads),
            "from_head": np.repeat([head for _, head in scores.earlier], heads),
            "layer": site.layer,
            "head": np.tile(np.arange(heads), writers),
            "value": values.numpy().ravel(),
            "null": null.numpy().ravel(),
        }
    )


def _summary(kind: str, site: Site, scores: _Scores) -> Iterator[Line]:
    """The largest score of each later head; null: the largest of random turns, in its layer."""
    null = torch.cat(scores.nulls, dim=1).amax(1)
    low, high = null_interval(null.numpy().ravel())
    for head, value in enumerate(torch.cat(scores.values).amax(0).tolist()):
        yield Line(site, head, f"{kind}_composition", "", "norm ratio", value, low, high)
