"""What the features of one head are: ``hs.read_head``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import CHUNK_EXAMPLES
from headscope.coding.read_rows import logit_words, opened_rows
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.coders.coder import Coder

FEATURES = 10


@dataclass(frozen=True)
class HeadReading:
    """The features of one head.

    Attributes:
        features: latent, its decoder share of this head, at how many rows it fires, and the words
            that it speaks for; largest share first. Those that never fire are left out.
        roles: effective number of different roles among them, by what they write at this head.
        null: the same of as many random features: mean, low and high (95 %).
        no_roles: why those are not known.
    """

    head: str
    rows: int
    features: tuple[tuple[int, float, int, tuple[str, ...]], ...]
    roles: float
    null: tuple[float, float, float]
    no_words: str = ""
    no_roles: str = ""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        named = [
            {"latent": latent, "decoder_share": share, "firings": firings, "words": list(words)}
            for latent, share, firings, words in self.features
        ]
        return {
            "head": self.head,
            "rows": self.rows,
            "features": named,
            "roles": self.roles,
            "null": dict(zip(("mean", "low", "high"), self.null, strict=True)),
            "no_words": self.no_words,
            "no_roles": self.no_roles,
        }


def read_head(
    coder: Coder | str | Path,
    head: str,
    subject: Subject,
    data: str | Path | None = None,
    *,
    site: str = "",
    features: int = FEATURES,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    context: int | None = None,
    other_model: bool = False,
) -> HeadReading:
    """The features with the largest share of a head, and how many different roles they are.

    Args:
        head: such as ``language.L2H3``.

    Args and errors otherwise as of `read_feature`.
    """
    from probes.heads import Head
    from sae.reading.head_shares import decoder_shares, firing_shares, top_features
    from sae.reading.polysemanticity import polysemanticity, slice_similarity

    try:
        wanted = Head.parse(head)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error
    coder, rows = opened_rows(
        coder,
        subject,
        data,
        site or str(wanted.site),
        limit,
        batch_size,
        context,
        other_model,
    )
    ((name, heads),) = rows.heads.items()
    own = coder.about.get("site") or name
    if name != str(wanted.site) or own != name or wanted.head >= heads:
        raise AskedWrongly(
            f"The head must be one of {own}H0 to {own}H{heads - 1}, which the coder reads, got "
            f"{head}. Choose one of them."
        )
    firings = firing_shares(rows, coder, name)
    shares, alive = decoder_shares(coder, heads), firings.firings > 0
    top = top_features(shares, features, alive)
    mine = top[wanted.head].tolist()
    words, _, why = logit_words(subject, coder, name, mine)
    roles, null, no_roles = math.nan, (math.nan, math.nan, math.nan), ""
    try:
        told = polysemanticity(top, slice_similarity(coder, heads), alive.nonzero()[:, 0])
        at = wanted.head
        roles = float(told.roles[at])
        null = (float(told.null_mean[at]), float(told.null_low[at]), float(told.null_high[at]))
    except ValueError as error:
        no_roles = str(error)
    return HeadReading(
        head,
        firings.rows,
        tuple(
            (
                latent,
                float(shares[latent, wanted.head]),
                int(firings.firings[latent]),
                tuple(word for word, _ in words.get(latent, ())),
            )
            for latent in mine
        ),
        roles,
        null,
        why,
        no_roles,
    )
