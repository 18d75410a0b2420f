from __future__ import annotations

import pytest

from sae.training.config import TrainConfig
from sae.training.schedule import Schedule


def test_the_rate_rises_stays_and_falls_and_is_never_zero():
    schedule = Schedule(steps=10, warm_up=4, decay=5, sparsity_warm_up=0)
    rates = [schedule.learning_rate(step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_without_warm_up_and_decay_every_step_has_the_peak():
    schedule = Schedule(steps=3, warm_up=0, decay=0, sparsity_warm_up=0)
    assert [schedule.learning_rate(step) for step in range(3)] == [1, 1, 1]
    assert [schedule.warmth(step) for step in range(3)] == [1, 1, 1]


def test_the_rate_rises_again_after_each_resampling():
    schedule = Schedule(steps=25, warm_up=2, decay=5, sparsity_warm_up=0, resamples=True)
    assert schedule.resampling_steps == (4, 8, 12, 16)
    rates = [schedule.learning_rate(step) for step in range(25)]
    again = [0.5, 1, 1, 1]
    assert rates == pytest.approx([*again * 5, 1, 0.8, 0.6, 0.4, 0.2])


def test_a_schedule_without_resampling_names_no_steps_for_it():
    assert Schedule(25, 2, 5, 0).resampling_steps == ()


def test_sparsity_rises_from_nothing():
    schedule = Schedule(steps=10, warm_up=0, decay=0, sparsity_warm_up=4)
    assert [schedule.warmth(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [schedule.progress(step) for step in (0, 5)] == [0, 0.5]


def test_a_schedule_takes_shares_of_the_steps_from_the_settings():
    config = TrainConfig(warm_up=0.1, decay=0.25, sparsity_warm_up=0.5)
    assert Schedule.of(config, 40, resamples=True) == Schedule(40, 4, 10, 20, True)
