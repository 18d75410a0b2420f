"""The examples of a feature as pages with pictures, one file each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from headscope.coding.feature_reading import FeatureReading
    from sae.reading.windows import FiringView

_ON_PICTURE = (
    "Tinted: what each patch brings to the feature where it fires (direct attribution, summed over "
    "heads, with the pattern as it is), the bluer the more. Dotted: objects that the data know of. "
    "After Kissane et al. 2024, arXiv 2406.17759."
)
_ON_TEXT = (
    "What each token brings to the feature where it fires (direct attribution, summed over heads, "
    "with the pattern as it is): blue for it, red against it. All boxes and the constant add up to "
    "the pre-activation. After Kissane et al. 2024, arXiv 2406.17759."
)
_OF_HEADS = (
    "Writes: each head's share of the decoder row. Makes it fire: its share of the pre-activation, "
    "by mean absolute size over all firings. Dotted: an equal share."
)


def write_feature_pages(reading: FeatureReading, folder: str | Path) -> list[Path]:
    """One page for each example that is shown, strongest first, and one of the feature's heads.

    Pages hold all that they need and open without a network. Those of the same name are replaced.
    An example that is neither text nor patches of known place has no page.

    Returns:
        The page of heads, then those of examples.

    Raises:
        AskedWrongly: something else than a folder is in the way.
        InputError: a picture that cannot be opened any more.
    """
    from analysis.atomic_file import written_atomically
    from dashboard.feature_heads import feature_heads
    from dashboard.standalone import standalone_page

    where = Path(folder)
    refuse_file(where)
    where.mkdir(parents=True, exist_ok=True)
    name = f"{reading.site}-latent-{reading.latent}"
    heads: list[tuple[Any, str]] = [(feature_heads(reading), _OF_HEADS)]
    pages = {f"{name}-heads.html": heads}
    for rank, view in enumerate(reading.views, start=1):
        figures = firing_figures(view)
        if figures:
            pages[f"{name}-{rank:02d}-{_safe(view.firing.example)}.html"] = figures
    for file, figures in pages.items():
        text = standalone_page(f"Latent {reading.latent} of {reading.site}", figures)
        with written_atomically(where / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [where / file for file in pages]


def firing_figures(view: FiringView) -> list[tuple[Any, str]]:
    """A firing on every image that it reads and on its text: Plotly figures with captions."""
    from dashboard.firing_on_picture import feature_on_picture, images_read
    from dashboard.firing_on_text import feature_on_text, has_text

    found = [(feature_on_picture(view, image), _ON_PICTURE) for image in images_read(view)]
    return [*found, (feature_on_text(view), _ON_TEXT)] if has_text(view) else found


def refuse_file(folder: Path) -> None:
    """Nothing, if a folder can be made there or is there.

    Raises:
        AskedWrongly: a file is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise AskedWrongly(f"`--figures` must be a folder, {folder} is a file. Give another name.")


def _safe(example: str) -> str:
    """The id of an example as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", example).strip("._")[-60:] or "example"
