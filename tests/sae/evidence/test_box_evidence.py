"""Features of the bundled describer that read the object they name, against loops."""

from dataclasses import dataclass, replace

import pytest
import torch

from probes.loading import load
from probes.readers import read_examples
from sae import SubjectActivations, box_evidence, direct_attribution, load_coder
from sae.evidence.box_evidence import _Naming, _on_boxes

SITE, LATENT = "language.L2", 739


@dataclass(frozen=True)
class Named:
    kind: str
    first: int
    last: int
    boxes: tuple


@pytest.fixture(scope="module")
def describer():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def coder():
    return load_coder("shapes-llava")


def scenes(limit):
    return list(read_examples("scenes", "vision-language", limit))


def rows(describer, examples, **settings):
    return SubjectActivations(describer, examples, sites=SITE, **settings)


def mentions(tokens, batch):
    """Pairs of words, such as ``yellow circle``, in the answers."""
    words = [text.strip() for text in tokens.text]
    for row, example in enumerate(batch.examples):
        begin, end = int(tokens.starts[row]), int(tokens.starts[row + 1])
        for at in range(begin + batch.answer_starts[row], end - 1):
            kind = f"{words[at]} {words[at + 1]}"
            if kind in example.objects:
                box = tuple(example.boxes[example.objects.index(kind)])
                yield Named(kind, at, at + 1, (box,))


def overlap(patch, box):
    wide = max(min(patch[2], box[2]) - max(patch[0], box[0]), 0)
    high = max(min(patch[3], box[3]) - max(patch[1], box[1]), 0)
    return wide * high / ((patch[2] - patch[0]) * (patch[3] - patch[1]))


def coverage(patches, boxes):
    (box,) = boxes
    return torch.tensor([overlap(patch, box) for patch in patches.tolist()], dtype=torch.float64)


def evidence(describer, coder, given, latent=None, **settings):
    how = {"mentions": mentions, "coverage": coverage, **settings}
    return box_evidence(describer, coder, given, latent, **how)


def test_a_feature_that_does_not_fire_there_is_refused(describer, coder):
    given = rows(describer, scenes(6))
    with torch.no_grad():
        strengths = coder.encode(torch.cat([chunk[SITE] for chunk in given.chunks(0)]))
    silent = int((strengths != 0).sum(0).argmin())
    assert not strengths[:, silent].any()
    with pytest.raises(ValueError, match=f"Latent {silent} must fire where objects are named"):
        evidence(describer, coder, given, silent)


def test_without_mentions_no_feature_is_chosen(describer, coder):
    given = rows(describer, scenes(6))
    with pytest.raises(ValueError, match="Some feature must fire at 8 names of objects or more"):
        evidence(describer, coder, given, mentions=lambda tokens, batch: [])


def test_positions_whose_rows_are_not_read_are_not_judged(describer, coder):
    """Only image positions give rows: nothing fires where names are predicted, as far as known."""
    given = rows(describer, scenes(4), roles=("image",))
    with pytest.raises(ValueError, match=f"Latent {LATENT} must fire where objects are named"):
        evidence(describer, coder, given, LATENT)


def test_against_loops(describer, coder):
    """The share on the box again, from words and pixels, one example at a time."""
    found = evidence(describer, coder, rows(describer, scenes(9)), LATENT)
    shares, image_shares, names = [], [], []
    for example in scenes(9):
        batch = describer.prepare(examples=[example])
        tokens = batch.tokens["language"]
        for one in mentions(tokens, batch):
            for query in (one.first - 1, one.last - 1):  # each word is predicted one before
                (direct,) = direct_attribution(describer, batch, coder, SITE, LATENT, (0, query))
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
                (box,) = one.boxes
                inside = sum(brought[key] * overlap(patch, box) for key, patch in patches.items())
                shares.append(inside / image)
                image_shares.append(image / sum(brought))
                names.append(one.kind)
    assert found.on_box.firings == len(shares) > 3
    assert found.on_box.value == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    assert found.from_image.value == pytest.approx(sum(image_shares) / len(image_shares), abs=1e-5)
    assert dict(found.names) == {name: names.count(name) for name in set(names)}
    assert found.difference.value == pytest.approx(found.on_box.value - found.shuffled.value)


def test_boxes_that_are_everywhere_the_same_gain_nothing(describer, coder):
    """The control is of other examples' boxes: here they are no other ones."""

    def alike(tokens, batch):
        return [replace(one, boxes=((3.0, 5.0, 40.0, 31.0),)) for one in mentions(tokens, batch)]

    found = evidence(describer, coder, rows(describer, scenes(9)), LATENT, mentions=alike)
    assert 0 < found.on_box.value < 1
    assert found.shuffled.value == pytest.approx(found.on_box.value)
    assert found.difference.value == pytest.approx(0, abs=1e-12)


def test_a_feature_that_reads_past_its_boxes_is_not_chosen_for_it(describer, coder):
    """Told the other way round, every gain is a loss: the clearest reader must be another."""

    def outside(patches, boxes):
        return 1 - coverage(patches, boxes)

    given = rows(describer, scenes(24))
    plain = evidence(describer, coder, given)
    turned = evidence(describer, coder, given, coverage=outside)
    assert turned.latent != plain.latent
    assert plain.difference.value > 0
    mirrored = evidence(describer, coder, given, plain.latent, coverage=outside)
    straight = evidence(describer, coder, given, plain.latent)
    assert mirrored.difference.value == pytest.approx(-straight.difference.value)


def test_firings_in_one_example_alone_have_no_control(describer, coder):
    """Nothing would be counted, and every number be NaN."""

    def of_second(tokens, batch):
        names = [batch.examples[at].id for at in tokens.example.tolist()]
        return [one for one in mentions(tokens, batch) if names[one.first] == "scene-001"]

    with pytest.raises(ValueError, match="in at least 2 examples, it does so in 1"):
        evidence(describer, coder, rows(describer, scenes(3)), LATENT, mentions=of_second)


def test_boxes_of_images_of_another_size_are_scaled():
    """A feature that reads every patch alike, each object in its image's left upper quarter."""

    def naming(example, side):
        edges = [0.0, side / 2, side]
        patches = [(x, y, x + side / 2, y + side / 2) for y in edges[:2] for x in edges[:2]]
        box = (0.0, 0.0, side / 2, side / 2)
        return _Naming(example, "", 0, torch.tensor(patches), torch.ones(4), (box,), 1.0)

    found = list(_on_boxes([naming("a", 46.0), naming("b", 1000.0)], coverage, 0))
    assert [(own, other) for _, own, other in found] == [(0.25, 0.25), (0.25, 0.25)]
