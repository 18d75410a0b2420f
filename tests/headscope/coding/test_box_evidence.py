"""Features of the bundled describer that read the object they name, against loops."""

import pytest
import torch

from headscope.coding.box_evidence import box_evidence
from headscope.coding.examples import rows_of
from probes.loading import load
from probes.readers import read_examples
from sae import direct_attribution, load_coder

SITE = "language.L2"


@pytest.fixture(scope="module")
def describer():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def coder():
    return load_coder("shapes-llava")


def rows(describer, limit):
    examples = list(read_examples("scenes", "vision-language", limit))
    return rows_of(describer, examples, SITE, batch_size=16)


def test_a_feature_reads_the_box_of_what_is_named(describer, coder):
    found = box_evidence(describer, coder, rows(describer, 50))
    assert found.on_box.firings >= 20
    assert found.difference.low > 0.2
    assert found.on_box.low > 2 * found.shuffled.high
    assert found.from_image.low > 0.5
    assert sum(found.names.values()) == found.on_box.firings
    assert found.kind in found.names


def test_a_feature_that_does_not_fire_there_is_refused(describer, coder):
    with torch.no_grad():
        strengths = coder.encode(torch.cat([chunk[SITE] for chunk in rows(describer, 6).chunks(0)]))
    silent = int((strengths != 0).sum(0).argmin())
    assert not strengths[:, silent].any()
    with pytest.raises(ValueError, match=f"Latent {silent} must fire where objects are named"):
        box_evidence(describer, coder, rows(describer, 6), silent)


def overlap(patch, box):
    wide = max(min(patch[2], box[2]) - max(patch[0], box[0]), 0)
    high = max(min(patch[3], box[3]) - max(patch[1], box[1]), 0)
    return wide * high / ((patch[2] - patch[0]) * (patch[3] - patch[1]))


def test_against_loops(describer, coder):
    """The share on the box again, from words and pixels, one example at a time."""
    chosen = box_evidence(describer, coder, rows(describer, 50)).latent
    found = box_evidence(describer, coder, rows(describer, 9), chosen)
    shares, image_shares, names = [], [], []
    for example in read_examples("scenes", "vision-language", 9):
        batch = describer.prepare(examples=[example])
        tokens = batch.tokens["language"]
        words = [text.strip() for text in tokens.text]
        for at in range(batch.answer_starts[0], len(words) - 1):
            kind = f"{words[at]} {words[at + 1]}"
            if kind not in example.objects:
                continue
            box = example.boxes[example.objects.index(kind)]
            for query in (at - 1, at):  # colour and shape are each predicted one before
                (direct,) = direct_attribution(describer, batch, coder, SITE, chosen, (0, query))
                if not direct.active:
                    continue
                brought = [max(value, 0.0) for value in direct.by_source.tolist()]
                patches = {
                    key: (8.0 * column, 8.0 * row, 8.0 * column + 8, 8.0 * row + 8)
                    for key, (row, column) in enumerate(
                        zip(tokens.row.tolist(), tokens.column.tolist(), strict=True)
                    )
                    if row >= 0
                }
                image = sum(brought[key] for key in patches)
                if not image:
                    continue
                inside = sum(brought[key] * overlap(patch, box) for key, patch in patches.items())
                shares.append(inside / image)
                image_shares.append(image / sum(brought))
                names.append(kind)
    assert found.on_box.firings == len(shares) > 3
    assert found.on_box.value == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    assert found.from_image.value == pytest.approx(sum(image_shares) / len(image_shares), abs=1e-5)
    assert dict(found.names) == {name: names.count(name) for name in set(names)}
    assert found.difference.value == pytest.approx(found.on_box.value - found.shuffled.value)
