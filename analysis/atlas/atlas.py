"""An atlas as it lies in a folder: map, clusters, prototypes, patterns, exemplars. No model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.atlas_files import (
    ABOUT,
    FRAMES,
    NOT_DRAWN,
    PROTOTYPES,
    SECTION,
    read_about,
    read_frame,
    read_prototypes,
)
from analysis.atlas.atlas_map import MapOptions, make_map
from analysis.atlas.clusters import TooFewPatterns
from analysis.atlas.enough import why_too_few
from analysis.atlas.exemplars import TABLES, Exemplars
from analysis.atlas.matching import Matching, head_profiles, match_heads
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.stability import StabilityOptions
from analysis.atlas.tower_part import PICTURES, TowerPart
from analysis.atomic_file import write_json, written_atomically
from analysis.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from analysis.atlas.options import AtlasOptions

__all__ = ["ABOUT", "SECTION", "Atlas", "Kept", "make_atlas", "map_options"]

_HEAD = ("tower", "layer", "head")
_COLUMNS = {
    "points": ("sample", *_HEAD, "example", "part", "cluster", "belonging", "pca_x", "pca_y",
               "x", "y", "name"),
    "clusters": ("tower", "cluster", "name", "size", "share", "medoid", "agreement", "sentence",
                 "also"),
    "head_mix": (*_HEAD, "patterns", "entropy_nats", "null_nats", "null_low_nats",
                 "null_high_nats", "p", "most", "most_share", "verdict", "own_name",
                 "own_sentence"),
    "head_shares": (*_HEAD, "cluster", "name", "share"),
    "stability": (),
}  # fmt: skip
"""Of the tables of an atlas without a single map."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What a pass over the data left behind; maps are made of it.

    Attributes:
        exemplars: None if they were not asked for.
        not_drawn: pairs of a head and an example without a pattern, and why.
        refused: towers without a single pattern, and why.
    """

    patterns: PatternSet
    exemplars: Exemplars | None
    not_drawn: pd.DataFrame
    refused: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> Kept:
        """That of an atlas's folder; its map is not read.

        Raises:
            RunError: a file cannot be read.
            ValueError: there are no patterns.
        """
        patterns = PatternSet.load(folder)
        known = set(patterns.samples["tower"])
        refused = read_about(folder)["refused"].items()
        there = all((folder / f"{name}.parquet").is_file() for name in TABLES)
        return cls(
            patterns,
            Exemplars.load(folder) if there else None,
            read_frame(folder, NOT_DRAWN),
            {tower: why for tower, why in refused if tower not in known},
        )


@dataclass(frozen=True, eq=False)
class Atlas:
    """Every sampled pattern as a point, in clusters with names, and what each head's are.

    Attributes:
        points: a line per pattern on a map: ``sample`` (its line in `patterns`), ``tower layer head
            example part``, ``x y`` (UMAP; principal components where there is none), ``pca_x
            pca_y``, ``cluster`` (-1: in none), ``name``, ``belonging``.
        clusters: a line per cluster: ``tower cluster name size share medoid agreement sentence
            also``; shares are of the tower's patterns, `medoid` is a line of `patterns`.
        head_mix: a line per head: ``tower layer head patterns entropy_nats null_nats null_low_nats
            null_high_nats p most most_share verdict``, see `analysis.atlas.head_mix.head_mix`, and
            ``own_name own_sentence``: by the rules, of the head's own patterns.
        head_shares: a line per head and cluster: ``tower layer head cluster name share``.
        stability: a line per tower and number of clusters that was tried.
        pictures: ``medoid``, ``mean``, ``decoded``: ``[cluster side side]``, in the order of
            `clusters`.
        patterns: what was drawn, to make another map of.
        exemplars: None if they were not asked for.
        not_drawn: pairs of a head and an example without a pattern, and why.
        about: ``verdict``; ``towers``, by name: ``verdict notes seconds beside agreement columns
            left_out explained autoencoder``; ``refused``, towers without a map, and why;
            ``options``.
    """

    points: pd.DataFrame
    clusters: pd.DataFrame
    head_mix: pd.DataFrame
    head_shares: pd.DataFrame
    stability: pd.DataFrame
    pictures: dict[str, NDArray[np.float32]]
    patterns: PatternSet
    exemplars: Exemplars | None
    not_drawn: pd.DataFrame
    about: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence: how many clusters there are and how sure that is."""
        return str(self.about["verdict"])

    def match(self, other: Atlas, seed: int = 0) -> Matching:
        """Which head of another model or checkpoint does what a head of this one does.

        Heads are compared by the means of their measured features; best on the same inputs. Those
        of a tower that both have are matched within it; see `analysis.atlas.matching`.

        Raises:
            ValueError: no feature is measured in both, or it is the same for all heads.
        """
        return match_heads(self._profiles(), other._profiles(), seed)

    def _profiles(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        kept = self.patterns
        return head_profiles(kept.features, kept.samples), head_profiles(kept.nulls, kept.samples)

    def save(self, folder: Path) -> None:
        """Write everything into a folder: parquet, safetensors and JSON."""
        from safetensors.numpy import save

        self.patterns.save(folder)
        if self.exemplars is not None:
            self.exemplars.save(folder)
        for name, frame in self._frames().items():
            with written_atomically(folder / f"{name}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)
        with written_atomically(folder / PROTOTYPES) as temporary:
            pictures = {name: np.ascontiguousarray(p) for name, p in self.pictures.items()}
            temporary.write_bytes(save(pictures))
        write_json(folder / ABOUT, self.about)

    def _frames(self) -> dict[str, pd.DataFrame]:
        return {name: getattr(self, name) for name in FRAMES}

    @classmethod
    def load(cls, folder: Path) -> Atlas:
        """What `save` wrote.

        Raises:
            RunError: a file cannot be read.
            ValueError: there is no atlas, or files that do not belong together.
        """
        if not (folder / ABOUT).is_file():
            raise ValueError(
                f"{folder} must hold an atlas, {ABOUT} is not there. Run `headscope atlas MODEL`."
            )
        kept, frames = Kept.load(folder), {name: read_frame(folder, name) for name in FRAMES}
        return cls(
            **frames,
            pictures=read_prototypes(folder),
            patterns=kept.patterns,
            exemplars=kept.exemplars,
            about=read_about(folder),
        )


def make_atlas(kept: Kept, how: AtlasOptions, seed: int, progress: Progress | None = None) -> Atlas:
    """The atlas of kept patterns: a map for each tower, clusters numbered through.

    Towers have maps of their own because their measures and positions differ: on one map they
    would be what is told apart, and nothing else. A tower with too few patterns has none, which
    ``about["refused"]`` says; it may be that no tower has one.
    """
    import pandas as pd

    progress, settings = progress or Progress(), map_options(how, seed)
    patterns, refused, parts = kept.patterns, dict(kept.refused), []
    names = patterns.samples["tower"].to_numpy()
    for tower in dict.fromkeys(names.tolist()):
        mine = names == tower
        told = replace(progress, of=f"{progress.of} of {tower}".strip())
        why = why_too_few(tower, int(mine.sum()), settings)
        try:
            found = None if why else make_map(patterns.of(mine), settings, told)
        except TooFewPatterns as error:
            found, why = None, str(error)
        if found is None:
            refused[tower] = why
            continue
        part = TowerPart(tower, found, np.flatnonzero(mine))
        parts.append(part.numbered_from(sum(len(other.named) for other in parts)))
    without = [f"{tower}: {why}" for tower, why in refused.items()]
    about = {
        "verdict": " ".join([part.verdict for part in parts] or ["There is no map.", *without]),
        "towers": {part.tower: part.about for part in parts},
        "refused": refused,
        "options": asdict(how) | {"seed": seed},
    }
    frames = {
        name: pd.concat([part.frames[name] for part in parts], ignore_index=True)
        if parts
        else pd.DataFrame(columns=list(columns))
        for name, columns in _COLUMNS.items()
    }
    nothing = np.zeros((0, patterns.side, patterns.side), np.float32)
    pictures = {
        name: np.concatenate([nothing, *(part.pictures(patterns)[name] for part in parts)])
        for name in PICTURES
    }
    return Atlas(
        **frames, pictures=pictures, patterns=patterns, exemplars=kept.exemplars,
        not_drawn=kept.not_drawn, about=about,
    )  # fmt: skip


def map_options(how: AtlasOptions, seed: int) -> MapOptions:
    """The settings of the map; `clusters` is a method or a number."""
    options = MapOptions(seed=seed, space=how.space)
    if how.clusters.isdecimal():
        return replace(options, clusters=int(how.clusters))
    if how.clusters != "auto":
        return replace(options, stability=StabilityOptions(method=how.clusters))  # pyright: ignore
    return options
