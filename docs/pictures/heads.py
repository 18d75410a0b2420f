"""Make the README's picture: `python docs/pictures/heads.py` (needs kaleido and a Chromium)."""

from pathlib import Path

import headscope as hs

heads = hs.score(hs.load("repeat-lm"), "repeats")
figure = hs.figures.small_multiples(
    heads,
    ["previous_token", "induction", "entropy"],
    title="repeat-lm · language · n = 64 · repeats",
)
figure.write_image(Path(__file__).with_suffix(".png"), scale=2)
