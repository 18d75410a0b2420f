"""A few examples kept in the run, so that it can be looked at without model and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.batching import batches

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

KEPT = 8
THUMBNAIL_PIXELS = 512


def keep_examples(run: Path, subject: Subject, examples: Sequence[Example]) -> None:
    """Write the first examples to ``examples/``: token maps, thumbnails, attention patterns.

    index.json holds a record per example, tokens.parquet the token map of every tower (column
    ``id`` names the example), N.png or N-2.png the pictures of example N, and
    patterns/N.safetensors what every head reads there. All patterns together take
    `analysis.kept_patterns.BUDGET_BYTES` at most: of long examples the strongest keys of each query
    are kept, and of fewer examples; the record says which, or why there are none.
    """
    import pandas as pd

    from analysis.atomic_file import write_json, written_atomically
    from analysis.kept_patterns import BUDGET_BYTES, FOLDER

    kept = list(examples[:KEPT])
    folder = run / "examples"
    folder.mkdir(exist_ok=True)
    (folder / FOLDER).mkdir(exist_ok=True)
    frames, patterns = [], {}
    numbers = {example.id: number for number, example in enumerate(kept)}
    room, left = BUDGET_BYTES, len(kept)
    for batch in batches(subject, kept, 1, lambda example, reason: None):
        name = batch.examples[0].id
        frame = batch.tokens.frame
        frame["id"] = name
        frames.append(frame)
        file = folder / FOLDER / f"{numbers[name]}.safetensors"
        file.unlink(missing_ok=True)  # of an attempt that was stopped
        patterns[name] = _keep_patterns(file, subject, batch, room, left)
        room, left = room - int(patterns[name].get("bytes", 0)), left - 1
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
                "patterns": patterns.get(
                    example.id, {"reason": "The example could not be prepared by itself."}
                ),
            }
        )
    if frames:
        with written_atomically(folder / "tokens.parquet") as temporary:
            pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    write_json(folder / "index.json", records)


def _keep_patterns(
    file: Path, subject: Subject, batch: Batch, room: int, examples: int
) -> dict[str, object]:
    """Write the patterns of one example; what is kept of them, or why nothing is."""
    from analysis.kept_patterns import PatternKeeper, strongest_that_fit
    from probes.listening import listen

    found = strongest_that_fit(subject.layout, batch.tokens, room, examples)
    if found is None:
        return {"reason": f"Its patterns do not fit into the {room >> 20} MiB that were left."}
    keeper = PatternKeeper(subject.layout, batch.tokens, *found, room)
    try:
        with listen(subject, batch, keeper.listen):
            subject.forward(batch)
    except (RuntimeError, ValueError, MemoryError) as error:
        # They are for looking at: a run that measured everything does not end without them.
        return {"reason": f"Its patterns could not be kept: {' '.join(str(error).split())}"}
    size = keeper.save(file)
    kept = {"kept": "whole"} if keeper.lossless else {"kept": "strongest", "keys": found[0]}
    return {"file": file.name, **kept, "bytes": size}


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
