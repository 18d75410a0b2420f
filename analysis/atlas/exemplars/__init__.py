"""Exemplars: what each head does over a whole data set, the strongest and the usual, in words."""

from analysis.atlas.exemplars.collector import ExemplarCollector
from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atlas.exemplars.result import TABLES, Exemplars

__all__ = ["TABLES", "ExemplarCollector", "ExemplarOptions", "Exemplars"]
