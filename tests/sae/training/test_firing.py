from __future__ import annotations

import torch

from sae.training.firing import Firing


def test_a_latent_is_dead_when_so_many_rows_went_by_since_it_fired():
    firing = Firing(latents=3, dead_after=10)
    assert firing.dead is None
    firing.update(torch.tensor([2, 0, 1]), rows=7)
    assert firing.rows_since.tolist() == [0, 7, 0]
    assert firing.dead is None and firing.dead_count() == 0
    firing.update(torch.tensor([1, 0, 0]), rows=5)
    assert firing.dead is not None
    assert firing.dead.tolist() == [False, True, False]
    firing.update(torch.tensor([0, 0, 0]), rows=5)
    assert firing.dead.tolist() == [False, True, True]
    assert firing.dead_count() == 2
    firing.update(torch.tensor([0, 1, 0]), rows=5)
    assert firing.dead.tolist() == [True, False, True]


def test_latents_that_begin_again_are_not_dead():
    firing = Firing(latents=3, dead_after=4)
    firing.update(torch.zeros(3, dtype=torch.int64), rows=6)
    firing.revive(torch.tensor([False, True, False]))
    assert firing.rows_since.tolist() == [6, 0, 6]


def test_sums_over_processes_count_as_one_batch_of_all_their_rows():
    parts = [torch.tensor([3, 0, 0, 1]), torch.tensor([0, 0, 2, 1])]
    together, alone = Firing(4, 9), Firing(4, 9)
    together.update(parts[0] + parts[1], rows=10)
    alone.update(torch.cat([p[None] for p in parts]).sum(0), rows=10)
    assert together.rows_since.tolist() == alone.rows_since.tolist() == [0, 10, 0, 0]
