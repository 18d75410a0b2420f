"""Firings with their attribution, on bundled models, tiled images, and made by hand."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_vlms import llava_next

from probes.heads import Site
from probes.inputs import Example
from probes.readers import read_examples
from probes.subject import Subject
from probes.tokens.map import ROLES, TokenMap, TowerTokens
from sae import SubjectActivations, feature_examples, firing_views, load_coder
from sae.reading.direct_attribution import DirectAttribution
from sae.reading.feature_examples import Firing
from sae.reading.sources import Sources
from sae.reading.windows import FiringView, window_at
from tests.drawn_coders import drawn_coder, redrawn, subject_of

WIDE, HIGH = 30, 20


def picture(wide: int = WIDE, high: int = HIGH) -> Image.Image:
    """Redder to the right, greener downwards."""
    pixels = np.zeros((high, wide, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, wide)[None]
    pixels[..., 1] = np.linspace(0, 255, high)[:, None]
    return Image.fromarray(pixels)


def by_hand(
    words: tuple[str, ...] = ("a", "sees", "<b>cat</b>"),
    joint: torch.Tensor | None = None,
    destination: int = -1,
    **example: Any,
) -> FiringView:
    """A firing of a language model that sees 2 rows of 3 patches after its first word.

    Positions: a word, six patches, the other words. By default two heads; head 0 brings
    0, 1, 2, ... and head 1 brings -0.5 from patch (1, 2) alone.
    """
    patches = 6
    n = len(words) + patches
    role = torch.full((n,), ROLES.index("text"))
    role[1 : 1 + patches] = ROLES.index("image")
    place = torch.arange(patches)
    row, column = torch.full((n,), -1), torch.full((n,), -1)
    row[1:7], column[1:7] = place // 3, place % 3
    box = torch.full((n, 4), float("nan"))
    left, top = 10.0 * (place % 3), 10.0 * (place // 3)
    box[1:7] = torch.stack([left, top, left + 10, top + 10], 1)
    none = torch.where(row >= 0, 0, -1)
    tokens = TowerTokens(
        "language", torch.tensor([0, n]), torch.zeros(n, dtype=torch.long), role,
        torch.arange(n), none, none, row, column, box,
        (words[0], *["<image>"] * patches, *words[1:]),
    )  # fmt: skip
    if joint is None:
        joint = torch.zeros(2, n, dtype=torch.float64)
        joint[0] = torch.arange(n)
        joint[1, 6] = -0.5
    at = destination % n
    pre = 0.25 + float(joint.sum())
    sources = Sources("language", torch.arange(n), TokenMap({"language": tokens}))
    site = Site("language", 1)
    direct = DirectAttribution(site, 5, at, joint, 0.25, pre, pre, sources)
    given = Example(**{"id": "ex-0", "image": picture(), **example})
    best = int(direct.by_source.argmax())
    return FiringView(
        Firing(5, given.id, 0, at, pre), window_at(tokens, at), window_at(tokens, best),
        float(direct.by_source[best]), direct, given,
    )  # fmt: skip


@cache
def strongest(model: str, data: str, latent: int, limit: int = 12) -> FiringView:
    """The strongest firing of a feature of a bundled coder."""
    coder = load_coder(model)
    examples = list(islice(read_examples(data, subject_of(model).kind), limit))
    rows = SubjectActivations(subject_of(model), examples, sites=coder.about["site"])
    found = feature_examples(rows, coder, coder.about["site"], latent, top=1)
    return firing_views(subject_of(model), rows, coder, coder.about["site"], found.top(latent))[0]


@cache
def of_tiles(site: str) -> FiringView:
    """A firing of a small LLaVA-NeXT, which sees a picture whole and in tiles."""
    model, processor = llava_next()
    subject = Subject(redrawn(model), processor)
    example = Example("tiled", question="what is this", answer="a cat", image=picture(50, 30))
    rows = SubjectActivations(subject, [example], sites=site)
    coder = drawn_coder(rows.widths[site], 23, k=7)
    found = feature_examples(rows, coder, site)
    latent = int(found.largest.argmax())
    return firing_views(subject, rows, coder, site, found.top(latent))[0]
