"""Scenes like those of `scenes-broken`, drawn anew: heads are chosen on these, judged on those."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from child import ROOT

SEED = 909
"""`scenes-broken` has 202, and no recipe has this one."""
ABSENT, PRESENT = 20, 5
"""Scenes per cue without its partner and with it."""


@cache
def fresh_scenes(absent: int = ABSENT, present: int = PRESENT) -> tuple[Any, ...]:
    """Examples by the recipe of the bundled sets, twelve cues each as often.

    Fields beside those of an example: ``cue``, ``partner``, ``partner_present``, ``other`` (the
    partner of another cue, not in the scene) and ``caption`` (the true one).
    """
    folder = str(ROOT / "data" / "recipes")
    sys.path.insert(0, folder)
    try:
        import numpy as np
        import scenes
        from sets import DESCRIBE, draw_broken
    finally:
        sys.path.remove(folder)
    from headscope import Example

    dice = np.random.default_rng(SEED)
    cues, found = list(scenes.PARTNER), []
    for turn in range(absent + present):
        for place, cue in enumerate(cues):
            things = draw_broken(cue, turn >= absent, dice)
            kinds = tuple(thing.kind for thing in things)
            others = [scenes.PARTNER[name] for name in [*cues[place + 1 :], *cues[:place]]]
            others = [kind for kind in others if kind not in kinds]
            known = {
                "cue": cue,
                "partner": scenes.PARTNER[cue],
                "partner_present": turn >= absent,
                "other": others[turn % len(others)],
                "caption": scenes.caption(list(kinds)),
            }
            found.append(
                Example(
                    f"fresh-{len(found):03d}",
                    image=scenes.render(things, dice),
                    question=DESCRIBE,
                    objects=kinds,
                    extra=known,
                )
            )
    return tuple(found)
