"""Examples, batches and images: what opens, what is refused, and in which words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from probes import inputs
from probes.inputs import Batch, Example, InputError, open_image
from probes.tokens import TokenMap


def noise(width=7, height=5, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_lossless_files_open_as_they_are(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(noise()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    for given in (path, str(path), path.read_bytes()):
        opened = open_image(given)
        assert opened.mode == "RGB"
        assert (np.asarray(opened) == noise()).all()


def test_jpeg_opens(tmp_path):
    Image.fromarray(noise(64, 48)).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").size == (64, 48)


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    grey = open_image(Image.fromarray(noise(channels=1)))
    assert (np.asarray(grey) == noise(channels=1)[..., None]).all()
    palette = Image.fromarray(noise()).quantize(8)
    assert np.abs(np.asarray(open_image(palette)) - np.asarray(palette.convert("RGB"))).max() == 0
    clear = np.concatenate([noise(), np.full((5, 7, 1), 255, np.uint8)], -1)
    clear[0, 0] = (9, 9, 9, 0)
    opened = np.asarray(open_image(Image.fromarray(clear)))
    assert opened[0, 0].tolist() == [255, 255, 255]
    assert (opened[1:] == clear[1:, :, :3]).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    opened = np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0]
    assert opened.tolist() == [0, 1, 100, 255]


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(noise(16, 8))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    opened = open_image(tmp_path / "turned.png")
    assert opened.size == (8, 16)
    assert (np.asarray(opened) == np.rot90(noise(16, 8), 3)).all()


def test_arrays_of_every_layout_are_the_same_image():
    expected = noise()
    as_float = torch.from_numpy(expected).float() / 255
    for given in (expected, expected.transpose(2, 0, 1), as_float, as_float.permute(2, 0, 1)):
        assert (np.asarray(open_image(given)) == expected).all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((2, 3, 5, 7)), "must be a path, a PIL image, or an array"),
        (np.full((4, 4), 7.0), "must lie in 0 to 1, got 7 to 7"),
        (np.full((4, 4), 300), "must lie in 0 to 255, got 300 to 300"),
    ],
)
def test_arrays_that_are_no_images_are_refused(given, sentence):
    with pytest.raises(InputError, match=sentence):
        open_image(given)


def test_what_does_not_decode_is_one_sentence(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no picture")
    with pytest.raises(InputError, match=r"Image '.*broken.png' does not decode .* Remove it"):
        open_image(broken)
    Image.fromarray(noise(80, 80)).save(tmp_path / "whole.png")
    broken.write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(InputError, match="does not decode"):
        open_image(broken)
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "nowhere.png")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(noise(40, 30)).save(tmp_path / "huge.png")
    monkeypatch.setattr(inputs, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="at most 1,000 pixels, got 40 x 30"):
        open_image(tmp_path / "huge.png")


def test_examples_are_frozen_and_know_their_pictures():
    example = Example("a", question="what", image="x.png")
    assert example.pictures == ("x.png",) and example.prompt == "what"
    assert Example("b", images=("x", "y")).pictures == ("x", "y")
    assert Example("c", text="t", question="q").prompt == "t"
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.id = "b"  # type: ignore[misc]


def test_a_batch_moves_and_casts_floating_tensors_only():
    tensors = {"input_ids": torch.ones(2, 3).long(), "pixel_values": torch.ones(2, 5), "size": 3}
    batch = Batch(tensors, TokenMap({}), (Example("a"), Example("b")))
    moved = batch.to("cpu", torch.bfloat16)
    assert batch.size == 2
    assert moved.tensors["input_ids"].dtype == torch.int64
    assert moved.tensors["pixel_values"].dtype == torch.bfloat16
    assert moved.tensors["size"] == 3
    assert batch.tensors["pixel_values"].dtype == torch.float32
