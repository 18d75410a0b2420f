"""What a saved index of features consists of: names of its files, and how much is kept.

FOLDER/
  features.parquet      a line per latent, the dead ones too
  examples.parquet      windows of some firings of the latents that were followed
  attributions.parquet  heads and sources of the strongest of them
  tokens.parquet        every position of the inputs that are kept
  inputs.json           those inputs; pictures/N.png or N.jpg, N-2.png ... as thumbnails
  manifest.json         written last: a folder without it is unfinished
"""

from __future__ import annotations

from dataclasses import dataclass

KIND, FOLDER = "features", "features"
FEATURES, EXAMPLES, ATTRIBUTIONS, TOKENS, INPUTS, PICTURES = (
    "features.parquet",
    "examples.parquet",
    "attributions.parquet",
    "tokens.parquet",
    "inputs.json",
    "pictures",
)
TOP, DECILE = "top", "decile"
AGAIN = "Write it again with `headscope sae features`."


@dataclass(frozen=True)
class Amounts:
    """How much is kept.

    Attributes:
        latents: how many get examples: those that fire most often.
        top: strongest inputs of each, each input once.
        per_decile: firings shown of each tenth of its strengths.
        attributed: of how many of the strongest the heads and sources are kept.
        sample: firings per latent that the tenths are drawn from.
        inputs: whose positions and pictures are kept.
        positions: of all kept inputs together, in all towers.
        picture_bytes: of all thumbnails together.
        picture_pixels: longer side of a thumbnail.
    """

    latents: int = 1024
    top: int = 10
    per_decile: int = 2
    attributed: int = 3
    sample: int = 60
    inputs: int = 1000
    positions: int = 1_000_000
    picture_bytes: int = 64 << 20
    picture_pixels: int = 384

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name in ("attributed", "inputs", "positions", "picture_bytes") else 1):
                raise ValueError(f"`{name}` must be positive, got {value}. Give more.")
