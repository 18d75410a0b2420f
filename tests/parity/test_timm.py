"""Vision models of timm and torchvision: what the tap sees equals their unfused code.

They need a torchvision that matches torch: run them in an environment with the extra ``timm`` by
``python -m pytest tests/parity/test_timm.py -m timm``.
"""

from __future__ import annotations

import importlib.util

import pytest

from probes.load_error import LoadError

from .checks import assert_parity, assert_refused
from .measure import measure, subject_of
from .timm_families import ALIASES, FAMILIES, ImageFamily

pytestmark = [
    pytest.mark.timm,
    pytest.mark.skipif(
        importlib.util.find_spec("timm") is None,
        reason="timm is not installed: pip install 'headscope[timm]' with a matching torchvision",
    ),
]
CAPTURED = [pytest.param(f, id=f.name) for f in FAMILIES if f.towers]
REFUSED = [pytest.param(f, id=f.name) for f in FAMILIES if not f.towers]


@pytest.mark.parametrize("family", CAPTURED)
def test_a_tapped_image_model_equals_its_unfused_self(family: ImageFamily) -> None:
    parity = measure(
        family.build(),
        family.build(fused=False),
        family.inputs(),
        family.name,
        family.aside,
        ALIASES,
    )
    assert_parity(parity, family.towers, family.refused, fast_path="fast path" in family.kinds)


@pytest.mark.parametrize("family", REFUSED)
def test_an_image_model_without_token_patterns_is_refused_by_name(family: ImageFamily) -> None:
    subject, _ = subject_of(family.build(), family.inputs(), family.name, ALIASES)
    assert subject.layout.towers == {}
    assert_refused(subject.layout, family.refused)
    with pytest.raises(LoadError, match="has no softmax attention between tokens"):
        _ = subject.towers


def test_at_least_twelve_families_are_captured() -> None:
    timm_only = [family for family in FAMILIES if family.towers and family.package == "timm"]
    assert len({family.name for family in timm_only}) >= 12
