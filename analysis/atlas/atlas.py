"""An atlas as it lies in a folder: map, clusters, prototypes, patterns, exemplars. No model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.atlas_map import MapOptions, least_patterns, make_map
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

SECTION = "atlas"
ABOUT = "atlas.json"
_PROTOTYPES = "prototypes.safetensors"
FRAMES = ("points", "clusters", "head_mix", "head_shares", "stability", "not_drawn")


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
            null_high_nats p most most_share verdict``, see `analysis.atlas.head_mix.head_mix`.
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

        Heads are compared by the means of their measured features; best on the same inputs.

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
        with written_atomically(folder / _PROTOTYPES) as temporary:
            pictures = {name: np.ascontiguousarray(p) for name, p in self.pictures.items()}
            temporary.write_bytes(save(pictures))
        write_json(folder / ABOUT, self.about)

    def _frames(self) -> dict[str, pd.DataFrame]:
        return {name: getattr(self, name) for name in FRAMES}

    @classmethod
    def load(cls, folder: Path) -> Atlas:
        """What `save` wrote.

        Raises:
            ValueError: there is no atlas, or its patterns cannot be read.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        if not (folder / ABOUT).is_file():
            raise ValueError(
                f"{folder} must hold an atlas, {ABOUT} is not there. Run `headscope atlas MODEL`."
            )
        frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES}
        kept = all((folder / f"{name}.parquet").is_file() for name in TABLES)
        return cls(
            **frames,
            pictures=load_file(folder / _PROTOTYPES),
            patterns=PatternSet.load(folder),
            exemplars=Exemplars.load(folder) if kept else None,
            about=json.loads((folder / ABOUT).read_text(encoding="utf-8")),
        )


def make_atlas(
    patterns: PatternSet,
    exemplars: Exemplars | None,
    not_drawn: pd.DataFrame,
    how: AtlasOptions,
    seed: int,
    progress: Progress | None = None,
) -> Atlas:
    """The atlas of kept patterns: a map for each tower, clusters numbered through.

    Towers have maps of their own because their measures and positions differ: on one map they
    would be what is told apart, and nothing else. A tower with too few patterns has none, which
    ``about["refused"]`` says.

    Raises:
        ValueError: no tower has enough patterns; the sentence says how many it takes.
    """
    import pandas as pd

    progress, settings = progress or Progress(), map_options(how, seed)
    needed = least_patterns(settings)
    names = patterns.samples["tower"].to_numpy()
    towers = list(dict.fromkeys(names.tolist()))
    counts = {tower: int((names == tower).sum()) for tower in towers}
    refused = {
        tower: f"A map needs at least {needed} patterns, {tower} has {count}. Take more samples."
        for tower, count in counts.items()
        if count < needed
    }
    if len(refused) == len(towers):
        raise ValueError(next(iter(refused.values())))
    parts = []
    for tower in [tower for tower in towers if tower not in refused]:
        told = replace(progress, of=f"{progress.of} of {tower}".strip())
        mine = names == tower
        part = TowerPart(tower, make_map(patterns.of(mine), settings, told), np.flatnonzero(mine))
        parts.append(part.numbered_from(sum(len(other.named) for other in parts)))
    about = {
        "verdict": " ".join(part.verdict for part in parts),
        "towers": {part.tower: part.about for part in parts},
        "refused": refused,
        "options": asdict(how) | {"seed": seed},
    }
    frames = {
        name: pd.concat([part.frames[name] for part in parts], ignore_index=True)
        for name in FRAMES[:-1]
    }
    pictures = {
        name: np.concatenate([part.pictures(patterns)[name] for part in parts]) for name in PICTURES
    }
    return Atlas(
        **frames, pictures=pictures, patterns=patterns, exemplars=exemplars, not_drawn=not_drawn,
        about=about,
    )  # fmt: skip


def map_options(how: AtlasOptions, seed: int) -> MapOptions:
    """The settings of the map; `clusters` is a method or a number."""
    options = MapOptions(seed=seed, space=how.space)
    if how.clusters.isdecimal():
        return replace(options, clusters=int(how.clusters))
    if how.clusters != "auto":
        return replace(options, stability=StabilityOptions(method=how.clusters))  # pyright: ignore
    return options
