"""Head outputs on a disk: round trip, kills, damage, and stores of something else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import tiny_models
import torch

from analysis.journal import RunLocked
from analysis.run_files import RunError
from probes.inputs import Example
from probes.subject import Subject
from sae.activations.places import PlacedActivations
from sae.activations.shuffled_blocks import ShuffledBlocks
from sae.activations.source import Activations
from sae.activations.store import store_activations
from sae.activations.store_files import INDEX, PLAN, SHARDS, StoreError
from sae.activations.stored_rows import StoredActivations
from sae.activations.subject_rows import SubjectActivations
from sae.activations.tensor_rows import TensorActivations
from sae.training import Notice, Record, TrainConfig, train_sites

SITES = ["language.L0", "language.L2"]


def texts(count: int) -> list[Example]:
    return [Example(f"t{i}", text=" ".join("abcdefghij"[i % 3 : 4 + i % 7])) for i in range(count)]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny_models.llama(), tiny_models.tokenizer())


def made(subject: Subject, count: int = 19, **changes) -> SubjectActivations:
    examples = changes.pop("examples", texts(count))
    settings = {"sites": SITES, "batch_size": 4, "seed": 3} | changes
    return SubjectActivations(subject, examples, **settings)


def together(source: Activations, epoch: int = 0) -> dict[str, torch.Tensor]:
    chunks = list(source.chunks(epoch))
    return {site: torch.cat([chunk[site] for chunk in chunks]) for site in source.widths}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_round_trip_with_places(subject: Subject, tmp_path: Path) -> None:
    examples = [*texts(18), Example("long", text="a " * 99)]
    source = made(subject, examples=examples)
    counts = []
    stored = store_activations(
        source,
        tmp_path / "s",
        shard_rows=30,
        listener=lambda n, rows: counts.append((n, dict(rows))),
    )
    assert isinstance(stored, PlacedActivations)
    assert stored.widths == source.widths and stored.heads == source.heads
    assert stored.skipped == source.skipped and stored.ids == source.ids
    assert len(counts) == len(list(stored.chunks(0))) > 2 and counts[-1][1] == stored.rows
    plain = StoredActivations(tmp_path / "s", seed=None)
    expected = together(source)
    for site, rows in together(plain).items():
        assert torch.equal(rows, expected[site])
    live = list(source.placed_chunks(0))
    kept = list(plain.placed_chunks(0))
    for site in SITES:
        for name in ("example", "position"):
            a = torch.cat([getattr(chunk.places[site], name) for chunk in live])
            assert torch.equal(a, torch.cat([getattr(c.places[site], name) for c in kept]))
    # Shuffled by epoch, shard by shard.
    orders = [[chunk["language.L0"][0, 0].item() for chunk in stored.chunks(e)] for e in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    only = StoredActivations(tmp_path / "s", sites=["language.L2"])
    assert list(only.widths) == ["language.L2"] and list(next(only.chunks(0))) == ["language.L2"]
    assert next(stored.chunks(0, 1))["language.L0"][0, 0].item() == orders[0][1]


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_dtypes(tmp_path: Path, dtype: str, bytes_each: int) -> None:
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(2))
    stored = store_activations(TensorActivations(x, seed=None), tmp_path / "s", dtype=dtype)
    (chunk,) = stored.chunks(0)
    assert chunk["input"].dtype == getattr(torch, dtype)
    assert torch.equal(chunk["input"], x.to(getattr(torch, dtype)))
    size = sum(path.stat().st_size for path in (tmp_path / "s" / SHARDS).glob("*.safetensors"))
    assert size < 500 * 64 * bytes_each + 2000
    with pytest.raises(StoreError, match="it was made from rows alone"):
        next(stored.placed_chunks(0))


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    x = torch.full((5, 2), 7e4)
    with pytest.raises(StoreError, match=r"at most 65,504 to be kept in float16, got 7e\+04"):
        store_activations(TensorActivations(x), tmp_path / "s", dtype="float16")
    store_activations(TensorActivations(x), tmp_path / "t", dtype="bfloat16")
    stored = store_activations(TensorActivations(x.double()), tmp_path / "u")
    assert next(stored.chunks(0))["input"].dtype == torch.float32


def test_stopped_after_every_shard_it_goes_on_to_the_same_files(
    subject: Subject, tmp_path: Path
) -> None:
    whole = store_activations(made(subject), tmp_path / "whole", shard_rows=20)
    shards = len(list(whole.chunks(0)))
    assert shards >= 4
    for stop in range(1, shards + 1):
        folder = tmp_path / f"s{stop}"

        def listener(count: int, _: object, stop: int = stop) -> None:
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store_activations(made(subject), folder, shard_rows=20, listener=listener)
        with pytest.raises(StoreError, match=r"is not finished. Go on with"):
            StoredActivations(folder)
        with pytest.raises(StoreError, match=r"holds an unfinished store. Add `resume`"):
            store_activations(made(subject), folder, shard_rows=20)
        before = files(folder)
        store_activations(made(subject), folder, shard_rows=20, resume=True)
        after = files(folder)
        assert all(after[name] == content for name, content in before.items())
        assert after == files(tmp_path / "whole")
    again = store_activations(made(subject), tmp_path / "whole", shard_rows=20, resume=True)
    assert again.rows == whole.rows
    with pytest.raises(StoreError, match="holds a finished store"):
        store_activations(made(subject), tmp_path / "whole", shard_rows=20)


CHILD = """
    import os, signal, sys
    import torch
    from sae.activations.store import store_activations
    from sae.activations.tensor_rows import TensorActivations

    x = torch.arange(4000.0).reshape(1000, 4)
    folder, when = sys.argv[1], int(sys.argv[2])

    def stream(epoch):
        for number in range(20):
            if number == when:  # amid a shard
                os.kill(os.getpid(), signal.SIGKILL)
            yield x[50 * number : 50 * number + 50]

    store_activations(TensorActivations(stream), folder, shard_rows=120, resume=True)
"""


def test_killed_in_a_child_process_and_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def run(when: int) -> int:
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(when)]
        place = Path(__file__).parents[3]
        return subprocess.run(
            command, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ).returncode

    assert run(7) == -signal.SIGKILL
    known = sorted(path.name for path in (folder / SHARDS).glob("*.safetensors"))
    assert known == ["shard-000000.safetensors", "shard-000001.safetensors"]
    assert not (folder / INDEX).exists()
    before = files(folder)
    assert run(99) == 0
    assert all(files(folder)[name] == content for name, content in before.items())
    rows = together(StoredActivations(folder, seed=None))["input"]
    assert torch.equal(rows, torch.arange(4000.0).reshape(1000, 4))


def test_stores_of_something_else_are_refused(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store_activations(made(subject), folder)
    before = files(folder)
    other_model = Subject(tiny_models.llama(hidden_size=60), tiny_models.tokenizer())
    other_data = [replace(e, text=(e.text or "") + " a") for e in texts(19)]
    for source, what in (
        (made(other_model), "about.subject.fingerprint was"),
        (made(subject, examples=other_data), "about.data.digest was"),
        (made(subject, roles=("text",)), r"about.roles was None, now \['text'\]"),
        (made(subject, sites="language.L1"), "about.sites was"),
    ):
        with pytest.raises(StoreError, match=rf"made from something else: .*{what}"):
            store_activations(source, folder, resume=True)
    assert files(folder) == before
    for source, what in (
        (made(other_model), "subject.fingerprint was"),
        (made(subject, examples=other_data), "data.digest was"),
        (made(subject, roles=("text",)), "roles was None"),
    ):
        with pytest.raises(StoreError, match=rf"made from something else: .*{what}"):
            StoredActivations(folder, of=source)
    # Another order of the same rows is no other store.
    assert StoredActivations(folder, of=made(subject, seed=9, batch_size=2)).rows
    with pytest.raises(StoreError, match=r"holds language.L0, language.L2, not language.L1"):
        StoredActivations(folder, sites=["language.L1"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match=r"new or empty folder, .* nothing was touched"):
        store_activations(made(subject), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_a_killed_start_left_is_no_hindrance_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (folder / SHARDS).mkdir(parents=True)
    (folder / ".plan.json.4711.part").write_text("{")
    (folder / SHARDS / ".shard-000000.safetensors.4711.part").write_bytes(b"x")
    assert store_activations(TensorActivations(torch.ones(5, 2)), folder).shards == 1
    assert not list(folder.rglob("*.part"))


def test_a_damaged_shard_is_a_sentence_and_is_made_anew(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store_activations(made(subject), folder, shard_rows=30)
    before = files(folder)
    path = folder / SHARDS / "shard-000001.safetensors"
    content = path.read_bytes()
    harms = {
        "content is not what": content[:-5] + b"12345",
        "not what was written": content[: len(content) // 2],
        "it is missing": None,
    }
    for why, harmed in harms.items():
        path.unlink()
        if harmed is not None:
            path.write_bytes(harmed)
        with pytest.raises(StoreError, match=rf"shard-000001.safetensors .*{why}.*Delete that one"):
            list(StoredActivations(folder).chunks(0))
        path.unlink(missing_ok=True)
        (folder / INDEX).unlink()
        store_activations(made(subject), folder, shard_rows=30, resume=True)
        assert files(folder) == before
    path.write_bytes(b"nothing")
    (folder / INDEX).unlink()
    with pytest.raises(StoreError, match=r"shard-000001.safetensors of the store is damaged"):
        store_activations(made(subject), folder, shard_rows=30, resume=True)
    (folder / PLAN).write_text("{")
    with pytest.raises(StoreError, match=r"plan.json cannot be read"):
        StoredActivations(folder)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    source = TensorActivations(torch.ones(50, 2), chunk_rows=5)

    def listener(count: int, _: object) -> None:
        if count == 1:
            with pytest.raises(RunLocked, match=rf"{folder} is being written by process"):
                store_activations(source, folder, shard_rows=10, resume=True)

    assert store_activations(source, folder, shard_rows=10, listener=listener).rows["input"] == 50


def test_coders_are_fed_alike_from_a_store_and_after_a_stop(
    subject: Subject, tmp_path: Path
) -> None:
    stored = store_activations(made(subject), tmp_path / "s", shard_rows=30)
    whole = [(s, x) for s, x in islice(iter(ShuffledBlocks(stored, 50, 8)), 60)]
    blocks = ShuffledBlocks(StoredActivations(tmp_path / "s"), 50, 8)
    list(islice(iter(blocks), 37))
    later = ShuffledBlocks(StoredActivations(tmp_path / "s"), 50, 8)
    later.resume(blocks.state())
    for (site, x), (known, y) in zip(islice(iter(later), 23), whole[37:], strict=True):
        assert site == known and torch.equal(x, y)


def test_a_training_is_taken_up_with_the_store_and_the_order_it_was_begun_with(
    subject: Subject, tmp_path: Path
) -> None:
    source = made(subject)
    stored = store_activations(source, tmp_path / "s", shard_rows=30)
    store_activations(source, tmp_path / "other", shard_rows=60)
    config = TrainConfig(
        latents=9, k=2, tokens=320, batch_size=8, buffer_rows=16, checkpoint_every=5, log_every=1
    )

    def stop(news: Record | Notice) -> None:
        if isinstance(news, Record) and news.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sites(config, stored, out=tmp_path / "out", listener=stop)
    for begun, what in (
        (source, "data.store"),
        (StoredActivations(tmp_path / "s", seed=9), r"data\.store\.seed was 0, now 9"),
        (StoredActivations(tmp_path / "other"), r"data\.store\.digest was '\w+', now '\w+'"),
    ):
        with pytest.raises(RunError, match=rf"has another plan: .*{what}"):
            train_sites(config, begun, out=tmp_path / "out", resume=True)
    whole = train_sites(config, stored)
    copied = shutil.copytree(tmp_path / "s", tmp_path / "copied")
    for site, coder in train_sites(config, copied, out=tmp_path / "out", resume=True).items():
        assert torch.equal(coder.encoder, whole[site].encoder)


def test_fewer_stored_rows_than_a_batch_show_at_once(subject: Subject, tmp_path: Path) -> None:
    stored = store_activations(made(subject, 2), tmp_path / "s")
    with pytest.raises(ValueError, match=r"at least one batch of 64 rows of language.L0, got 8"):
        ShuffledBlocks(stored, 64, 64)
