"""Ablate, scale, set or steer a feature in a running model, everything else left as it is.

``z' = z + (strength' - strength) * decoder row``: what the coder does not reconstruct stays in z,
so an edit that changes no strength changes nothing, and one that does changes that feature alone
(Kissane et al. 2024, arXiv 2406.17759, who splice coders in with their error).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from sae.coders.coder import Coder
from sae.exchange.formats import load_coder
from sae.reading.latent_reading import chosen_latents
from sae.same_model import refuse_other_model
from sae.splice import EVERYWHERE, roles_of

if TYPE_CHECKING:
    from probes.subject import Subject

_BLOCK = 1 << 24

Change = Literal["scale", "set", "add"]


@dataclass(frozen=True)
class FeatureEdit:
    """``z`` of a whole site with the strengths of some latents changed.

    Attributes:
        heads: the site; all of its heads, since a feature spans them.
        change: ``scale`` by, ``set`` to, or ``add`` ``amount``.
        roles: only positions with one of these roles; None: all.
        other_model: whether it may act on a model that the coder was not trained on.
    """

    heads: str
    coder: Coder
    latents: tuple[int, ...]
    change: Change
    amount: float
    name: str
    roles: tuple[str, ...] | None = None
    other_model: bool = False
    stage: Literal["z"] = "z"

    @property
    def label(self) -> str:
        shown = "+".join(map(str, self.latents[:4])) + ("+..." if len(self.latents) > 4 else "")
        amount = "" if self.name == "ablate_feature" else f", {self.amount:g}"
        return f"{self.name}({shown}{amount})"

    def on(self, subject: Subject) -> Prepared:
        """Itself, if the subject is the coder's own model; asked once when it is attached.

        Raises:
            ValueError: it is another model, or it has other weights.
        """
        if not self.other_model:
            refuse_other_model(self.coder, subject)
        return Prepared(edits=(self,))

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        if values.shape[2] * values.shape[3] != self.coder.width:
            raise ValueError(
                f"{self.label} must get all heads of {place.site} side by side, "
                f"{self.coder.width} wide, got {values.shape[2]} x {values.shape[3]}. Choose the "
                "site that the coder was trained on."
            )
        wide = torch.promote_types(values.dtype, torch.float32)
        rows = values.flatten(2).flatten(0, 1)
        change = self._change(rows.to(self.coder.decoder.device))
        change = change.to(values.device, wide).reshape(values.shape)
        if self.roles is not None:
            chosen = place.queries_with(*self.roles).to(values.device)
            change = torch.where(chosen[..., None, None], change, 0.0)
        return (values.to(wide) + change).to(values.dtype)

    def _change(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        decoder = self.coder.decoder[list(self.latents)]
        if self.change == "add":
            return (self.amount * decoder.sum(0)).expand(len(rows), -1)
        # In blocks: strengths of all latents of a long prompt would be larger than the model.
        blocks = rows.split(max(1, _BLOCK // self.coder.latents))
        return torch.cat([self._moved(block) @ decoder for block in blocks])

    def _moved(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row chosen"]:
        """New strengths minus old."""
        strengths = self.coder.encode(rows.to(self.coder.encoder.dtype))[:, list(self.latents)]
        if self.change == "scale":
            return strengths * (self.amount - 1)
        return self.amount - strengths


def ablate_feature(
    coder: Coder | str,
    latents: int | list[int],
    site: str | None = None,
    roles: str | list[str] | None = None,
    other_model: bool = False,
) -> FeatureEdit:
    """Take features out of z wherever they fire.

    Args:
        coder: or the folder that it was saved in.
        latents: one or several.
        site: such as ``language.L2``; by default the one that the coder says it belongs to.
        roles: only at positions with one of these roles, such as ``["text", "generated"]``. By
            default those that the coder was trained on, where it was not trained on all, as
            `sae.splice.splice` has it: what it reads elsewhere means nothing. ``all``: everywhere.
        other_model: act on a model that the coder was not trained on, too; else that is refused
            where the edit is attached.

    Raises:
        ValueError: there is no such latent or role, or the coder does not say its site.
    """
    return _edit("ablate_feature", coder, latents, "scale", 0.0, site, roles, other_model)


def scale_feature(
    coder: Coder | str,
    latents: int | list[int],
    factor: float,
    site: str | None = None,
    roles: str | list[str] | None = None,
    other_model: bool = False,
) -> FeatureEdit:
    """Multiply the strengths of features: 0 removes, 1 changes nothing, 2 doubles.

    Args and errors as of `ablate_feature`.
    """
    return _edit("scale_feature", coder, latents, "scale", factor, site, roles, other_model)


def set_feature(
    coder: Coder | str,
    latents: int | list[int],
    strength: float,
    site: str | None = None,
    roles: str | list[str] | None = None,
    other_model: bool = False,
) -> FeatureEdit:
    """Clamp features to a strength at every position of ``roles``, whether they fire or not.

    Args and errors as of `ablate_feature`.
    """
    return _edit("set_feature", coder, latents, "set", strength, site, roles, other_model)


def steer_feature(
    coder: Coder | str,
    latents: int | list[int],
    amount: float,
    site: str | None = None,
    roles: str | list[str] | None = None,
    other_model: bool = False,
) -> FeatureEdit:
    """Add ``amount`` times the decoder rows of features at every position.

    Args and errors as of `ablate_feature`, but for ``roles``: by default every position, since
    nothing is read there.
    """
    everywhere = roles or EVERYWHERE
    return _edit("steer_feature", coder, latents, "add", amount, site, everywhere, other_model)


def _edit(
    name: str,
    coder: Coder | str,
    latents: int | Sequence[int],
    change: Change,
    amount: float,
    site: str | None,
    roles: str | Sequence[str] | None,
    other_model: bool,
) -> FeatureEdit:
    known = coder if isinstance(coder, Coder) else load_coder(coder)
    chosen = tuple(dict.fromkeys(chosen_latents(known, latents)))
    site = site or known.about.get("site")
    if not site:
        raise ValueError(
            f"`site` of {name} must be given, the coder does not say where it belongs. Write for "
            "example site='language.L2'."
        )
    only = roles_of(known, roles)
    return FeatureEdit(str(site), known, chosen, change, float(amount), name, only, other_model)
