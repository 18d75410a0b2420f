"""What a run is going to do, written down before it is done."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atlas.options import AtlasOptions
from headscope.batching import BATCH_SIZE, shard_size

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.subject import Subject

_PACKAGES = ("torch", "transformers")
_DEFAULT_DATA = {
    "vision": "shapes",
    "vision-language": "scenes",
    "language": "prose",
    "encoder-decoder": "prose",
}


class AskedWrongly(ValueError):
    """What was asked for cannot be had; the sentence says what can."""


@dataclass(frozen=True)
class Options:
    """How to score. `batch_size` changes values by rounding only, `seed` only the intervals (and
    what studies draw).

    From `effect` on they are for studies: see `analysis.importance.study.StudyOptions`.
    """

    measures: str = "all"
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    seed: int = 0
    replicates: int = 200
    strict: bool = False
    effect: str = ""
    ablation: str = "mean"
    label: str = ""
    draws: int = 5
    copies: int = 1
    graddrop: bool = False
    image_removal: str = "delete"
    answers: str = "auto"
    atlas: AtlasOptions = field(default_factory=AtlasOptions)

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "replicates", "draws", "copies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "--" + name.replace("_", "-")
                raise AskedWrongly(f"`{option}` must be at least 1, got {value}.")


def make_plan(
    subject: Subject,
    data: str,
    examples: Sequence[Example],
    measures: Sequence[str],
    studies: Sequence[str],
    how: Options,
) -> dict[str, Any]:
    """The plan of a run; two runs with equal plans give equal tables."""
    from analysis.run_files import SCHEMA
    from probes.readers import data_digest

    size = shard_size(how.batch_size)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "model": model_record(subject),
        "device": str(subject.device),
        "layers": {name: tower.layers for name, tower in subject.towers.items()},
        "data": {
            "name": data,
            "inputs": inputs_name(data),
            "n": len(examples),
            "digest": data_digest(examples),
        },
        "measures": list(measures),
        "studies": list(studies),
        **({"study_options": _study_options(how)} if studies else {}),
        **({"atlas": asdict(how.atlas)} if "atlas" in studies else {}),
        "limit": how.limit,
        "batch_size": how.batch_size,
        "seed": how.seed,
        "replicates": how.replicates,
        "shard_size": size,
        "shards": -(-len(examples) // size),
    }


def model_record(subject: Subject) -> dict[str, Any]:
    """Which model it is, down to its weights."""
    from probes.fingerprint import fingerprint

    return {
        "name": subject.name,
        "revision": subject.revision,
        "class": type(subject.model).__name__,
        "kind": subject.kind,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "weights": fingerprint(subject.model),
    }


def _study_options(how: Options) -> dict[str, Any]:
    names = ("effect", "ablation", "label", "draws", "graddrop", "image_removal", "answers")
    return {name: getattr(how, name) for name in names}


def versions() -> dict[str, str]:
    """Versions of headscope, Python and the packages that decide about numbers."""
    from headscope import __version__

    found = {"headscope": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def default_data(subject: Subject) -> str:
    """The bundled set that fits a subject: its own, if it is bundled too, else by its kind.

    Raises:
        AskedWrongly: nothing bundled fits.
    """
    from probes.bundled import bundled_models

    own = bundled_models().get(subject.name)
    found = own.default_set if own is not None else _DEFAULT_DATA.get(subject.kind, "")
    if not found:
        raise AskedWrongly(f"No bundled set fits a {subject.kind} model. Give `--data`.")
    return found


def names_in(text: str) -> list[str]:
    """Names that commas separate, without the spaces around them.

    >>> names_in("entropy, z_norm,")
    ['entropy', 'z_norm']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def inputs_name(data: str) -> str:
    """What the `inputs` column calls the data: a set's name, or a file's or folder's own."""
    return data if data.startswith("hf:") else Path(data).name or data


def default_folder(model: str, data: str) -> Path:
    """``runs/<model>-<data>-<time>``."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    words = (Path(model).name or model, Path(inputs_name(data)).stem, now)
    return Path("runs") / "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)
