"""Which families' outputs are a sum along the residual stream, and which say why they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from probes.direct.direct_path import direct_contributions
from probes.direct.residual_path import PathError

from .families import FAMILIES
from .measure import subject_of

BY_NAME = {family.name: family for family in FAMILIES}

PATHS = {
    "gptj": {"language": 2},
    "bloom": {"language": 2},
    "mpt": {"language": 2},
    "falcon": {"language": 2},
    "opt": {"language": 2},
    "gemma3_text": {"language": 2},
    "olmo2": {"language": 2},
    "deepseek_v3": {"language": 2},
    "gpt_oss": {"language": 2},
    "qwen3_moe": {"language": 2},
    "bamba": {"language": 1},
    "recurrent_gemma": {"language": 1},
    "roberta": {"language": 2},
    "albert": {"language": 2},
    "modernbert": {"language": 2},
    "bart": {"decoder": 2, "cross": 2},
    "whisper": {"decoder": 2, "cross": 2},
    "deit": {"vision": 2},
    "beit": {"vision": 2},
    "dinov3_vit": {"vision": 2},
    "swin": {"vision": 4},
    "cvt": {"vision": 6},
    "segformer": {"vision": 4},
    # One stack of two kinds of layers is one stream.
    "mllama": {"language": 1, "cross": 1},
    "qwen3_vl": {"language": 2},
    "blip_2": {"language": 2},
}
"""Tower -> number of layers whose heads reach the output along the stream."""

REFUSED = {
    "bert": ("logits", "`gelu` in cls.predictions.transform.transform_act_fn stands between"),
    "bridgetower": ("pooler_output", "`tanh` in cross_modal_image_pooler.activation stands"),
    # Both sides of the product carry a stream.
    "clip": ("logits_per_image", "`matmul` in the model stands between"),
    "pvt": ("last_hidden_state", "The block that vision.L3 stands in must be known"),
    "mamba": ("logits", "No output projection of a head was seen to run"),
}


def metric_of(name: str) -> Callable[[Any], Tensor]:
    def metric(output: Any) -> Tensor:
        values = getattr(output, name)
        values = values.flatten(1)
        return values[:, 0] - values[:, -1] + values[:, values.shape[1] // 2]

    return metric


@pytest.mark.parametrize("name", PATHS)
def test_parts_add_up(name: str) -> None:
    family = BY_NAME[name]
    subject, batch = subject_of(family.build(), family.inputs(), name)
    output = "logits" if hasattr(subject.forward(batch), "logits") else "last_hidden_state"
    found = direct_contributions(subject, batch, metric_of(output))
    assert found.mismatch < 1e-5
    towers = [site.tower for site in found.gradient]
    assert {tower: towers.count(tower) for tower in towers} == PATHS[name]
    assert set(found.gradient) | set(found.missing) == {s.site for s in subject.layout.sites}
    assert all(float(heads.abs().max()) > 1e-6 for heads in found.head_sums.values())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    family = BY_NAME[name]
    output, reason = REFUSED[name]
    subject, batch = subject_of(family.build(), family.inputs(), name)
    with pytest.raises(PathError) as caught:
        direct_contributions(subject, batch, metric_of(output))
    assert reason in str(caught.value)
