"""The attention patterns of a run's kept examples: written once, read head by head."""

from analysis.kept_patterns.examples import KeptExample, kept_examples, tokens_of
from analysis.kept_patterns.form import BUDGET_BYTES, FOLDER, strongest_that_fit
from analysis.kept_patterns.head_pattern import HeadPattern
from analysis.kept_patterns.reading import KeptPatterns
from analysis.kept_patterns.writing import PatternKeeper, TooLarge

__all__ = [
    "BUDGET_BYTES", "FOLDER", "HeadPattern", "KeptExample", "KeptPatterns", "PatternKeeper",
    "TooLarge", "kept_examples", "strongest_that_fit", "tokens_of",
]  # fmt: skip
