from __future__ import annotations

import pytest

from sae.training.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"coder": "relu"}, r"`coder` must be one of .*batch_topk.*topk.*, got 'relu'"),
        ({"latents": 0}, r"`latents` must be a whole number from 1, or a multiple .*, got 0"),
        ({"latents": "16"}, r"`latents` must be .*such as '16x', got '16'"),
        ({"latents": "0x"}, r"`latents` must be .*, got '0x'"),
        ({"latents": 2.0}, r"`latents` must be .*, got 2.0"),
        ({"latents": 31}, r"`latents` must be at least `k`, 32, got 31"),
        ({"k": 0}, r"`k` must be a whole number from 1, got 0"),
        ({"k": True}, r"`k` must be a whole number from 1, got True"),
        ({"tokens": 5e6}, r"`tokens` must be a whole number from 1, got 5000000.0"),
        (
            {"tokens": 4_095},
            r"`tokens` must be at least the 4,096 rows of one step, got 4,095\. Train on more",
        ),
        ({"batch_size": -4_096}, r"`batch_size` must be a whole number from 1, got -4096"),
        ({"buffer_rows": 4_095}, r"`buffer_rows` must be at least `batch_size`, 4,096, got 4,095"),
        ({"log_every": 0}, r"`log_every` must be a whole number from 1, got 0"),
        ({"checkpoint_every": "5"}, r"`checkpoint_every` must be a whole number from 1, got '5'"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be a number above 0, or None, got 0.0"),
        ({"learning_rate": float("nan")}, r"`learning_rate` must be a number above 0.*, got nan"),
        ({"gradient_clip": -1.0}, r"`gradient_clip` must be a number above 0, or None, got -1.0"),
        ({"sparsity": -0.1}, r"`sparsity` must be a number from 0, or None, got -0.1"),
        ({"auxiliary": -1}, r"`auxiliary` must be a number from 0, got -1"),
        ({"auxiliary_k": 0}, r"`auxiliary_k` must be a whole number from 1, or None, got 0"),
        ({"dead_after": 0}, r"`dead_after` must be a whole number from 1, or None, got 0"),
        ({"warm_up": 1.1}, r"`warm_up` must be a share from 0 to 1, got 1.1"),
        ({"decay": -0.1}, r"`decay` must be a share from 0 to 1, got -0.1"),
        ({"sparsity_warm_up": "0.1"}, r"`sparsity_warm_up` must be a share from 0 to 1, got '0.1'"),
        ({"warm_up": 0.75, "decay": 0.5}, r"`warm_up \+ decay` must be at most 1, got 1.25"),
        ({"dead_features": "ghost"}, r"`dead_features` must be one of auxk, resample, none, got"),
        ({"normalise": "layer"}, r"`normalise` must be one of mean_norm, none, got 'layer'"),
        ({"dtype": "float16"}, r"`dtype` must be one of float32, bfloat16, got 'float16'"),
        ({"dtype": None}, r"`dtype` must be one of float32, bfloat16, got None"),
        ({"device": "gpu"}, r"`device` must be a device of torch, such as cpu .*, got 'gpu'"),
        ({"fast": 1}, r"`fast` must be True or False, got 1"),
        ({"seed": -1}, r"`seed` must be a whole number from 0, got -1"),
        ({"options": [1]}, r"`options` must be settings by name .*, got \[1\]"),
        (
            {"options": {"k": 50, "auxiliary_k": 0, "group_shares": [1.0]}},
            r"`options` must be settings of one kind .*, got \['auxiliary_k', 'k'\]\. Give these",
        ),
        ({"options": {"sparsity": -5.0}}, r"`options` must be settings of .*, got \['sparsity'\]"),
        ({"options": {"a": {1}}}, r"`options` must be settings by name .* written as JSON, got"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_it_must_be(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**settings)


def test_kinds_that_are_not_told_how_many_latents_fire_may_have_fewer_than_k():
    assert TrainConfig(coder="standard", latents=7, k=32).latents == 7


def test_latents_are_a_number_or_a_multiple_of_the_width():
    assert TrainConfig(latents="16x").latents_of(24) == 384
    assert TrainConfig(latents="2.5x").latents_of(7) == 17
    assert TrainConfig(latents="2.3x").latents_of(100) == 230
    assert TrainConfig(latents=101).latents_of(7) == 101


def test_a_record_gives_the_same_settings_and_leaves_out_those_of_other_versions():
    config = TrainConfig(coder="matryoshka", latents="4x", options={"group_shares": [0.25, 0.75]})
    assert TrainConfig.of({**config.record(), "from_the_future": 1}) == config


def test_a_latent_counts_as_dead_after_a_tenth_of_the_rows_and_at_most_ten_million():
    assert TrainConfig(tokens=5_000_000).dead_rows == 500_000
    assert TrainConfig(tokens=500_000_000).dead_rows == 10_000_000
    assert TrainConfig(tokens=5_000_000, dead_after=17).dead_rows == 17


def test_steps_are_whole_and_each_process_takes_a_batch():
    config = TrainConfig(tokens=10_001, batch_size=1_000, buffer_rows=1_000)
    assert (config.steps(), config.steps(3)) == (10, 3)
    with pytest.raises(ValueError, match=r"`tokens` must be at least the 11,000 rows of one step"):
        config.steps(11)


def test_the_warm_up_is_a_share_of_the_steps_and_at_most_a_thousand():
    config = TrainConfig(warm_up=0.05)
    assert (config.warm_up_steps(200), config.warm_up_steps(1_000_000)) == (10, 1_000)
