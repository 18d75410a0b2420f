"""Inputs that an index keeps: what every position of them is, and small pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import write_json, written_atomically
from probes.tokens.map import ROLES
from sae.feature_index.form import INPUTS, PICTURES, TOKENS, Amounts

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch, Example

_SMALL = 128
"""Pictures with sides up to here are kept as they are, as PNG; larger ones as JPEG."""


class InputKeeper:
    """Collects the inputs of chosen ids while batches come by, within the amounts.

    Attributes:
        numbers: of the inputs that are kept so far, by index in the data; names their files.
    """

    def __init__(self, wanted: Iterable[int], amounts: Amounts) -> None:
        """
        Args:
            wanted: indices in the data, the most wanted first; no more than the amounts say are
                taken.
        """
        self.numbers: dict[int, int] = {}
        self._wanted = list(wanted)[: amounts.inputs]
        self._amounts, self._left = amounts, amounts.positions
        self._frames: list[pd.DataFrame] = []
        self._examples: dict[int, Example] = {}

    def see(self, batch: Batch, member: Mapping[int, int], towers: Iterable[str]) -> None:
        """Keep what is wanted of a batch.

        Args:
            member: which of the batch's examples each index in the data is.
            towers: whose positions are kept.
        """
        for index in [index for index in member if index in self._wanted]:
            if index in self.numbers:
                continue
            frames = [_positions(batch, tower, member[index]) for tower in towers]
            size = sum(map(len, frames))
            if size > self._left:
                continue
            self._left -= size
            number = self.numbers[index] = len(self.numbers)
            self._frames += [frame.assign(number=number) for frame in frames]
            self._examples[index] = batch.examples[member[index]]

    def write(self, folder: Path) -> None:
        """Write tokens.parquet, pictures and inputs.json; pictures while there is room."""
        import pandas as pd

        frame = pd.concat(self._frames, ignore_index=True) if self._frames else _no_positions()
        kinds = {"tower": "category", "role": "category"}
        with written_atomically(folder / TOKENS) as temporary:
            frame.astype(kinds).to_parquet(
                temporary, index=False, compression="zstd", row_group_size=1 << 16
            )
        room = self._amounts.picture_bytes
        records: list[dict[str, Any]] = [{} for _ in self.numbers]
        for index in self._wanted:
            if index not in self.numbers:
                continue
            number, example = self.numbers[index], self._examples[index]
            pictures, used = self._thumbnails(folder / PICTURES, number, example, room)
            room -= used
            records[number] = _record(example) | {"pictures": pictures}
        write_json(folder / INPUTS, {"inputs": records})

    def _thumbnails(
        self, folder: Path, number: int, example: Example, room: int
    ) -> tuple[list[dict[str, Any]], int]:
        """Records of an example's pictures and their bytes; none if they do not fit."""
        from io import BytesIO

        from probes.inputs import InputError, open_image

        made: list[tuple[str, bytes, tuple[int, int]]] = []
        for index, picture in enumerate(example.pictures):
            try:
                image = open_image(picture)
            except InputError:  # deleted since it was read; the rest of the index stands
                return [], 0
            size, small, into = image.size, max(image.size) <= _SMALL, BytesIO()
            image.thumbnail((self._amounts.picture_pixels, self._amounts.picture_pixels))
            if small:
                image.save(into, format="PNG", optimize=True)
            else:
                image.save(into, format="JPEG", quality=85)
            name = f"{number}" if index == 0 else f"{number}-{index + 1}"
            made.append((f"{name}.{'png' if small else 'jpg'}", into.getvalue(), size))
        used = sum(len(data) for _, data, _ in made)
        if used > room:
            return [], 0
        for name, data, _ in made:
            folder.mkdir(exist_ok=True)
            with written_atomically(folder / name) as temporary:
                temporary.write_bytes(data)
        # Patches and boxes are in pixels of the original, so its size belongs to the thumbnail.
        return [{"file": n, "width": s[0], "height": s[1]} for n, _, s in made], used


def _positions(batch: Batch, tower: str, example: int) -> pd.DataFrame:
    """The positions of an example in a tower, padding left out; line n is its position n."""
    tokens = batch.tokens[tower]
    mine = ((tokens.example == example) & (tokens.role != ROLES.index("pad"))).nonzero()[:, 0]
    frame = tokens.to_frame().iloc[mine.numpy()].reset_index(drop=True)
    frame["position"] = frame.index
    frame = frame.drop(columns=["sequence", "example", "id"])
    whole, real = ["position", "image", "tile", "row", "column"], ["left", "top", "right", "bottom"]
    return frame.astype(dict.fromkeys(whole, "int32") | dict.fromkeys(real, "float32"))


def _no_positions() -> pd.DataFrame:
    import pandas as pd

    names = "tower position role text image tile row column left top right bottom number".split()
    return pd.DataFrame({name: [] for name in names})


def _record(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "objects": list(example.objects),
        "boxes": [[float(edge) for edge in box] for box in example.boxes],
    }
