"""Streaming measures of attention heads, one file per family.

A new measure is one object with the attributes of `analysis.measure.Measure`, made known through
an entry point in the group ``headscope.measures``. Each has a page in ``docs/measures/``.
"""

from analysis.measures.registry import available_measures, select_measures

__all__ = ["available_measures", "select_measures"]
