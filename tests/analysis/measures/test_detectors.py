"""Detectors against TransformerLens' `detect_head`, on the eager patterns of `repeat-lm`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

NAMES = {
    "previous_token": "previous_token_head",
    "duplicate_token": "duplicate_token_head",
    "induction": "induction_head",
}


@pytest.fixture(scope="module")
def repeats():
    """Ids with repeats, the heads' eager patterns, and the head table of the same ids."""
    from transformers import AutoModelForCausalLM

    import headscope as hs
    from probes.bundled import bundled_models

    subject = hs.load("repeat-lm")
    draw = torch.Generator().manual_seed(0)
    half = torch.randint(5, 60, (1, 17), generator=draw)
    ids = torch.cat([torch.tensor([[subject.model.config.bos_token_id or 0]]), half, half], dim=1)
    model = AutoModelForCausalLM.from_pretrained(
        bundled_models()["repeat-lm"].path, attn_implementation="eager"
    )
    with torch.no_grad():
        patterns = model.eval()(ids, output_attentions=True).attentions
    heads = hs.score(subject, subject.prepare(input_ids=ids), list(NAMES))
    return ids, patterns, heads


def detected(ids: Tensor, patterns: tuple[Tensor, ...], name: str, exclude_bos: bool) -> Tensor:
    from transformer_lens.head_detector import detect_head

    cache = {("pattern", layer, "attn"): p[0].clone() for layer, p in enumerate(patterns)}
    config = SimpleNamespace(
        n_layers=len(patterns), n_heads=patterns[0].shape[1], n_ctx=ids.shape[1] + 1,
        device="cpu", dtype=torch.float32,
    )  # fmt: skip
    model = SimpleNamespace(cfg=config, to_tokens=lambda _: ids)
    return detect_head(model, "", name, cache=cache, exclude_bos=exclude_bos)


@pytest.mark.parametrize("exclude_bos", [False, True])
@pytest.mark.parametrize("measure", list(NAMES))
def test_values_equal_detect_head(repeats, measure: str, exclude_bos: bool) -> None:
    ids, patterns, heads = repeats
    expected = detected(ids, patterns, NAMES[measure], exclude_bos)
    found = heads.grid(measure, variant="exclude_bos" if exclude_bos else "")
    torch.testing.assert_close(torch.tensor(found).float(), expected, atol=1e-5, rtol=0)
    assert float(expected.max()) > 0.03
