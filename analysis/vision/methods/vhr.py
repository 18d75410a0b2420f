"""VHR: heads that use the image are made louder, chosen anew for every prompt.

He et al., *Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence* (2024,
arXiv 2412.13949), Algorithm 1. Where the first token is predicted, for each of some layers in
order, with the earlier ones already reinforced:

    VHD[i] = ||z[i] - z'[i]||                 z' without the image; last position of the prompt
    VHD[i] = 0 where VHD[i] and ||z'[i]||^2 both exceed mean + std of the layer
    H      = {i : VHD[i] > median of the layer}
    z[i]   <- alpha * z[i]  for i in H

The same heads are scaled while tokens are written. Each example has heads of its own.

What the text leaves open, and what is done here: the image's positions are deleted (see
`probes.image_removal`); the pass without the image is reinforced too, with the same heads
(``branches="both"``), or not (``"image"``); all positions of the prompt are scaled
(``prompt="all"``), or its last one only (``"last"``). ``both`` runs every prompt once more, with
its text alone below, before the first forward; ``image`` runs the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from analysis.vision.before_answers import last_positions, last_without
from analysis.vision.divergence import activation, divergence, vision_aware, without_outliers
from probes.depth import sites_near
from probes.edits.edit import EditPlace, EditReport
from probes.edits.method import Prepared
from probes.heads import Site
from probes.image_removal import with_and_without_image, without_image
from probes.listening import attach
from probes.tap import Attached

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

TOWER = "language"
DEPTH = ((1 / 32, 2 / 32), (18 / 32, 1.0))
"""The second layer and the last 14 of 32."""
_BATCHES_KEPT = 2
Branches = Literal["both", "image"]
Choose = Literal["above", "below", "every", "random"]


@dataclass(frozen=True)
class Vhr:
    """See the top of this file; made by `vhr`."""

    alpha: float
    branches: Branches
    outliers: bool
    depth: tuple[tuple[float, float], ...]
    prompt: Literal["all", "last"]
    choose: Choose
    seed: int

    @property
    def label(self) -> str:
        others = [f"alpha={self.alpha:g}"]
        if self.choose != "above":
            others.append(f"choose={self.choose}")
        if self.branches != "both":
            others.append(f"branches={self.branches}")
        return f"vhr({', '.join(others)})"

    def on(self, subject: Subject) -> Prepared:
        """The scaling, and the look at each prompt that chooses its heads."""
        if subject.kind != "vision-language" or TOWER not in subject.towers:
            raise ValueError(
                f"VHR tells heads apart by what they do without the image, and {subject.name!r} is "
                f"a {subject.kind} model. Choose a model that reads images and text."
            )
        edit = VhrEdit(self, subject, sites_near(subject.towers[TOWER], self.depth))
        return Prepared(edits=(edit,), before=edit.before)

    def chosen(self, site: Site, seen: Tensor, unseen: Tensor) -> Tensor:
        """Bool ``[batch head]``: the heads of a layer that are reinforced.

        Args:
            seen, unseen: ``z [batch head width]`` where the first token is predicted, with the
                image and without.
        """
        vhd = divergence(seen, unseen)
        if self.outliers:
            vhd = without_outliers(vhd, activation(unseen))
        above = vision_aware(vhd)
        if self.choose == "above":
            return above
        count = above.sum(-1, keepdim=True)
        if self.choose == "every":
            return torch.ones_like(above)
        score = vhd
        if self.choose == "random":
            dice = torch.Generator().manual_seed((self.seed << 12) ^ site.layer)
            score = torch.rand(vhd.shape[-1], generator=dice).to(vhd.device).expand_as(vhd)
        return torch.argsort(torch.argsort(score, dim=-1, stable=True), dim=-1) < count


@dataclass
class _Prompts:
    """The batch whose heads are chosen.

    Attributes:
        last: long ``[batch]``: the position at which the first token is predicted.
        heads: bool ``[batch head]`` by layer: what is reinforced.
        unseen: ``z [batch head width]`` by layer, without the image, where it is still needed.
    """

    batch: Batch
    last: Tensor
    heads: dict[Site, Tensor] = field(default_factory=dict)
    unseen: dict[Site, Tensor] = field(default_factory=dict)


@dataclass
class VhrEdit:
    """The layers of one `Vhr` in one ``with`` block."""

    method: Vhr
    subject: Subject
    heads: Sequence[Site]
    stage: Literal["z"] = "z"
    _known: list[_Prompts] = field(default_factory=list, repr=False)

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def chosen_heads(self) -> dict[Site, Tensor]:
        """Bool ``[batch head]`` by layer: what is reinforced in the batch that was seen last."""
        return dict(self._known[0].heads) if self._known else {}

    def before(self, batch: Batch, generated: int) -> None:
        """Choose the heads of a batch (``both``), or look at its text alone (``image``).

        Raises:
            InputError: an example without an image, or a model that needs its image.
        """
        prompts = _Prompts(batch, last_positions(batch))
        # The ones before are kept for a batch that is announced while another one is.
        self._known = [prompts, *self._known][:_BATCHES_KEPT]
        if self.method.branches == "both":
            self._choose_in_both(prompts)
            return
        removed = without_image(self.subject, batch)
        last = last_without(removed, prompts.last)

        def keep(site: Site, z: Tensor, step: int) -> None:
            prompts.unseen[site] = z[torch.arange(len(z)), last.to(z.device)].detach()

        self._run(removed.batch, Attached(frozenset(self.heads), on_z=keep))

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        prompts = next((known for known in self._known if known.batch is place.batch), None)
        if prompts is None:
            raise ValueError(
                f"{self.label} must look at a prompt before the model reads it. Run prepared "
                "batches with `subject.forward` or `subject.generate`."
            )
        beams = len(values) // len(prompts.last)  # of one prompt, below each other
        if place.site not in prompts.heads:
            rows = torch.arange(len(prompts.last))
            seen = values[::beams][rows, prompts.last.to(values.device)]
            unseen = prompts.unseen.pop(place.site)
            prompts.heads[place.site] = self.method.chosen(place.site, seen, unseen)
        heads, last = prompts.heads[place.site], prompts.last
        if beams > 1:
            heads, last = (part.repeat_interleave(beams, dim=0) for part in (heads, last))
        return self._scaled(values, heads, last if place.step == 0 else None)

    def _scaled(self, values: Tensor, heads: Tensor, last: Tensor | None) -> Tensor:
        """``values [batch query head width]``, the heads ``[batch head]`` times alpha."""
        where = heads[:, None, :, None]
        if last is not None and self.method.prompt == "last":
            position = torch.arange(values.shape[1], device=values.device)
            after = position >= last.to(values.device)[:, None]
            where = where & after[:, :, None, None]
        return torch.where(where, values * self.method.alpha, values)

    def _choose_in_both(self, prompts: _Prompts) -> None:
        removed = with_and_without_image(self.subject, prompts.batch)
        below = last_without(removed, prompts.last)
        choosing = _Choosing(self, prompts, torch.cat([prompts.last, below]))
        sites = {site: list(range(self.subject.layout.site(site).heads)) for site in self.heads}
        bound = (choosing, sites, EditReport(choosing.label, ()))
        self._run(removed.batch, Attached(frozenset(sites), edits=(bound,)))

    def _run(self, batch: Batch, attached: Attached) -> None:
        settings: dict[str, Any] = {}
        if "logits_to_keep" in self.subject.arguments.names:
            settings["logits_to_keep"] = 1  # nobody reads them
        with attach(self.subject, attached):
            self.subject.forward(batch, **settings)


@dataclass
class _Choosing:
    """Chooses heads layer by layer in a forward of prompts above and their texts below."""

    of: VhrEdit
    prompts: _Prompts
    last: Tensor
    stage: Literal["z"] = "z"

    @property
    def label(self) -> str:
        return self.of.label

    @property
    def heads(self) -> Sequence[Site]:
        return self.of.heads

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        rows = torch.arange(len(values))
        seen, unseen = values[rows, self.last.to(values.device)].chunk(2)
        heads = self.of.method.chosen(place.site, seen, unseen)
        self.prompts.heads[place.site] = heads
        return self.of._scaled(values, torch.cat([heads, heads]), self.last)


def vhr(
    alpha: float = 2.0,
    branches: Branches = "both",
    outliers: bool = True,
    depth: tuple[tuple[float, float], ...] = DEPTH,
    prompt: Literal["all", "last"] = "all",
    choose: Choose = "above",
    seed: int = 0,
) -> Vhr:
    """Vision-aware Head Reinforcement.

    Args:
        alpha: factor of the chosen heads; 1 changes nothing, 4 was seen to break models.
        branches: whether the pass without the image is reinforced as well.
        outliers: leave out heads that flare up without the image.
        depth: ranges of relative depth of the layers.
        prompt: which positions of the prompt are scaled.
        choose: ``above`` the median of VHD; as controls ``below``: as many of the lowest;
            ``every`` head of these layers; ``random``: as many, drawn once per layer.
        seed: of the random heads.

    >>> vhr(alpha=1.5).label
    'vhr(alpha=1.5)'
    """
    if not alpha >= 0:
        raise ValueError(f"`alpha` of vhr must be at least 0, got {alpha:g}.")
    for name, value, known in (
        ("branches", branches, ("both", "image")),
        ("prompt", prompt, ("all", "last")),
        ("choose", choose, ("above", "below", "every", "random")),
    ):
        if value not in known:
            raise ValueError(f"`{name}` of vhr must be one of {', '.join(known)}, got {value!r}.")
    return Vhr(alpha, branches, outliers, depth, prompt, choose, seed)
