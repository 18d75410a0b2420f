"""A few examples kept in the run, so that it can be looked at without model and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.batching import batches

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.subject import Subject

KEPT = 8
THUMBNAIL_PIXELS = 512


def keep_examples(run: Path, subject: Subject, examples: Sequence[Example]) -> None:
    """Write the first examples to ``examples/``: what they are, token maps, thumbnails.

    index.json holds a record per example, tokens.parquet the token map of every tower (column
    ``id`` names the example), and N.png or N-2.png the pictures of example N.
    """
    import pandas as pd

    from analysis.atomic_file import write_json, written_atomically

    kept = list(examples[:KEPT])
    folder = run / "examples"
    folder.mkdir(exist_ok=True)
    frames = []
    for batch in batches(subject, kept, 1, lambda example, reason: None):
        frame = batch.tokens.frame
        frame["id"] = batch.examples[0].id
        frames.append(frame)
    records = []
    for number, example in enumerate(kept):
        pictures = _thumbnails(folder, number, example)
        records.append(
            {
                "id": example.id,
                "text": example.text,
                "question": example.question,
                "answer": example.answer,
                "objects": list(example.objects),
                "boxes": [list(box) for box in example.boxes],
                "label": example.label,
                "pictures": pictures,
            }
        )
    if frames:
        with written_atomically(folder / "tokens.parquet") as temporary:
            pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    write_json(folder / "index.json", records)


def _thumbnails(folder: Path, number: int, example: Example) -> list[dict[str, object]]:
    from analysis.atomic_file import written_atomically
    from probes.inputs import open_image

    found: list[dict[str, object]] = []
    for index, picture in enumerate(example.pictures):
        image = open_image(picture)
        name = f"{number}.png" if index == 0 else f"{number}-{index + 1}.png"
        size = image.size
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        with written_atomically(folder / name) as temporary:
            image.save(temporary, format="PNG")
        # Boxes and patches are in pixels of the original, so its size belongs to the thumbnail.
        found.append({"file": name, "width": size[0], "height": size[1]})
    return found
