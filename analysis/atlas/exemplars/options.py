"""How many exemplars are kept, and what counts as a sink."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ExemplarOptions:
    """Sizes of everything that is kept per head; memory depends on them and not on the data.

    Attributes:
        strongest: strongest events, by weight and by contribution each.
        per_example: most events of one example in any list.
        sample: queries of each layer that are drawn evenly from the whole data (deciles and
            exemplars of components come from them).
        per_decile: events that are shown of each decile.
        window: positions of text before and after a token.
        sink: mean weight from which on a key that most queries read is a sink, as `sink_rate`.
        pair_capacity: pairs of tokens that are counted at a time.
        pair_budget: query-key pairs of each sequence that are looked at for pairs; of a longer one
            queries are drawn.
        pairs: pairs that are shown, by mass and by lift each.
        fewest_queries: pairs that fewer queries could read are not shown.
        components: principal components per head.
        component_events: exemplars of each end of a component.
        seed: of every draw.
    """

    strongest: int = 20
    per_example: int = 2
    sample: int = 512
    per_decile: int = 2
    window: int = 8
    sink: float = 0.3
    pair_capacity: int = 4096
    pair_budget: int = 1 << 16
    pairs: int = 50
    fewest_queries: int = 5
    components: int = 4
    component_events: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "sink":
                if not 0 < value <= 1:
                    raise ValueError(f"`sink` must be above 0 and at most 1, got {value}.")
            elif option.name != "seed" and value < 1:
                raise ValueError(f"`{option.name}` must be at least 1, got {value}.")
