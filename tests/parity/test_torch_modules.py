"""PyTorch's own modules: what the tap sees equals the textbook formula on the same weights."""

from __future__ import annotations

import pytest

from probes.load_error import LoadError

from .checks import assert_parity, assert_refused
from .measure import measure, subject_of
from .torch_modules import FAMILIES, ModuleFamily

CAPTURED = [pytest.param(f, id=f.name) for f in FAMILIES if f.towers]
REFUSED = [pytest.param(f, id=f.name) for f in FAMILIES if not f.towers]


@pytest.mark.parametrize("family", CAPTURED)
def test_a_tapped_module_equals_the_textbook(family: ModuleFamily) -> None:
    parity = measure(family.build(), family.build(), family.inputs(), family.name, family.aside)
    assert_parity(parity, family.towers, family.refused, fast_path="fast path" in family.kinds)


@pytest.mark.parametrize("family", REFUSED)
def test_a_module_without_token_patterns_is_refused_by_name(family: ModuleFamily) -> None:
    subject, _ = subject_of(family.build(), family.inputs(), family.name)
    assert subject.layout.towers == {}
    assert_refused(subject.layout, family.refused)
    with pytest.raises(LoadError, match="has no softmax attention between tokens"):
        _ = subject.towers
