from __future__ import annotations

import gc
import json
import shutil

import pytest
import torch
from torch import Tensor

from analysis.journal import RunLock, RunLocked
from analysis.run_files import RunError
from sae.activations import TensorActivations
from sae.coders.registry import CODERS
from sae.exchange.headscope_folder import load_coder
from sae.training import Notice, Record, TrainConfig, read_metrics, train, train_sites


def _config(**settings: object) -> TrainConfig:
    usual = {"latents": 24, "k": 2, "tokens": 960, "batch_size": 16, "buffer_rows": 64}
    rate = {"learning_rate": 0.01, "log_every": 5, "checkpoint_every": 20}
    return TrainConfig(**{**usual, **rate, **settings})  # type: ignore[arg-type]


def _rows(rows: int = 331, width: int = 6, seed: int = 0, size: float = 5.0) -> Tensor:
    """Rows that few directions explain, around a point that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, width, generator=generator)
    strengths = torch.rand(rows, width, generator=generator)
    strengths *= torch.rand(rows, width, generator=generator) < 0.3
    return size * strengths @ directions + 2


def _explained(coder: torch.nn.Module, x: Tensor) -> float:
    return 1 - float((x - coder(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize("kind", sorted(CODERS))
def test_each_kind_learns_and_comes_back_in_the_units_of_the_model(kind):
    x = _rows()
    k = 4 if kind == "jump_relu" else 2
    heard: list[Record | Notice] = []
    config = _config(coder=kind, k=k, tokens=6_400, sparsity_warm_up=0.0)
    coder = train(config, x, listener=heard.append)
    assert coder.architecture == kind and not coder.training
    assert not any(p.requires_grad for p in coder.parameters())
    last = heard[-1]
    assert isinstance(last, Record) and last.step == last.steps == 400 and last.tokens == 6_400
    assert last.explained_variance is not None
    assert _explained(coder, x) == pytest.approx(last.explained_variance, abs=0.15)
    assert _explained(coder, x) > 0.7
    lengths = coder.decoder.norm(dim=1)
    if coder.unit_decoder:
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_coders_do_not_depend_on_the_size_of_rows():
    x = _rows()
    small, large = train(_config(), x), train(_config(), x * 64)
    # 64 is a power of two: no number is rounded otherwise.
    assert torch.equal(small.decoder, large.decoder)
    assert torch.equal(small.encoder_bias * 64, large.encoder_bias)
    torch.testing.assert_close(small(x) * 64, large(x * 64))


def test_several_sites_are_trained_as_each_would_be_alone():
    rows = {"language.L0": _rows(), "vision.L1": _rows(width=5, seed=1)}
    together = train_sites(_config(), TensorActivations(rows, seed=None))
    for site, x in rows.items():
        alone = train(_config(), TensorActivations(x, site, seed=None))
        for name, value in together[site].state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), (site, name)


def test_global_random_numbers_neither_matter_nor_are_drawn():
    x = _rows()
    torch.manual_seed(1)
    first = train(_config(dead_features="resample", dead_after=32), x)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second = train(_config(dead_features="resample", dead_after=32), x)
    assert torch.equal(first.decoder, second.decoder)


def test_the_folder_holds_plan_metrics_coders_and_a_manifest(tmp_path):
    rows = {"language.L0": _rows(), "vision.L1": _rows(width=4, seed=1)}
    source = TensorActivations(rows, heads={"language.L0": 3, "vision.L1": 2})
    coders = train_sites(_config(), source, out=tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {
        "plan.json",
        "metrics.jsonl",
        "language.L0",
        "language.L0/coder.json",
        "language.L0/coder.safetensors",
        "vision.L1",
        "vision.L1/coder.json",
        "vision.L1/coder.safetensors",
        "manifest.json",
    }
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert TrainConfig.of(plan["config"]) == _config()
    assert plan["sites"]["language.L0"] == {"width": 6, "heads": 3}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    folders = {"language.L0", "vision.L1"}
    assert set(manifest["files"]) == names - folders - {"manifest.json"}
    lines = read_metrics(tmp_path / "out")
    assert [line["step"] for line in lines if line["site"] == "vision.L1"] == [1, *range(5, 61, 5)]
    assert set(lines[0]) == {
        "site", "step", "steps", "tokens", "loss", "parts", "l0",
        "explained_variance", "dead", "lr", "seconds",
    }  # fmt: skip
    read = load_coder(tmp_path / "out" / "language.L0")
    for name, value in coders["language.L0"].state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
    assert read.about == coders["language.L0"].about
    assert (read.about["site"], read.about["heads"], read.about["head_width"]) == (
        "language.L0",
        3,
        2,
    )
    assert TrainConfig.of(read.about["config"]) == _config()
    assert read.about["training"]["tokens"] == 960


def test_a_finished_training_is_read_again_and_says_so(tmp_path):
    coder = train(_config(), _rows(), out=tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(RunError, match=r"holds a finished training\. Choose another `out`"):
        train(_config(), _rows(), out=tmp_path / "out")
    heard: list[Record | Notice] = []
    again = train(_config(), _rows(), out=tmp_path / "out", resume=True, listener=heard.append)
    assert torch.equal(again.decoder, coder.decoder)
    assert [n.text for n in heard if isinstance(n, Notice)] == [
        f"{tmp_path / 'out'} holds this training, finished; its coders were read."
    ]
    with pytest.raises(RunError, match=r"config\.seed was 0, now 1"):
        train(_config(seed=1), _rows(), out=tmp_path / "out", resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_train_is_for_one_site():
    rows = {"language.L0": _rows(), "vision.L1": _rows(width=4)}
    with pytest.raises(
        ValueError, match=r"one site, got language\.L0, vision\.L1\. Use `train_sites"
    ):
        train(_config(), TensorActivations(rows))


def test_resuming_needs_a_folder():
    with pytest.raises(ValueError, match="`resume` needs `out`"):
        train(_config(), _rows(), resume=True)


def test_a_width_below_k_names_the_site_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"At language\.L3: `k` must be between 1 and .* 6, got 7"):
        train(_config(k=7), TensorActivations(_rows(), "language.L3"), out=tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    train(_config(), TensorActivations(_rows(), "language.L3"), out=tmp_path / "out")


def test_fewer_rows_than_a_batch_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"at least one batch of 16 rows of input, got 15"):
        train(_config(), _rows(15), out=tmp_path / "out")

    def stream(_: int):
        return iter([_rows(7), _rows(6)])

    with pytest.raises(ValueError, match=r"at least one batch of 16 rows of input, got 13"):
        train(_config(), stream)


class _Spoilt(TensorActivations):
    """One chunk of the second pass holds NaN."""

    def chunks(self, epoch: int, start: int = 0, every: int = 1):
        for number, chunk in enumerate(super().chunks(epoch, start, every), start):
            if epoch == 1 and number == 3:
                chunk = {site: rows.clone() for site, rows in chunk.items()}
                chunk["language.L3"][5, 2] = float("nan")
            yield chunk


class _Refusing(_Spoilt):
    """The same, found by the source itself."""

    def chunks(self, epoch: int, start: int = 0, every: int = 1):
        from sae.activations.finite_rows import refuse_nonfinite

        for number, chunk in enumerate(super().chunks(epoch, start, every), start):
            for site, rows in chunk.items():
                refuse_nonfinite(site, rows, f"chunk {number} of epoch {epoch}")
            yield chunk


@pytest.mark.parametrize("source", [_Spoilt, _Refusing])
def test_rows_that_are_not_finite_are_named_and_the_checkpoint_stays(tmp_path, source):
    config = _config(checkpoint_every=9)
    spoilt = source(_rows(), "language.L3", chunk_rows=32)
    with pytest.raises(
        ValueError, match=r"Head outputs of language\.L3 must be finite.* step \d\d"
    ) as raised:
        train(config, spoilt, out=tmp_path / "out")
    step = int(str(raised.value).split("step ")[1].split()[0].rstrip("."))
    assert 20 <= step <= 35
    kept = sorted(p.parent.name for p in (tmp_path / "out" / "checkpoint").glob("*/whole.json"))
    assert [int(name) for name in kept] == [9, 18] or [int(name) for name in kept] == [18, 27]
    mended = TensorActivations(_rows(), "language.L3", chunk_rows=32)
    found = train(config, mended, out=tmp_path / "out", resume=True)
    assert torch.equal(found.decoder, train(config, mended).decoder)


def test_a_training_that_diverges_is_named_and_the_checkpoint_stays(tmp_path):
    config = _config(learning_rate=1e30, gradient_clip=None, checkpoint_every=1, normalise="none")
    with pytest.raises(
        ValueError, match=r"The loss at input must be finite, it was not at step \d"
    ):
        train(config, _rows(), out=tmp_path / "out")
    newest = max((tmp_path / "out" / "checkpoint").glob("*/whole.json"), default=None)
    assert newest is None or newest.parent.joinpath("shared.safetensors").exists()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"new or empty folder, .* holds something else \(notes.txt"):
        train(_config(), _rows(), out=tmp_path)
    with pytest.raises(RunError, match=r"must be a folder, .* is a file"):
        train(_config(), _rows(), out=tmp_path / "notes.txt")
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text('{"schema": 1, "shards": 3}')
    with pytest.raises(RunError, match=r"that of a training, .* holds another run"):
        train(_config(), _rows(), out=run)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["notes.txt", "plan.json", "run"]


def test_what_a_killed_start_left_is_no_hindrance_and_goes(tmp_path):
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint" / "lock").write_text("process 12 on there")
    (tmp_path / "out" / ".plan.json.12.part").write_text("{")
    train(_config(), _rows(), out=tmp_path / "out")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["a/b", "..", "checkpoint", "plan.json", ".hidden", ""])
def test_a_site_that_no_folder_can_be_named_after_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="A site must have a name that a folder can have"):
        train(_config(), TensorActivations(_rows(), name), out=tmp_path / "out")


def test_two_trainings_do_not_write_one_folder(tmp_path):
    out = tmp_path / "out"
    with (
        RunLock(out / "checkpoint" / "lock"),
        pytest.raises(RunLocked, match="is being written by process"),
    ):
        train(_config(), _rows(), out=out)
    train(_config(), _rows(), out=out)


def test_a_start_that_never_reached_a_checkpoint_counts_as_none(tmp_path):
    def end(_: object) -> None:
        raise RuntimeError("the listener fails")

    with pytest.raises(RuntimeError, match="the listener fails"):
        train(_config(), _rows(), out=tmp_path / "out", listener=end)
    train(_config(seed=3), _rows(), out=tmp_path / "out")
    assert len(read_metrics(tmp_path / "out")) == 13


def test_without_a_checkpoint_that_can_be_read_nothing_is_touched(tmp_path):
    def end(news: object) -> None:
        if isinstance(news, Record) and news.step == 45:
            raise RuntimeError("the listener fails")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        train(_config(), _rows(), out=out, listener=end)
    for file in out.glob("checkpoint/*/shared.safetensors"):
        file.unlink()
    lines = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="No checkpoint in .* can be read"):
        train(_config(), _rows(), out=out, resume=True)
    assert (out / "metrics.jsonl").read_bytes() == lines
    shutil.rmtree(out)


def test_memory_does_not_grow_with_the_number_of_rows():
    counted: list[tuple[int, int]] = []

    def count(_: object) -> None:
        gc.collect()
        alive = [o for o in gc.get_objects() if isinstance(o, Tensor)]
        counted.append((len(alive), sum(t.numel() for t in alive)))

    train(_config(tokens=4_800, log_every=100, dead_after=100), _rows(), listener=count)
    early, late = counted[1], counted[-1]
    assert len(counted) == 4
    assert late[0] <= early[0] + 3 and late[1] <= early[1] * 1.1


def test_an_unknown_device_is_a_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="`device` must be one of the 0 GPUs that torch sees"):
        train(_config(device="cuda"), _rows())


def test_a_plan_that_cannot_be_read_is_a_sentence(tmp_path):
    train(_config(), _rows(), out=tmp_path / "out")
    (tmp_path / "out" / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json cannot be read .*\. Train again into another"):
        train(_config(), _rows(), out=tmp_path / "out", resume=True)
