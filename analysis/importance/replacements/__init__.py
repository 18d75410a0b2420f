"""What stands in for a head that is taken away: nothing, a mean, another example's, a flat pattern.

A replacement gives ``z'`` for all heads of a layer, as the intact run up to that layer would make
it. Which one is chosen decides what an effect means: zero takes the model off its data, mean takes
away what the head says about this example, resample puts another example's in its place, uniform
and knock-out keep the values and change only where the head looks.
"""

from analysis.importance.replacements.constant import Mean, Zero
from analysis.importance.replacements.named import replacement_named
from analysis.importance.replacements.pattern import KnockedOut, MeanPattern, Uniform
from analysis.importance.replacements.replacement import (
    Replacement,
    mean_changes,
    positions_of,
    roles_of,
)
from analysis.importance.replacements.resample import Resample, matched_positions

__all__ = [
    "KnockedOut",
    "Mean",
    "MeanPattern",
    "Replacement",
    "Resample",
    "Uniform",
    "Zero",
    "matched_positions",
    "mean_changes",
    "positions_of",
    "replacement_named",
    "roles_of",
]
