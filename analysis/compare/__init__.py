"""Two tables of heads beside each other: differences with intervals, ranks, heads that moved."""

from analysis.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
