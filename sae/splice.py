"""Put what a coder reconstructs in the place of head outputs, in the running model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from sae.activations.token_rows import check_roles
from sae.coders.coder import Coder
from sae.exchange.formats import load_coder
from sae.same_model import refuse_other_model

if TYPE_CHECKING:
    from probes.subject import Subject

EVERYWHERE = "all"
"""As `roles`: every position, padding too."""
_BLOCK = 1 << 24

Roles = tuple[str, ...] | None


@dataclass(frozen=True)
class ReplacedRows:
    """``z`` of a whole site, all heads side by side, replaced row by row.

    Attributes:
        heads: the site; all of its heads, since a row spans them.
        label: how reports and errors name it.
        width: of a row.
        new: rows ``[row width]`` in the model's dtype to what takes their place.
        roles: only positions with one of these roles; None: all.
        positions: only these flat positions of the batch's token map of the tower; None: all.
        of: the coder that makes the rows, if it may be used on its own model alone.
    """

    heads: str
    label: str
    width: int
    new: Callable[[Float[Tensor, "row width"]], Float[Tensor, "row width"]]
    roles: Roles = None
    positions: frozenset[int] | None = None
    of: Coder | None = None
    stage: Literal["z"] = "z"

    def on(self, subject: Subject) -> Prepared:
        """Itself, if the subject is the coder's own model; asked once when it is attached.

        Raises:
            ValueError: it is another model, or it has other weights.
        """
        if self.of is not None:
            refuse_other_model(self.of, subject)
        return Prepared(edits=(self,))

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        if values.shape[2] * values.shape[3] != self.width:
            raise ValueError(
                f"{self.label} must get all heads of {place.site} side by side, {self.width} "
                f"wide, got {values.shape[2]} x {values.shape[3]}. Choose the site that the coder "
                "was trained on."
            )
        rows = values.flatten(2)
        chosen = self._chosen(place, rows)
        if chosen is None:
            # To z's device too: a coder may lie on another than the layer.
            return self.new(rows.flatten(0, 1)).to(values).reshape(values.shape)
        if not bool(chosen.any()):
            return values
        result = rows.clone()
        result[chosen] = self.new(rows[chosen]).to(rows)
        return result.reshape(values.shape)

    def _chosen(self, place: EditPlace, rows: Tensor) -> Bool[Tensor, "batch query"] | None:
        chosen = None
        if self.roles is not None:
            chosen = place.queries_with(*self.roles).to(rows.device)
        if self.positions is not None:
            wanted = torch.tensor(sorted(self.positions), dtype=torch.long)
            here = torch.isin(_in_prompt(place), wanted).to(rows.device)
            chosen = here if chosen is None else chosen & here
        return chosen


def splice(
    coder: Coder | str,
    site: str | None = None,
    roles: str | list[str] | None = None,
    positions: int | list[int] | None = None,
    error: bool = False,
    other_model: bool = False,
) -> ReplacedRows:
    """Replace z of a site by its reconstruction, while generating too.

    What the model loses by it is what the coder leaves out (`sae.judging.loss_recovered`).

    Args:
        coder: or a folder that holds one, of ours or another tool's (`sae.exchange.formats`).
        site: such as ``language.L2``; by default the one that the coder says it belongs to.
        roles: only at positions with one of these roles, such as ``["text", "generated"]``.
            By default those that the coder was trained on, where it was not trained on all;
            ``all``: everywhere.
        positions: only at these flat positions of the batch's token map of the tower, which has no
            generated ones.
        error: add what the coder does not reconstruct, without its gradient: z stays what it is,
            and gradients reach it through the coder alone.
        other_model: use it on a model that the coder was not trained on, too; else that is refused
            where the edit is attached. A coder that does not know its model is taken by any.

    Raises:
        ValueError: the coder does not say its site, or there is no such role.
    """
    known = coder if isinstance(coder, Coder) else load_coder(coder)
    where = site or known.about.get("site")
    if not where:
        raise ValueError(
            "`site` of splice must be given, the coder does not say where it belongs. Write for "
            "example site='language.L2'."
        )
    only = {positions} if isinstance(positions, int) else positions
    label = f"splice({known.architecture}, {known.latents} latents{', + error' * error})"
    return ReplacedRows(
        str(where),
        label,
        known.width,
        Reconstruction(known, error),
        roles_of(known, roles),
        None if only is None else frozenset(int(position) for position in only),
        None if other_model else known,
    )


def _in_prompt(place: EditPlace) -> Int[Tensor, "batch query"]:
    """Flat position of each query in the batch's own token map, -1 for generated ones.

    While generating, rows of the running map are longer, so that positions in it are others.
    """
    index, tower = place.query_index.cpu(), place.site.tower
    running, own = place.tokens[tower], place.batch.tokens[tower]
    row = torch.searchsorted(running.starts, index, right=True) - 1
    within = index - running.starts[row]
    known = (index >= 0) & (within < own.lengths[row])
    return torch.where(known, own.starts[row] + within, -1)


@dataclass(frozen=True)
class Reconstruction:
    """Rows to their reconstructions, in blocks whose strengths fit into memory."""

    coder: Coder
    error: bool = False

    def __call__(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        weights = self.coder.decoder
        blocks = rows.split(max(1, _BLOCK // self.coder.latents))
        return torch.cat([self._of(block.to(weights.device, weights.dtype)) for block in blocks])

    def _of(self, x: Tensor) -> Tensor:
        made = self.coder(x)
        return made + (x - made).detach() if self.error else made


def constant_rows(
    site: str, row: Float[Tensor, " width"], label: str, roles: Roles = None
) -> ReplacedRows:
    """One row in the place of all: zero or mean ablation of a site, at the same positions."""

    def new(rows: Tensor) -> Tensor:
        return row.to(rows).expand_as(rows)

    return ReplacedRows(site, label, row.numel(), new, roles)


def roles_of(coder: Coder, roles: str | Iterable[str] | None = None) -> Roles:
    """At which roles a coder stands in: as given, else those it was trained on; None for all.

    Raises:
        ValueError: a name that is no role.
    """
    if roles == EVERYWHERE:
        return None
    if roles is None:
        provenance = coder.about.get("provenance") or {}
        roles = provenance.get("roles")
    return check_roles(roles if roles is None or isinstance(roles, str) else tuple(roles))
