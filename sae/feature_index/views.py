"""Saved firings as `sae.firing_views` gives them, so that the same figures draw them."""

from __future__ import annotations

import numpy as np
import torch

from analysis.run_files import RunError
from probes.heads import Site
from probes.inputs import Example
from probes.tokens.map import ROLES, TokenMap, TowerTokens
from sae.feature_index.form import AGAIN, TOKENS
from sae.feature_index.reading import FeatureIndex, IndexedExample, KeptInput
from sae.reading.direct_attribution import DirectAttribution
from sae.reading.feature_examples import Firing
from sae.reading.sources import Sources
from sae.reading.windows import FiringView, window_at

_NEEDED = {"head", "source", "brought", "rest", "read_to", "tower", "constant", "pre_activation"}
_COLUMNS = ("image", "tile", "row", "column")


def saved_view(index: FeatureIndex, example: IndexedExample) -> FiringView | None:
    """A saved example with its attribution; None where its heads and sources were not kept.

    Sources that bring least have 0, and are together one of unknown place, so that all sums are
    what they were. Boxes are in pixels of the thumbnail, which is the view's picture.

    Raises:
        RunError: the index is damaged.
    """
    lines = index.attribution_lines(example.latent)
    if lines.empty or example.number < 0:
        return None
    mine = lines[lines["rank"] == example.rank]
    if mine.empty:
        return None
    line, missing = mine.iloc[0], _NEEDED - set(mine.columns)
    if missing:
        raise RunError(f"{index.path} is damaged (no column {min(missing)}). {AGAIN}")
    tokens = saved_tokens(index, example.number)
    tower, _, layer = index.site.rpartition(".L")
    site = Site(tower, int(layer))
    count = int(line["read_to"])
    # The last column is of no known place: faint sources, and those that had none.
    column = torch.tensor(np.asarray(line["source"], dtype=np.int64)) % (count + 1)
    joint = torch.zeros(index.heads, count + 1, dtype=torch.float64)
    head = torch.tensor(np.asarray(line["head"], dtype=np.int64))
    brought = torch.tensor(np.asarray(line["brought"], dtype=np.float64))
    try:
        joint.index_put_((head, column), brought, accumulate=True)
        joint[:, -1] += torch.tensor(np.asarray(line["rest"], dtype=np.float64))
        own = tokens[site.tower]
        sources = Sources(
            str(line["tower"]), torch.cat([torch.arange(count), torch.tensor([-1])]), tokens
        )
        direct = DirectAttribution(
            site,
            example.latent,
            example.position,
            joint,
            float(line["constant"]),
            float(line["pre_activation"]),
            example.strength,
            sources,
        )
        best = int(direct.by_source[:-1].argmax()) if count else -1
        firing = Firing(
            example.latent, example.example, example.number, example.position, example.strength
        )
        here = window_at(own, example.position)
        return FiringView(
            firing,
            here,
            window_at(sources.map, best) if best >= 0 else None,
            float(direct.by_source[best]) if best >= 0 else 0.0,
            direct,
            _input(index, example.number),
        )
    except (IndexError, KeyError, RuntimeError) as error:
        raise RunError(f"{index.path} is damaged ({error}). {AGAIN}") from error


def saved_tokens(index: FeatureIndex, number: int) -> TokenMap:
    """The positions of a kept input, padding left out: one row per tower.

    Raises:
        RunError: the table cannot be read.
    """
    frame = index.lines_of(TOKENS, [("number", "==", number)])
    towers = {}
    scales = _scales(index, number)
    for tower in frame["tower"].unique():
        mine = frame[frame["tower"] == tower].sort_values("position")
        count = len(mine)
        box = torch.tensor(mine[["left", "top", "right", "bottom"]].to_numpy(np.float32))
        image = torch.tensor(mine["image"].to_numpy(np.int64))
        factor = torch.tensor([scales.get(i, (1.0, 1.0)) * 2 for i in image.tolist()])
        texts = tuple(str(text) for text in mine["text"])
        whole = {name: torch.tensor(mine[name].to_numpy(np.int64)) for name in _COLUMNS}
        towers[str(tower)] = TowerTokens(
            tower=str(tower),
            starts=torch.tensor([0, count]),
            example=torch.zeros(count, dtype=torch.long),
            role=torch.tensor([_role(name) for name in mine["role"]], dtype=torch.long),
            ids=torch.full((count,), -1),
            box=box * factor.reshape(count, 4).to(box.dtype),
            text=texts if any(texts) else (),
            **whole,
        )
    return TokenMap(towers)


def _role(name: str) -> int:
    return ROLES.index(name) if name in ROLES else ROLES.index("special")


def _scales(index: FeatureIndex, number: int) -> dict[int, tuple[float, float]]:
    """How much smaller each thumbnail of an input is than its original."""
    from PIL import Image

    found = {}
    for image, (file, width, height) in enumerate(_kept(index, number).pictures):
        try:
            with Image.open(file) as opened:
                found[image] = (opened.width / width, opened.height / height)
        except (OSError, ZeroDivisionError) as error:
            raise RunError(f"{file} cannot be read ({error}). {AGAIN}") from error
    return found


def _input(index: FeatureIndex, number: int) -> Example:
    kept, scales = _kept(index, number), _scales(index, number)
    across, down = scales.get(0, (1.0, 1.0))
    boxes = tuple(
        (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        for box in kept.boxes
        if len(box) == 4
    )
    return Example(
        kept.id,
        images=tuple(file for file, _, _ in kept.pictures),
        objects=kept.objects,
        boxes=boxes,
    )


def _kept(index: FeatureIndex, number: int) -> KeptInput:
    if not 0 <= number < len(index.inputs):
        raise RunError(f"Input {number} of {index.path} is not there. {AGAIN}")
    return index.inputs[number]
