"""Measures on a small causal pattern worked out by hand, and on random ones by plain loops."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from synthetic_calls import null, random_call, scored, text_tokens, value, whole_call

from analysis.measures import select_measures
from probes.tokens.map import ROLES, blank_tokens

# Tokens: bos A B A. Rows are queries.
BY_HAND = [
    [1.00, 0.00, 0.00, 0.00],
    [0.25, 0.75, 0.00, 0.00],
    [0.50, 0.30, 0.20, 0.00],
    [0.10, 0.60, 0.10, 0.20],
]
IDS = [9, 4, 7, 4]

EXPECTED = {
    ("entropy", ""): 0.670222,
    ("entropy_normalised", ""): 0.844661,
    ("confidence", "all"): 0.7125,
    ("confidence", "no_sink"): (0.75 + 0.30 + 0.60) / 3,
    ("effective_keys", ""): (1 + 1.6 + 1 / 0.38 + 1 / 0.42) / 4,
    ("self_attention", ""): (1 + 0.75 + 0.20 + 0.20) / 4,
    ("previous_token", ""): (0.25 + 0.30 + 0.10) / 4,
    ("previous_token", "exclude_bos"): (0.30 + 0.10) / 2.15,
    ("duplicate_token", ""): 0.60 / 4,
    ("duplicate_token", "exclude_bos"): 0.60 / 2.15,
    ("induction", ""): 0.10 / 4,
    ("induction", "exclude_bos"): 0.10 / 2.15,
    ("attention_distance", ""): (0.25 + 1.3 + 1.6) / 4,
    ("attention_distance_ratio", ""): 3.15 / 3,
    ("role_mass", "bos->bos"): 1.0,
    ("role_mass", "text->bos"): 0.85 / 3,
    ("role_mass", "text->text"): 2.15 / 3,
    ("first_key", ""): 1.85 / 4,
    ("sink_weight", "k=1"): 1.85 / 4,
    ("sink_weight", "any"): 1.65 / 3,
    ("sink_rate", "k=1,eps=0.3"): 1.0,
    ("sink_rate", "any,eps=0.3"): 1.0,
    ("column_norm", ""): sqrt((1 + 0.0625 + 0.25 + 0.01) / 4),
}
NULLS = {
    ("entropy", ""): (log(2) + log(3) + log(4)) / 4,
    ("confidence", "all"): (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
    ("confidence", "no_sink"): (1 / 2 + 1 / 3 + 1 / 4) / 3,
    ("effective_keys", ""): 2.5,
    ("previous_token", ""): (1 / 2 + 1 / 3 + 1 / 4) / 4,
    ("duplicate_token", ""): 1 / 16,
    ("induction", ""): 1 / 16,
    ("attention_distance", ""): 3 / 4,
    ("attention_distance_ratio", ""): 1.0,
    ("role_mass", "text->bos"): (1 / 2 + 1 / 3 + 1 / 4) / 3,
    ("sink_weight", "k=1"): (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
    ("sink_weight", "any"): (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
}


@pytest.fixture(scope="module")
def by_hand():
    tokens = text_tokens([IDS])
    return scored(whole_call(torch.tensor(BY_HAND)[None, None], tokens), tokens)


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_values_by_hand(by_hand, name: tuple[str, str], expected: float) -> None:
    assert value(by_hand, *name) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "expected"), NULLS.items())
def test_nulls_by_hand(by_hand, name: tuple[str, str], expected: float) -> None:
    assert null(by_hand, *name) == pytest.approx(expected, abs=1e-6)


def test_the_sink_curve_by_hand(by_hand) -> None:
    curve = by_hand.curves["language", 0, "sink_weight"]
    assert curve.axis == "key"
    torch.testing.assert_close(
        curve.value[0].float(), torch.tensor([0.4625, 0.55, 0.15, 0.2]), atol=1e-6, rtol=0
    )
    expected = torch.tensor([25 / 48, (1 / 2 + 1 / 3 + 1 / 4) / 3, (1 / 3 + 1 / 4) / 2, 1 / 4])
    torch.testing.assert_close(curve.null.float(), expected, atol=1e-6, rtol=0)


def loops(pattern: list[list[float]], ids: list[int]) -> dict[str, float]:
    """The same measures of one causal head, by plain loops."""
    n = len(pattern)
    found = dict.fromkeys(
        ("entropy", "confidence", "effective_keys", "self_attention", "previous_token",
         "duplicate_token", "induction", "attention_distance"), 0.0,
    )  # fmt: skip
    for q in range(n):
        largest, squares = 0.0, 0.0
        for k in range(n):
            p = pattern[q][k]
            found["entropy"] -= p * log(p) / n if p > 0 else 0.0
            found["attention_distance"] += p * abs(q - k) / n
            largest, squares = max(largest, p), squares + p * p
            if k == q:
                found["self_attention"] += p / n
            if k == q - 1:
                found["previous_token"] += p / n
            if k < q and ids[k] == ids[q]:
                found["duplicate_token"] += p / n
            if 0 < k <= q and ids[k - 1] == ids[q] and k - 1 < q:
                found["induction"] += p / n
        found["confidence"] += largest / n
        found["effective_keys"] += 1 / squares / n
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_values_equal_plain_loops(seed: int) -> None:
    ids = torch.randint(0, 5, (19,), generator=torch.manual_seed(seed)).tolist()
    tokens = text_tokens([ids])
    call = random_call(tokens, seed=seed)
    scores = scored(call, tokens, rows=7)
    pattern = call.pattern().double()
    for head in range(3):
        for name, expected in loops(pattern[0, head].tolist(), ids).items():
            variant = "all" if name == "confidence" else ""
            assert value(scores, name, variant, head) == pytest.approx(expected, abs=1e-6), name


def test_plausible_wrong_formulas_differ() -> None:
    """A draw on which each of these mistakes would show."""
    ids = [2, 0, 1, 2, 0, 0, 1, 3, 2, 0, 1]
    tokens = text_tokens([ids])
    call = random_call(tokens)
    scores = scored(call, tokens)
    p = call.pattern()[0, 0].double()
    n = len(ids)
    index, ids_ = torch.arange(n), torch.tensor(ids)
    away = (index[:, None] - index).abs()
    same = (ids_[:, None] == ids_) & (index[:, None] > index)
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    before = torch.zeros_like(same)
    before[:, :-1] = same[:, 1:]
    row_entropy = torch.special.entr(p).sum(-1)
    wrong = {
        "entropy": {
            "bits": row_entropy.mean() / log(2),
            "of the mean row": torch.special.entr(p.mean(0)).sum(),
        },
        "entropy_normalised": {
            "log of the length": (row_entropy / log(n)).mean(),
            "ratio of means": row_entropy.mean() / (index + 1.0).log().mean(),
            "first query counted": (row_entropy / (index + 1.0).log().clamp_min(1)).mean(),
        },
        "effective_keys": {
            "of the mean": 1 / p.square().sum(-1).mean(),
            "exp of entropy": row_entropy.exp().mean(),
        },
        "duplicate_token": {
            "own token counted": (p * (same | torch.eye(n).bool())).sum() / n,
            "queries with a copy only": (p * same).sum() / same.any(-1).sum(),
        },
        "induction": {
            "no shift": (p * same).sum() / n,
            "shift the other way": (p * before).sum() / n,
            "queries with a copy only": (p * after).sum() / after.any(-1).sum(),
        },
        "previous_token": {"first query left out": p.diagonal(-1).mean()},
        "attention_distance": {
            "squared": (p * away**2).sum() / n,
            "of the largest": (index - p.argmax(-1)).double().mean(),
        },
        "column_norm": {
            "not normalised": p.norm(dim=0).amax(),
            "mean weight": p.mean(0).amax(),
            "over readers": (p.square().sum(0) / (n - index)).sqrt().amax(),
        },
        "overfocus": {
            "cosine of sums": torch.nn.functional.cosine_similarity(
                p.sum(0), torch.nn.functional.normalize(p, dim=1).sum(0), dim=0
            ),
        },
    }
    for name, formulas in wrong.items():
        for what, other in formulas.items():
            assert abs(value(scores, name) - float(other)) > 1e-3, (name, what)


def test_overfocus_column_norm_and_similarity_equal_plain_formulas() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])
    call = random_call(tokens, heads=5, causal=False)
    scores = scored(call, tokens, rows=4)
    p = call.pattern()[0].double()
    cosine = torch.nn.functional.cosine_similarity
    n = p.shape[-1]
    for head in range(5):
        mean = p[head].mean(0, keepdim=True)
        found = value(scores, "overfocus", "", head)
        assert found == pytest.approx(float(cosine(mean, p[head]).mean()), abs=1e-6)
        large, row = mean * (mean > 2 / n), p[head] * (p[head] > 2 / n)
        found = value(scores, "overfocus", "adl", head)
        assert found == pytest.approx(float(cosine(large, row).mean()), abs=1e-6)
        found = value(scores, "column_norm", "", head)
        assert found == pytest.approx(float(p[head].norm(dim=0).amax() / sqrt(n)), abs=1e-6)
        others = [float(cosine(p[head], p[g]).mean()) for g in range(5) if g != head]
        found = value(scores, "head_similarity", "", head)
        assert found == pytest.approx(sum(others) / 4, abs=1e-6)
        uniform = torch.full_like(p[0], 1 / n)
        alike = [float(cosine(uniform, p[g]).mean()) for g in range(5) if g != head]
        assert null(scores, "head_similarity", "", head) == pytest.approx(sum(alike) / 4, abs=1e-6)


def test_similarity_taken_alone_has_the_null_that_it_has_among_others() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]], side="right")
    call = random_call(tokens, heads=5, causal=True)
    alone, among = (
        scored(call, tokens, measures=names)
        for names in (["head_similarity"], ["head_similarity", "entropy"])
    )
    for head in range(5):
        expected = null(among, "head_similarity", "", head)
        assert 0 < expected < 1
        assert null(alone, "head_similarity", "", head) == expected


def test_one_threshold_for_all_would_be_another_overfocus() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens)
    p = call.pattern()[0, 0].double()
    row = p * (p > 2 / 11)
    wrong = torch.nn.functional.cosine_similarity(row.mean(0, keepdim=True), row).mean()
    assert abs(value(scores, "overfocus", "adl") - float(wrong)) > 1e-3


def test_overfocus_with_threshold_needs_queries_that_read_everything() -> None:
    tokens = text_tokens([IDS])
    with pytest.raises(KeyError):
        value(scored(random_call(tokens), tokens), "overfocus", "adl")


def test_sinks_without_a_causal_mask_are_means_over_all_queries() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2]])
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens)
    received = call.pattern()[0].double().mean(-2)
    for head in range(3):
        assert value(scores, "sink_weight", "k=1", head) == pytest.approx(
            float(received[head, 0]), abs=1e-6
        )
        assert value(scores, "sink_weight", "any", head) == pytest.approx(
            float(received[head].amax()), abs=1e-6
        )
        flagged = float(received[head].amax() > 0.3)
        assert value(scores, "sink_rate", "any,eps=0.3", head) == flagged
    assert null(scores, "sink_weight", "k=1") == pytest.approx(1 / 7, abs=1e-6)


def test_the_last_keys_of_a_causal_sequence_are_no_sinks() -> None:
    tokens = text_tokens([[1, 2, 3, 4, 5, 6]])
    causal = random_call(tokens, heads=1)
    causal = replace(causal, query=10 * torch.eye(6)[None, None], key=10 * torch.eye(6)[None, None])
    scores = scored(causal, tokens)
    # Every query reads itself alone: alpha_k is 1 / (T - k + 1), and 1 for the last key.
    assert value(scores, "sink_weight", "any") == pytest.approx(1 / 3, abs=1e-3)
    assert null(scores, "sink_weight", "k=1") == pytest.approx(2.45 / 6, abs=1e-6)


def test_the_null_of_the_sink_weight_is_the_harmonic_number_over_the_length() -> None:
    tokens = text_tokens([list(range(64))])
    scores = scored(random_call(tokens), tokens)
    assert null(scores, "sink_weight", "k=1") == pytest.approx(0.0741, abs=1e-4)


def test_sink_rate_is_a_share_of_sequences() -> None:
    tokens = text_tokens([[1, 2], [1, 2], [1, 2]])
    first = torch.tensor([[[1.0, 0.0], [0.9, 0.1]]])
    other = torch.tensor([[[0.1, 0.9], [0.1, 0.9]]])
    scores = scored(whole_call(torch.stack([first, other, other]), tokens), tokens)
    assert value(scores, "sink_rate", "k=1,eps=0.3") == pytest.approx(1 / 3)
    assert value(scores, "sink_rate", "any,eps=0.3") == 1.0


def test_ids_of_images_and_padding_are_no_repeats() -> None:
    tokens = text_tokens([[9, 4, 7, 4]])
    role = tokens.role.clone()
    role[1] = role[3] = ROLES.index("image")
    tokens = replace(tokens, role=role)
    scores = scored(whole_call(torch.tensor(BY_HAND)[None, None], tokens), tokens)
    assert value(scores, "duplicate_token") == 0
    assert value(scores, "role_mass", "image->image") == pytest.approx((0.75 + 0.8) / 2)


def test_norms_by_hand_and_against_the_residual_stream() -> None:
    tokens = text_tokens([[9, 4, 7]])
    call = random_call(tokens, heads=2)
    call.z = torch.zeros(1, 2, 3, 5)
    call.z[0, 0, :, 0] = torch.tensor([3.0, 0.0, 6.0])
    call.z[0, 0, :, 4] = torch.tensor([4.0, 0.0, 8.0])
    call.z[0, 1, 1, 2] = 2.0
    matrix = torch.randn(2, 5, 11, generator=torch.manual_seed(3))
    scores = scored(call, tokens, matrix=matrix)
    assert value(scores, "z_norm", head=0) == pytest.approx(5.0)
    assert value(scores, "z_norm", head=1) == pytest.approx(2 / 3)
    assert null(scores, "z_norm", head=0) == pytest.approx(2 / 3)
    assert null(scores, "z_norm", head=1) == pytest.approx(5.0)
    for head in range(2):
        written = (call.z[0, head] @ matrix[head]).norm(dim=-1).mean()
        assert value(scores, "contribution_norm", head=head) == pytest.approx(float(written), 1e-5)
        other = (call.z[0, head] @ matrix[1 - head]).norm(dim=-1).mean()
        assert abs(float(other) - float(written)) > 1e-2
    assert "contribution_norm" in scored(call, tokens).reasons["language", "contribution_norm"]


def test_stable_rank_equals_singular_values() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2]])
    call = random_call(tokens, heads=2)
    scores = scored(call, tokens, measures=["stable_rank"], rows=3)
    for head in range(2):
        singular = torch.linalg.svdvals(call.pattern()[0, head].double()).square()
        expected = float(singular.sum() / singular.amax())
        assert value(scores, "stable_rank", head=head) == pytest.approx(expected, abs=1e-6)
        assert abs(expected - float(singular.sum())) > 1e-2
    assert null(scores, "stable_rank") >= 1


def test_a_layer_with_one_head_has_no_other_to_compare_with() -> None:
    tokens = text_tokens([IDS])
    scores = scored(random_call(tokens, heads=1), tokens)
    assert "one head per layer" in scores.reasons["language", "head_similarity"]


def test_measures_of_text_say_why_patches_have_none() -> None:
    tokens = blank_tokens("vision", [4], [0], "image")
    scores = scored(random_call(tokens, causal=False), tokens)
    for name in ("previous_token", "attention_distance", "induction"):
        assert "needs a sequence of text tokens" in scores.reasons["vision", name]
    tokens = text_tokens([IDS])
    scores = scored(random_call(tokens), tokens)
    assert "needs patches on a grid" in scores.reasons["language", "hop_mass"]


def test_every_measure_describes_itself() -> None:
    for measure in select_measures(["all", "stable_rank"]):
        assert measure.unit and (type(measure).__doc__ or "").strip(), measure.name


@pytest.mark.parametrize("measure", ["previous_token", "duplicate_token", "induction"])
def test_rounding_of_a_head_on_the_first_key_is_no_negative_share(measure: str) -> None:
    tokens = text_tokens([[1, 5, 3, 1, 3, 1]])
    pattern = torch.zeros(1, 1, 6, 6)
    pattern[..., 0] = 1 + 1.2e-7
    pattern[0, 0, 2:, 1] = 1e-8
    pattern[0, 0, 2, 1] = 4e-8
    scores = scored(whole_call(pattern, tokens), tokens, measures=[measure])
    assert 0 <= value(scores, measure, "exclude_bos") <= 1
    if measure == "previous_token":
        assert value(scores, measure, "exclude_bos") == pytest.approx(4 / 7, rel=1e-5)


def test_weight_that_a_learned_sink_takes_is_in_no_share() -> None:
    tokens = text_tokens([[1, 5, 3, 8]])
    pattern = torch.tril(torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2)))
    pattern = 0.4 * pattern / pattern.sum(-1, keepdim=True)
    scores = scored(whole_call(pattern, tokens), tokens, measures=["previous_token"])
    p = pattern[0, 0]
    previous = float(p[1, 0] + p[2, 1] + p[3, 2])
    assert value(scores, "previous_token") == pytest.approx(previous / float(p.sum()), abs=1e-6)
    expected = float(p[2, 1] + p[3, 2]) / float(p[:, 1:].sum())
    assert value(scores, "previous_token", "exclude_bos") == pytest.approx(expected, abs=1e-6)
