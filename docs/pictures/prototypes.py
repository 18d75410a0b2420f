"""Make docs/atlas.md's picture: `python docs/pictures/prototypes.py` (kaleido and a Chromium)."""

from pathlib import Path

import headscope as hs

found = hs.atlas(hs.load("shapes-llava"), "scenes", exemplars=False)
figure = hs.figures.prototypes(found.clusters, found.pictures["medoid"], columns=5)
figure.write_image(Path(__file__).with_suffix(".png"))
