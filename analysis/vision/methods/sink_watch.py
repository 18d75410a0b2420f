"""Sinks as edits see them: found once at the prompt by phi, the same while tokens are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import pad

from analysis.sinks.dimensions import sink_dimensions
from analysis.sinks.phi import phi, tau_for
from probes.depth import refuse_unknown_streams
from probes.edits.edit import EditPlace
from probes.heads import Site
from probes.tap import Attached

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(frozen=True)
class SinkKeys:
    """The keys of one layer's prompt and `room` for more, bool ``[batch key]``, on its device.

    Attributes:
        text: sinks among all positions but those of the image.
        visual: sinks of the image.
        plain_image: positions of the image that are no sinks.
        visual_any, any: whether there is one at all.
    """

    text: Tensor
    visual: Tensor
    plain_image: Tensor
    visual_any: bool
    any: bool


@dataclass
class SinkWatch:
    """Listens to the residual stream that enters the layers of an edit.

    The sink dimensions are those that are given; else they are found on the first batch that is
    announced, in a forward of its own. Generated tokens are never sinks.
    """

    subject: Subject
    sites: Sequence[Site]
    dimensions: tuple[int, ...] | None
    tau: float | None
    _score: dict[Site, Tensor] = field(default_factory=dict)
    _keys: dict[Site, SinkKeys] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_unknown_streams(self.subject, self.sites)

    @property
    def listener(self) -> Attached:
        return Attached(frozenset(self.sites), on_residual=self.hear)

    def before(self, batch: Batch, generated: int) -> None:
        """Find the sink dimensions, if nobody said them."""
        if self.dimensions is None:
            self.dimensions = sink_dimensions(self.subject, batch).dimensions

    def hear(self, site: Site, x: Tensor, step: int) -> None:
        """Mark the sinks of the prompt."""
        if step:
            return
        tau = tau_for(x.shape[-1], self.tau)
        self._keys.pop(site, None)
        self._score[site] = phi(x, self.dimensions or ()) > tau

    def at(self, place: EditPlace) -> SinkKeys | None:
        """The sinks among the keys of a layer's prompt; None where there are none."""
        if place.site not in self._keys:
            found = self._score.pop(place.site)
            assert place.call is not None
            if found.shape[1] != place.call.keys:
                raise ValueError(
                    f"The {found.shape[1]} positions that enter {place.site} must be the keys of "
                    f"its attention, got {place.call.keys}. Choose other layers with `depth`."
                )
            whole = EditPlace(place.site, place.heads, place.step, place.call, None, place.moment)
            later = (0, room(place))  # tokens that will be written are neither sinks nor image
            found = pad(found & ~whole.keys_with("pad"), later)
            image = pad(whole.keys_with("image"), later)
            visual = found & image
            self._keys[place.site] = SinkKeys(
                found & ~image, visual, image & ~found, bool(visual.any()), bool(found.any())
            )
        keys = self._keys[place.site]
        return keys if keys.any else None


def at_keys(prompt: Tensor, place: EditPlace) -> Tensor:
    """``prompt [batch key ...]`` at the keys of a tile; it must have `room` for what is written.

    Raises:
        ValueError: the keys are not the last of the prompt and what was written (a static cache).
    """
    call, tile = place.call, place.tile
    assert call is not None and tile is not None
    begin = prompt.shape[1] - room(place) + place.step - call.keys
    if begin < 0:
        raise ValueError(
            f"{place.site} must read no more than the {begin + call.keys} positions that there "
            f"are, it has {call.keys} keys. Generate with the default cache."
        )
    # A window's cache holds the last keys only.
    return prompt[tile.batch, begin : begin + tile.keys]


def room(place: EditPlace) -> int:
    """How many tokens may be written behind the prompt."""
    return 0 if place.moment is None else place.moment.generated
