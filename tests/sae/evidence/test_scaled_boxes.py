"""Boxes in images of other sizes, by hand."""

import pytest
import torch

from sae.evidence.scaled_boxes import scaled


def test_boxes_keep_their_place_and_size_relative_to_what_patches_cover():
    own = torch.tensor([[10.0, 0.0, 30.0, 8.0], [30.0, 8.0, 50.0, 16.0]])  # 10 to 50, 0 to 16
    other = torch.tensor([[100.0, 4.0, 300.0, 36.0]])  # 100 to 300, 4 to 36: times 5 and 2
    (moved, second) = scaled([(20.0, 3.0, 34.0, 10.0), (10.0, 0.0, 50.0, 16.0)], own, other)
    assert moved == pytest.approx((150.0, 10.0, 220.0, 24.0))
    assert second == pytest.approx((100.0, 4.0, 300.0, 36.0))


def test_in_an_image_of_the_same_size_they_stay_bit_for_bit():
    patches = torch.tensor([[0.0, 0.0, 7.0, 7.0], [7.0, 0.0, 13.0, 7.0]])
    boxes = [(0.1, 0.2, 3.3, 6.7)]
    assert scaled(boxes, patches, patches.flip(0)) == tuple(boxes)
