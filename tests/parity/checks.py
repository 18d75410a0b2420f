"""What a measured model must fulfil, shared by the families of all packages."""

from __future__ import annotations

from collections.abc import Mapping

from probes.layout import Layout

from .family import Heads, Seen
from .measure import Parity, has_part

TOLERANCE = 1e-5
FAST_PATH_TOLERANCE = 1e-6


def assert_parity(
    parity: Parity,
    towers: Mapping[str, Seen],
    refused: Mapping[str, str],
    *,
    fast_path: bool = False,
    padded: bool = False,
) -> None:
    """Towers as expected, every eager map equalled, pattern @ value = z, outputs unchanged.

    Args:
        fast_path: PyTorch's transformer fast path is turned off by the tap: outputs to 1e-6.
        padded: there are query rows that may read nothing.
    """
    seen = {
        name: (tuple(tower.heads_by_layer.values()), _each(tower.kv_heads, len(tower.sites)))
        for name, tower in parity.layout.towers.items()
    }
    expected = {
        name: (_each(tower.heads, tower.layers), _each(tower.kv_heads or tower.heads, tower.layers))
        for name, tower in towers.items()
    }
    assert seen == expected, (seen, expected)
    assert_refused(parity.layout, refused)
    assert not parity.unmatched, parity.unmatched
    assert parity.maps >= len(parity.layout.sites)
    assert parity.pattern_error <= TOLERANCE, parity
    assert parity.product_error <= TOLERANCE, parity
    assert parity.z_error <= TOLERANCE, parity
    assert parity.projection_error <= TOLERANCE, parity
    allowed = FAST_PATH_TOLERANCE if fast_path else 0.0
    assert parity.output_error <= allowed, parity
    assert parity.empty_rows == 0 or padded


def assert_refused(layout: Layout, refused: Mapping[str, str]) -> None:
    """Each named module is among the refusals, with the word in its reason."""
    for part, word in refused.items():
        if part:
            reasons = [r.reason for r in layout.refusals if has_part(r.path, part)]
            assert any(word in reason for reason in reasons), layout.refusals


def _each(heads: Heads, layers: int) -> tuple[int, ...]:
    return heads if isinstance(heads, tuple) else (heads,) * layers
