"""Pages of a feature's examples: which are written, and what they hold."""

import pytest

from headscope.coding.feature_pages import write_feature_pages
from headscope.coding.feature_reading import FeatureReading
from headscope.plan import AskedWrongly
from tests.seen_firings import by_hand, of_tiles


def reading(*views):
    return FeatureReading("language.L1", 5, 100, 3, 36.0, (0.75, 0.25), (0.5, 0.5), views)


def test_a_page_of_each_example_and_of_heads(tmp_path):
    views = (by_hand(id="../a b/ü.png"), by_hand(id="../a b/ü.png", destination=6))
    pages = write_feature_pages(reading(*views), tmp_path / "new" / "there")
    assert [page.name for page in pages] == [
        "language.L1-latent-5-heads.html",
        "language.L1-latent-5-01-a_b_ü.png.html",
        "language.L1-latent-5-02-a_b_ü.png.html",
    ]
    assert sorted(pages) == sorted((tmp_path / "new" / "there").iterdir())
    for page in pages[1:]:
        text = page.read_text("utf-8")
        assert text.count("Plotly.newPlot(") == 2 and "[6 patches]" in text
    assert pages[0].read_text("utf-8").count("Plotly.newPlot(") == 1


def test_a_tower_without_text_has_pictures_alone(tmp_path):
    _, page = write_feature_pages(reading(of_tiles("vision.L0")), tmp_path)
    assert page.read_text("utf-8").count("Plotly.newPlot(") == 1


def test_a_file_in_the_way_is_kept(tmp_path):
    there = tmp_path / "file"
    there.write_text("mine")
    with pytest.raises(AskedWrongly, match="`--figures` must be a folder, .*file is a file"):
        write_feature_pages(reading(by_hand()), there)
    assert there.read_text() == "mine"
