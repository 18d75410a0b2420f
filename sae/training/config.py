"""How a coder is trained."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch

DeadFeatures = Literal["auxk", "resample", "none"]
Normalise = Literal["mean_norm", "none"]
Precision = Literal["float32", "bfloat16"]

_MULTIPLE = re.compile(r"\d+(\.\d+)?x")
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
    """Rows per site that are shuffled together; what memory grows with."""
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
        self._check_coder()
        self._check_amounts()
        self._check_shares()
        for name in ("dead_features", "normalise", "dtype"):
            self._check_choice(name)
        _must(isinstance(self.fast, bool), "fast", "True or False", self.fast, "Choose one.")
        _must(
            isinstance(self.seed, int) and not isinstance(self.seed, bool) and self.seed >= 0,
            "seed",
            "a whole number from 0",
            self.seed,
            "Take 0.",
        )
        self._check_device()
        self._check_options()

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
        _must(
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

    def _check_coder(self) -> None:
        from sae.coders.registry import coder_of

        kind = coder_of(self.coder)
        whole = _is_whole(self.latents, 1)
        multiple = (
            isinstance(self.latents, str)
            and _MULTIPLE.fullmatch(self.latents) is not None
            and float(self.latents[:-1]) > 0
        )
        _must(
            whole or multiple,
            "latents",
            "a whole number from 1, or a multiple of the width such as '16x'",
            self.latents,
            "Try '16x'.",
        )
        if isinstance(self.latents, int) and _is_whole(self.k, 1) and kind.needs_k:
            _must(
                self.latents >= self.k,
                "latents",
                f"at least `k`, {self.k}",
                self.latents,
                "Ask for more features, or for fewer active ones.",
            )

    def _check_amounts(self) -> None:
        for name in ("k", "tokens", "batch_size", "buffer_rows", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            _must(_is_whole(value, 1), name, "a whole number from 1", value, "Give such a number.")
        for name in ("dead_after", "auxiliary_k"):
            value = getattr(self, name)
            wanted = "a whole number from 1, or None"
            _must(value is None or _is_whole(value, 1), name, wanted, value, "Leave it out.")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            good = value is None or (_is_number(value) and value > 0)
            _must(good, name, "a number above 0, or None", value, "Leave it out.")
        good = self.sparsity is None or (_is_number(self.sparsity) and self.sparsity >= 0)
        _must(good, "sparsity", "a number from 0, or None", self.sparsity, "Leave it out.")
        good = _is_number(self.auxiliary) and self.auxiliary >= 0
        _must(good, "auxiliary", "a number from 0", self.auxiliary, "Try 1/32.")
        self.steps()
        _must(
            self.buffer_rows >= self.batch_size,
            "buffer_rows",
            f"at least `batch_size`, {self.batch_size:,}",
            self.buffer_rows,
            "Raise it, or lower `batch_size`.",
        )

    def _check_shares(self) -> None:
        for name in ("warm_up", "decay", "sparsity_warm_up"):
            value = getattr(self, name)
            good = _is_number(value) and 0 <= value <= 1
            _must(good, name, "a share from 0 to 1", value, "Try 0.1.")
        _must(
            self.warm_up + self.decay <= 1,
            "warm_up + decay",
            "at most 1",
            self.warm_up + self.decay,
            "Shorten one of them.",
        )

    def _check_choice(self, name: str) -> None:
        choices = get_args(
            {"dead_features": DeadFeatures, "normalise": Normalise}.get(name, Precision)
        )
        value = getattr(self, name)
        good = value in choices or (value is None and name == "dead_features")
        _must(good, name, f"one of {', '.join(choices)}", value, "Choose one of these.")

    def _check_device(self) -> None:
        if self.device is None:
            return
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"`device` must be a device of torch, such as cpu or cuda:0, got {self.device!r}. "
                "Leave it out to train where the rows are."
            ) from error

    def _check_options(self) -> None:
        wanted = "settings by name that can be written as JSON"
        good = isinstance(self.options, dict) and all(isinstance(n, str) for n in self.options)
        _must(good, "options", wanted, self.options, "Give a dictionary.")
        # Here they would go past all that is checked of them above.
        twice = sorted(self.options.keys() & {f.name for f in fields(self)})
        _must(
            not twice,
            "options",
            "settings of one kind of coder only",
            twice,
            "Give these as settings of their own.",
        )
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`options` must be {wanted}, got {self.options!r}. Use numbers, text and lists."
            ) from error


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _must(good: bool, name: str, wanted: str, value: Any, advice: str) -> None:
    if not good:
        shown = f"{value:,}" if isinstance(value, int) and value > 999 else repr(value)
        raise ValueError(f"`{name}` must be {wanted}, got {shown}. {advice}")
