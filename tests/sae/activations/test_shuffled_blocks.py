"""Batches of shuffled rows: every row once a pass, bounded memory, taken up anywhere."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from sae.activations.rank_share import RankShare
from sae.activations.row_buffer import RowBuffer
from sae.activations.shuffled_blocks import BlockState, ShuffledBlocks
from sae.activations.tensor_rows import TensorActivations


def numbered(count: int, width: int, first: int = 0) -> torch.Tensor:
    """Rows whose first column tells them apart."""
    rows = torch.zeros(count, width)
    rows[:, 0] = torch.arange(first, first + count)
    return rows


class Ragged:
    """Chunks of uneven sizes, of sites with different numbers of rows, one often without any."""

    sizes = ((7, 0), (5, 2), (0, 9), (11, 0), (2, 0), (6, 3), (4, 1))

    def __init__(self) -> None:
        self.heads = {"language.L1": 1, "vision.L0": 1}
        self.widths = {"language.L1": 3, "vision.L0": 2}
        self.about: dict = {}
        self.made: list[tuple[int, int]] = []

    def chunks(self, epoch: int, start: int = 0):
        language, vision = 0, 0
        for number, (many, few) in enumerate(self.sizes):
            if number >= start:
                self.made.append((epoch, number))
                yield {
                    "language.L1": numbered(many, 3, 1000 * epoch + language),
                    "vision.L0": numbered(few, 2, 1000 * epoch + vision),
                }
            language, vision = language + many, vision + few


def steps(blocks: ShuffledBlocks, count: int) -> list[tuple[str, list[float]]]:
    return [(site, x[:, 0].tolist()) for site, x in islice(iter(blocks), count)]


@pytest.mark.parametrize("rows", [3, 8, 13, 100])
def test_every_row_is_given_once_a_pass_up_to_a_rest(rows: int) -> None:
    found = steps(ShuffledBlocks(Ragged(), rows, 3, seed=1), 32)
    for site, total in (("language.L1", 35), ("vision.L0", 15)):
        given = [row for name, batch in found if name == site for row in batch]
        assert all(len(batch) == 3 for _, batch in found)
        passes = [sorted(row - 1000 * e for row in given if row // 1000 == e) for e in (0, 1)]
        assert passes[0][0] == 0 and len(passes[0]) == total == len(set(passes[0]))
        # Rests of a pass are given in the next one.
        assert passes[0] == [float(row) for row in range(total)]
        assert len(passes[1]) == len(set(passes[1])) > total / 2


def test_rows_are_shuffled_within_a_block_and_blocks_hold_no_more_than_they_may() -> None:
    blocks = ShuffledBlocks(TensorActivations(numbered(60, 2), chunk_rows=4, seed=None), 20, 5)
    found = steps(blocks, 12)
    for block in range(3):
        mine = [row for _, batch in found[4 * block : 4 * block + 4] for row in batch]
        assert sorted(mine) == list(range(20 * block, 20 * block + 20)) and mine != sorted(mine)
    assert steps(ShuffledBlocks(blocks.source, 20, 5), 12) == found
    assert steps(ShuffledBlocks(blocks.source, 20, 5, seed=1), 12) != found


def test_memory_holds_rows_and_one_chunk_whatever_the_data() -> None:
    for many in (300, 3000):
        source = TensorActivations(
            {"a": numbered(many, 2), "b": numbered(many // 7, 3)}, chunk_rows=13
        )
        blocks = ShuffledBlocks(source, 50, 4)
        most = dict.fromkeys(source.widths, 0)
        for _ in islice(iter(blocks), many // 2):
            for site, buffer in blocks._buffers.items():
                most[site] = max(most[site], buffer.capacity)
        assert 50 <= most["a"] <= 50 + 13 and most["b"] < 20


def test_sites_take_turns_by_how_many_batches_they_have() -> None:
    source = TensorActivations({"a": numbered(40, 2), "b": numbered(20, 3)}, chunk_rows=40)
    order = "".join(site for site, _ in steps(ShuffledBlocks(source, 40, 5), 12))
    assert order == "abaabaabaaba"


@pytest.mark.parametrize("rows", [3, 8, 13, 100])
def test_taken_up_at_every_stop_it_gives_the_same(rows: int) -> None:
    """Two passes and a half, several sites, stops within and between blocks."""
    length = 40
    whole = steps(ShuffledBlocks(Ragged(), rows, 3, seed=7), length)
    running = ShuffledBlocks(Ragged(), rows, 3, seed=7)
    stream = iter(running)
    epochs = set()
    for stop in range(length - 1):
        if stop:
            next(stream)
        state = running.state()
        assert all(rest.shape[0] < 3 for rest in state.carry.values())
        record = json.loads(json.dumps(state.record()))
        later = ShuffledBlocks(Ragged(), rows, 3, seed=7)
        later.resume(BlockState.of(record, state.carry))
        assert steps(later, length - stop) == whole[stop:], stop
        assert sum(state.batches.values()) == stop
        epochs.add(state.epoch)
    assert epochs >= {0, 1}


@pytest.mark.parametrize("wanted", [3, 6, 15, 21])
def test_no_more_is_read_than_is_wanted_of_each_site(wanted: int) -> None:
    """Chunks are read until both sites have it, and no further."""
    enough = 0
    for enough in range(1, len(Ragged.sizes) + 1):
        sums = [sum(rows) for rows in zip(*Ragged.sizes[:enough], strict=True)]
        if min(sums) >= wanted:
            break
    # A pass has 15 rows of the second site; the other 6 are in the first three chunks of the next.
    passes = (enough,) if wanted <= 15 else (len(Ragged.sizes), 3)
    source = Ragged()
    blocks = ShuffledBlocks(source, 100, 3, seed=7, wanted=wanted)
    found, counts = [], dict.fromkeys(source.widths, 0)
    for site, x in blocks:
        found.append((site, x[:, 0].tolist()))
        counts[site] += 1
        if min(counts.values()) == wanted // 3:
            break
    made = [(epoch, n) for epoch, count in enumerate(passes) for n in range(count)]
    assert source.made == made
    for site in counts:
        given = [row for name, batch in found if name == site for row in batch]
        assert len(given) == len(set(given)) >= wanted


@pytest.mark.parametrize("wanted", [3, 9, 15, 21])
@pytest.mark.parametrize("rows", [8, 13, 100])
def test_taken_up_at_every_stop_with_what_is_wanted_it_gives_the_same(
    rows: int, wanted: int
) -> None:
    """Also past what was wanted, where blocks of that size follow."""
    length = 40
    whole = steps(ShuffledBlocks(Ragged(), rows, 3, seed=7, wanted=wanted), length)
    running = ShuffledBlocks(Ragged(), rows, 3, seed=7, wanted=wanted)
    stream = iter(running)
    for stop in range(length - 1):
        if stop:
            next(stream)
        state = running.state()
        record = json.loads(json.dumps(state.record()))
        later = ShuffledBlocks(Ragged(), rows, 3, seed=7, wanted=wanted)
        later.resume(BlockState.of(record, state.carry))
        assert steps(later, length - stop) == whole[stop:], stop


def test_a_block_or_more_that_is_wanted_changes_nothing() -> None:
    whole = steps(ShuffledBlocks(Ragged(), 13, 3), 40)
    for wanted in (13, 14, 1_000):
        blocks = ShuffledBlocks(Ragged(), 13, 3, wanted=wanted)
        assert steps(blocks, 40) == whole and "wanted" not in blocks.state().settings
    assert steps(ShuffledBlocks(Ragged(), 13, 3, wanted=12), 40) != whole


def test_taking_up_reads_no_more_than_the_block_again() -> None:
    running = ShuffledBlocks(Ragged(), 13, 3)
    list(islice(iter(running), 12))
    state = running.state()
    assert state.chunk == 4 and state.block == 1
    source = Ragged()
    later = ShuffledBlocks(source, 13, 3)
    later.resume(state)
    next(iter(later))
    assert source.made[0] == (state.epoch, state.chunk)


class Elsewhere(Ragged):
    """The same rows on a device that is not the CPU (of their values nothing is known there)."""

    def chunks(self, epoch: int, start: int = 0):
        for chunk in super().chunks(epoch, start):
            yield {site: rows.to("meta") for site, rows in chunk.items()}


@pytest.mark.parametrize("rows", [3, 13, 100])
def test_taken_up_its_batches_stay_on_the_device_of_the_rows(rows: int) -> None:
    """A training without a device goes on where it was, also after the end of a pass."""
    running = ShuffledBlocks(Ragged(), rows, 3)
    stream, carried = iter(running), 0
    for _ in range(30):
        next(stream)
        state = running.state()
        carried += len(state.carry)
        later = ShuffledBlocks(Elsewhere(), rows, 3)
        later.resume(state)
        assert {x.device.type for _, x in islice(iter(later), 9)} == {"meta"}
    assert carried


def test_an_iterator_that_is_dropped_leaves_the_place_behind() -> None:
    whole = steps(ShuffledBlocks(Ragged(), 8, 3), 20)
    blocks = ShuffledBlocks(Ragged(), 8, 3)
    assert [step for _ in range(5) for step in steps(blocks, 4)] == whole


def test_other_settings_cannot_take_it_up() -> None:
    state = ShuffledBlocks(Ragged(), 8, 3).state()
    for other in (
        ShuffledBlocks(Ragged(), 9, 3),
        ShuffledBlocks(Ragged(), 8, 4),
        ShuffledBlocks(Ragged(), 8, 3, seed=1),
        ShuffledBlocks(TensorActivations(numbered(9, 2)), 8, 3),
        ShuffledBlocks(Ragged(), 8, 3, wanted=6),
    ):
        with pytest.raises(ValueError, match=r"taken up with the settings it was begun with: `"):
            other.resume(state)


def test_fewer_rows_than_one_batch_are_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"at least one batch of 8 rows of input, got 7\. Lower"):
        ShuffledBlocks(TensorActivations(numbered(7, 2)), 20, 8)
    # A stream does not know: it shows at the end of the first pass.
    blocks = ShuffledBlocks(TensorActivations(lambda epoch: [numbered(7, 2)]), 20, 8)
    with pytest.raises(ValueError, match=r"at least one batch of 8 rows of input, got 7\."):
        next(iter(blocks))
    blocks = ShuffledBlocks(Ragged(), 20, 16)
    with pytest.raises(ValueError, match=r"16 rows of vision.L0, got 15"):
        list(islice(iter(blocks), 5))
    with pytest.raises(ValueError, match=r"A block must hold at least one batch .* 3 rows for"):
        ShuffledBlocks(Ragged(), 3, 4)


def test_half_precision_waits_and_float_is_given() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    blocks = ShuffledBlocks(TensorActivations(x), 20, 5, dtype=torch.bfloat16, keep_on="cpu")
    (_, batch), *_ = islice(iter(blocks), 1)
    assert batch.dtype == torch.float32 and blocks._buffers["input"]._memory.dtype == torch.bfloat16
    assert all((row == x.bfloat16().float()).all(1).any() for row in batch)
    halves = ShuffledBlocks(TensorActivations(x.half()), 20, 5)
    assert next(iter(halves))[1].dtype == torch.float32
    doubles = ShuffledBlocks(TensorActivations(x.double()), 20, 5)
    assert next(iter(doubles))[1].dtype == torch.float64


def test_what_is_given_stays_when_the_memory_is_used_again() -> None:
    blocks = ShuffledBlocks(TensorActivations(numbered(40, 2), seed=None, chunk_rows=10), 10, 5)
    given = [x for _, x in islice(iter(blocks), 4)]
    assert sorted(torch.cat(given)[:, 0].tolist()) == list(range(20))


def test_a_buffer_keeps_what_it_has_when_it_grows() -> None:
    buffer = RowBuffer(2)
    for first in (0, 3, 6, 9):
        buffer.append(numbered(3, 2, first), 11)
    assert len(buffer) == 12 and buffer.capacity == 12
    assert buffer.take(torch.tensor([11, 0, 4]))[:, 0].tolist() == [11, 0, 4]
    buffer.clear()
    buffer.append(numbered(1, 2, 5), 11)
    assert len(buffer) == 1 and buffer.capacity == 12


@pytest.mark.parametrize(
    "source", [Ragged, lambda: TensorActivations(numbered(61, 2), chunk_rows=9)]
)
def test_ranks_share_all_chunks_and_none_twice(source) -> None:
    whole = list(source().chunks(2))
    shares = [RankShare(source(), rank, 3) for rank in range(3)]
    for rank, share in enumerate(shares):
        mine = list(share.chunks(2))
        assert len(mine) == len(whole[rank::3])
        for got, expected in zip(mine, whole[rank::3], strict=True):
            assert got.keys() == expected.keys()
            assert all(torch.equal(got[site], expected[site]) for site in got)
        later = list(share.chunks(2, 1))
        assert len(later) == len(mine) - 1
        assert all(torch.equal(later[0][s], mine[1][s]) for s in later[0])
    with pytest.raises(ValueError, match="`rank` must be 0 to 2, got 3"):
        RankShare(source(), 3, 3)
