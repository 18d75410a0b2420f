from __future__ import annotations

from itertools import islice

import pytest
import torch

from sae.activations import ShuffledBlocks, TensorActivations
from sae.training.config import TrainConfig
from sae.training.distributed import Processes
from sae.training.feed import Feed
from sae.training.interrupts import Interrupts

CONFIG = TrainConfig(k=1, tokens=1_000, batch_size=5, buffer_rows=23)


def _rows(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _source(**rows: int) -> TensorActivations:
    sites = {site: _rows(i, n, 2 + i) for i, (site, n) in enumerate(rows.items())}
    return TensorActivations(sites, chunk_rows=11)


def _feed(source: TensorActivations, processes: Processes | None = None) -> Feed:
    return Feed(source, CONFIG, processes or Processes(), Interrupts())


def test_one_process_takes_batches_as_they_are_handed_out():
    source = _source(a=61, b=37)
    blocks = ShuffledBlocks(source, 23, 5, seed=0)
    for (site, x), (other, y) in islice(zip(_feed(source), blocks, strict=False), 40):
        assert site == other and torch.equal(x, y)


def test_processes_are_at_the_same_site_at_the_same_time():
    source = _source(a=211, b=37, c=97)
    orders = [
        [site for site, _ in islice(_feed(source, Processes(rank, 3)), 30)] for rank in range(3)
    ]
    assert orders[0] == orders[1] == orders[2] == ["a", "b", "c"] * 10


def test_a_site_of_one_process_is_fed_with_its_part_of_the_rows_alone():
    source = _source(a=66)
    chunks = [chunk["a"] for chunk in source.chunks(0)]
    for rank in (0, 1):
        mine = {tuple(row.tolist()) for chunk in chunks[rank::2] for row in chunk}
        first = next(iter(_feed(source, Processes(rank, 2))))[1]
        assert {tuple(row.tolist()) for row in first} <= mine


def test_no_more_than_four_batches_wait_for_their_turn():
    source = _source(a=2_000, b=40)
    feed = _feed(source, Processes(0, 2))
    for _ in islice(feed, 12):
        assert len(feed._waiting["a"]) <= 4


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stop", [1, 7, 22])
def test_a_feed_that_goes_on_gives_the_same_batches(count, stop):
    source = _source(a=211, b=59)
    whole = _feed(source, Processes(0, count))
    wanted = list(islice(whole, 50))[stop:]
    begun = _feed(source, Processes(0, count))
    steps = iter(begun)
    for _ in range(stop):
        next(steps)
    part = begun.part()
    later = _feed(source, Processes(0, count))
    later.restore(part.tensors, part.facts)
    found = list(islice(later, 50 - stop))
    assert [site for site, _ in found] == [site for site, _ in wanted]
    for (_, x), (_, y) in zip(found, wanted, strict=True):
        assert torch.equal(x, y)
    assert later.norms.record() == whole.norms.record()


class _Elsewhere(TensorActivations):
    """The same rows on a device that is not the CPU (of their values nothing is known there)."""

    def chunks(self, epoch: int, start: int = 0, every: int = 1):
        for chunk in super().chunks(epoch, start, every):
            yield {site: rows.to("meta") for site, rows in chunk.items()}


def test_batches_that_wait_come_back_to_where_the_rows_are():
    """A trainer without a device goes to its first batch, and stays there."""
    rows = {"a": _rows(0, 211, 2), "b": _rows(1, 59, 3)}
    waited = 0
    for stop in range(1, 21):
        begun = _feed(TensorActivations(rows, chunk_rows=11), Processes(0, 2))
        steps = iter(begun)
        for _ in range(stop):
            next(steps)
        part = begun.part()
        waited += any(name.startswith("waiting") for name in part.tensors)
        later = _feed(_Elsewhere(rows, chunk_rows=11), Processes(0, 2))
        # Norms of what has no values cannot be counted.
        later.restore(part.tensors, {**part.facts, "norms": {**part.facts["norms"], "open": []}})
        found = list(islice(later, 9))
        assert {x.device.type for _, x in found} == {"meta"}
    assert waited > 9


def test_a_feed_taken_up_and_ended_at_once_goes_on_from_the_same_place():
    """It looks ahead for the device of the rows; until that batch is due it was not handed out."""
    source = _source(a=211, b=59)
    wanted = list(islice(_feed(source, Processes(0, 2)), 40))
    begun = _feed(source, Processes(0, 2))
    steps = iter(begun)
    for _ in range(7):
        next(steps)
    part, taken = begun.part(), 7
    assert "waiting/a" in part.tensors
    while taken < 30:
        later = _feed(source, Processes(0, 2))
        later.restore(part.tensors, part.facts)
        site, x = next(iter(later))
        assert site == wanted[taken][0] and torch.equal(x, wanted[taken][1])
        part, taken = later.part(), taken + 1


def test_a_short_training_reads_no_more_than_it_needs():
    source = _source(a=2_000)
    read = []

    def heard(epoch: int, start: int = 0, every: int = 1):
        for chunk in TensorActivations.chunks(source, epoch, start, every):
            read.append(chunk["a"].shape[0])
            yield chunk

    source.chunks = heard
    config = TrainConfig(k=1, tokens=104, batch_size=5, buffer_rows=500)
    for count in (1, 2):
        read.clear()
        feed = Feed(source, config, Processes(0, count), Interrupts())
        steps = config.steps(count)
        assert len(list(islice(feed, steps))) == steps == 20 // count
        # Up to a chunk of eleven.
        assert 5 * steps <= sum(read) < 5 * steps + 11
    read.clear()
    assert len(list(islice(Feed(source, config, Processes(), Interrupts(), 99), 99))) == 99
    assert 495 <= sum(read) < 506


def test_the_mean_norm_is_of_the_rows_that_were_read_for_the_first_time():
    x = _rows(0, 61, 3) + 2
    source = TensorActivations(x, chunk_rows=11, seed=None)
    feed = _feed(source)
    next(iter(feed))
    # 61 rows in six chunks: three of them fill the block of 23.
    read = x[: 61 * 3 // 6]
    mean = sum(float(row.pow(2).sum()) ** 0.5 for row in read) / len(read)
    begun = _feed(source)
    begun.restore(feed.part().tensors, feed.part().facts)
    for each in (feed, begun):
        assert each.norms.take("input", Processes()) == pytest.approx(mean, rel=1e-6)


def test_an_interrupt_is_heard_between_chunks_and_the_feed_goes_on_from_the_last_batch():
    source = _source(a=211)
    interrupts = Interrupts()
    feed = Feed(source, CONFIG, Processes(), interrupts)
    steps = iter(feed)
    for _ in range(6):
        next(steps)
    interrupts.came = True
    with pytest.raises(KeyboardInterrupt):
        for _ in range(10):
            next(steps)
    part = feed.part()
    taken = sum(part.facts["blocks"]["batches"].values())
    later = _feed(source)
    later.restore(part.tensors, part.facts)
    wanted = list(islice(_feed(source), taken + 5))[taken:]
    for (_, x), (_, y) in zip(islice(later, 5), wanted, strict=True):
        assert torch.equal(x, y)
