"""The finder: heads by a written condition on their scores, parsed and never evaluated."""

from analysis.finder.columns import Quantity, label_of
from analysis.finder.search import Found, find
from analysis.finder.words import QueryError

__all__ = ["Found", "Quantity", "QueryError", "find", "label_of"]
