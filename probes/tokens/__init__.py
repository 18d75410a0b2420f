"""What each position of each input is: one map per tower, one reader per processor family."""

from probes.tokens.context import Context, TowerFacts
from probes.tokens.map import ROLES, TokenMap, TowerTokens, blank_tokens
from probes.tokens.readers import map_tokens

__all__ = [
    "ROLES",
    "Context",
    "TokenMap",
    "TowerFacts",
    "TowerTokens",
    "blank_tokens",
    "map_tokens",
]
