"""The strongest events of each head, with at most a few of one example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.atlas.exemplars.events import EVENT, Events, few_of_each, place_in_group


@dataclass(frozen=True)
class Strongest:
    """Of all events seen, the largest by `events.ordered`; the order of arrival does not matter.

    What is kept is the top of the union of each example's strongest ``per_example`` events. An
    event that falls out has as many stronger ones before it as are kept, and no later event makes
    them fewer, so that it need not be remembered.

    Attributes:
        events: `EVENT` ``[head kept]``, strongest first; empty places have order -1.
    """

    events: Events
    per_example: int

    @classmethod
    def none(cls, heads: int, kept: int, per_example: int) -> Strongest:
        empty = np.zeros((heads, kept), dtype=EVENT)
        for field in ("order", "query", "key"):
            empty[field] = -1
        return cls(empty, per_example)

    def with_events(self, new: Events) -> Strongest:
        """Those of ``new [head event]`` among them that are strong enough."""
        heads, kept = self.events.shape
        # `new` may hold every query of a batch: what cannot enter is not even sorted.
        head, column = np.nonzero(new["order"] > np.maximum(self.events["order"][:, -1:], -1))
        if not head.size:
            return self
        old_head, old_column = np.nonzero(self.events["order"] >= 0)
        all_heads = np.concatenate([old_head, head])
        events = np.concatenate([self.events[old_head, old_column], new[head, column]])
        sort = np.lexsort((-events["order"], all_heads))
        all_heads, events = all_heads[sort], events[sort]
        few = few_of_each(all_heads, events["example"], self.per_example)
        all_heads, events = all_heads[few], events[few]
        place = place_in_group(all_heads)
        best = place < kept
        result = Strongest.none(heads, kept, self.per_example)
        result.events[all_heads[best], place[best]] = events[best]
        return result
