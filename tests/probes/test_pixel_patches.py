"""Which pixels belong to an image position, against the models: who notices that they are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planting import entering, silence

from probes.inputs import Batch, Example, InputError
from probes.pixel_patches import blanked, pixel_mask
from probes.tokens.correspondence import correspondence
from tests.probes.tokens.test_correspondence import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_chosen_positions_notice(name: str) -> None:
    """Idefics3 fills the batch up with canvases of zeros, Pixtral pads canvases to one size."""
    model, tensors, tokens, blocks, language = FAMILIES[name][0]()
    places = correspondence(tokens)
    generator = torch.Generator().manual_seed(7)
    gone = torch.rand(len(places.position), generator=generator) < 0.3
    rows = int(tensors["input_ids"].shape[0])
    examples = tuple(Example(str(row)) for row in range(rows))
    batch = Batch(dict(tensors), tokens, examples)
    subject: Any = SimpleNamespace(
        model=model, config=model.config, image_processor=SimpleNamespace(do_normalize=True)
    )
    silence(blocks)
    plain = entering(model, language, tensors)
    changed = {**tensors, **blanked(subject, batch, places, gone)}
    moved = (entering(model, language, changed) - plain).abs().amax(-1) > 1e-7
    assert torch.equal(moved.nonzero()[:, 0], places.position[gone])
    assert 0 < int(gone.sum()) < len(gone)
    before, after = tensors["pixel_values"], changed["pixel_values"]
    hidden = pixel_mask(subject, batch, places, gone)
    assert torch.equal(after[~hidden.expand_as(after)], before[~hidden.expand_as(before)])


def test_pixels_that_are_no_tensor() -> None:
    model, tensors, tokens, _, _ = FAMILIES["llava"][0]()
    places = correspondence(tokens)
    batch = Batch({**tensors, "pixel_values": [1, 2]}, tokens, (Example("a"),) * 3)
    subject: Any = SimpleNamespace(model=model, config=model.config, image_processor=None)
    with pytest.raises(InputError, match="Pixels must be one tensor for parts of an image to be"):
        blanked(subject, batch, places, torch.ones(len(places.position), dtype=torch.bool))
