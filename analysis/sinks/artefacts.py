"""Patches of unusual norm in vision transformers: artefacts, beside the registers made for them.

Darcet et al., *Vision Transformers Need Registers* (ICLR 2024, arXiv 2309.16588): some patches of
low-information background get a high norm, hold global information and draw attention. Their
threshold (150 for DINOv2-g) is one model's. Here a patch is an artefact if its norm exceeds
``median + 6 MAD`` of its image's patches, in the last third of the layers.
"""

from __future__ import annotations

from math import erf, sqrt

from torch import Tensor

DEVIATIONS = 6.0
_LAST = 3
"""Artefacts are sought in the last one in so many parts of the layers."""


def in_last_third(depth: int, layers: int) -> bool:
    """Whether the stream at a depth (n: entering block n) belongs to the last third.

    >>> [depth for depth in range(25) if in_last_third(depth, 24)][0]
    16
    """
    return _LAST * depth >= (_LAST - 1) * layers


def artefacts(norms: Tensor, deviations: float = DEVIATIONS) -> Tensor:
    """Bool ``[patch]``: norms of one image's patches that exceed ``median + deviations * MAD``.

    Where more than half of the norms are equal the MAD is 0 and nothing can be told: none is.

    >>> import torch
    >>> artefacts(torch.tensor([1.0, 2.0, 3.0, 4.0, 30.0])).tolist()  # median 3, MAD 1
    [False, False, False, False, True]
    """
    median = norms.quantile(0.5)
    spread = (norms - median).abs().quantile(0.5)
    return (norms > median + deviations * spread) & (spread > 0)


def normal_share(deviations: float = DEVIATIONS) -> float:
    """The null: the share of patches above the threshold if norms were normal.

    >>> round(normal_share(), 7)
    2.59e-05
    """
    return 0.5 * (1 - erf(deviations * 0.6744897501960817 / sqrt(2)))


NORMAL_BIMODALITY = 1 / 3
UNIFORM_BIMODALITY = 5 / 9


def bimodality(norms: Tensor) -> float:
    """Sarle's coefficient ``(skewness^2 + 1) / kurtosis``, 0 to 1; NaN for fewer than 4 or equal.

    1 for two values only, 5/9 for a uniform, 1/3 for a normal distribution. A single long tail
    raises it too.

    >>> import torch
    >>> round(bimodality(torch.tensor([1.0, 1.0, 1.0, 9.0])), 9)
    1.0
    """
    if norms.numel() < 4:
        return float("nan")
    centred = norms.double() - norms.double().mean()
    second, third, fourth = (float((centred**power).mean()) for power in (2, 3, 4))
    if second <= 0:
        return float("nan")
    return (third**2 / second**3 + 1) / (fourth / second**2)
