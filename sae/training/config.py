"""How a coder is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sae.training.config_checks import (
    DeadFeatures,
    Normalise,
    Precision,
    must,
    refuse_settings,
)

_MOST_DEAD_ROWS = 10_000_000
_LONGEST_WARM_UP = 1_000


@dataclass(frozen=True)
class TrainConfig:
    """How a coder is trained. Lengths that are None follow from the others, as said at each."""

    coder: str = "topk"
    """Kind of coder: standard, gated, topk, batch_topk, jump_relu or matryoshka."""
    latents: int | str = "16x"
    """Number of features, or how many times the width, such as ``16x``."""
    k: int = 32
    """Active features per row (TopK, BatchTopK, Matryoshka); target of JumpReLU."""
    tokens: int = 5_000_000
    """Rows each site is trained on; data are gone through again until there were so many."""
    batch_size: int = 4_096
    """Rows per step, of each process where several train together."""
    learning_rate: float | None = None
    """Peak. None: what the source of this kind of coder says (`sae.coders.registry`)."""
    sparsity: float | None = None
    """Weight of the sparsity loss of standard, gated and jump_relu. None: of the source."""
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises linearly, at most 1,000 steps."""
    decay: float = 0.2
    """Share of the steps at the end over which it falls linearly to 0."""
    sparsity_warm_up: float = 0.1
    """Share of the steps over which the sparsity loss rises linearly."""
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient of all parameters of one coder; None: not clipped."""
    dead_features: DeadFeatures | None = None
    """What is done for dead features. None: auxk where the kind knows it, else resample."""
    dead_after: int | None = None
    """Rows without firing after which a feature counts as dead. None: a tenth of `tokens`, at
    most 10 million (OpenAI's and dictionary_learning's figure)."""
    auxiliary: float = 1 / 32
    """Weight of AuxK, of the error normalised by its variance."""
    auxiliary_k: int | None = None
    """Dead features that explain the error together, at most an eighth of them. None: half of the
    width."""
    normalise: Normalise = "mean_norm"
    """Divide rows by one number, so that their mean norm is the root of the width; folded back
    into the coder at the end, so that it reads and writes what the model computes."""
    buffer_rows: int = 131_072
    """Rows per site that are shuffled together; what memory grows with. A training of fewer
    ``tokens`` reads and shuffles no more than it needs."""
    dtype: Precision = "float32"
    """What matrix products are done in (autocast); parameters stay float32."""
    device: str | None = None
    """Where the coders are trained. None: where the rows are."""
    fast: bool = True
    """Use the sparse path of TopK and BatchTopK where there is one; False: the dense reference."""
    seed: int = 0
    """Of initial weights, shuffling and resampling."""
    log_every: int = 10
    """Steps between two lines of `metrics.jsonl`."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of one kind of coder only, such as ``{"group_shares": [...]}`` of matryoshka."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            ValueError: naming the setting, what it must be and what it is.
        """
        refuse_settings(self)

    def latents_of(self, width: int) -> int:
        """Number of features at a site of this width."""
        if isinstance(self.latents, str):
            # 2.3 x 100 is a little less than 230 in binary.
            return math.floor(float(self.latents.removesuffix("x")) * width + 1e-6)
        return self.latents

    @property
    def dead_rows(self) -> int:
        """Rows without firing after which a feature counts as dead."""
        if self.dead_after is not None:
            return self.dead_after
        return min(max(self.tokens // 10, 1), _MOST_DEAD_ROWS)

    def steps(self, processes: int = 1) -> int:
        """Optimiser steps of each site when so many processes train together.

        Raises:
            ValueError: fewer rows than one batch.
        """
        rows = self.batch_size * processes
        must(
            self.tokens >= rows,
            "tokens",
            f"at least the {rows:,} rows of one step",
            self.tokens,
            "Train on more, or lower `batch_size`.",
        )
        return self.tokens // rows

    def warm_up_steps(self, steps: int) -> int:
        """Steps over which the learning rate rises, of so many in all."""
        return min(round(self.warm_up * steps), _LONGEST_WARM_UP)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> TrainConfig:
        """From `record`; settings of other versions are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})
