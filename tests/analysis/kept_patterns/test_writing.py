"""What is kept of a forward equals what `capture` sees, for every form and kind of tower."""

import numpy as np
import pytest
import small_vlms
import tiny_models
import torch
from packed_batch import IMAGE, packed_batch

from analysis.kept_patterns import KeptPatterns, PatternKeeper, TooLarge, strongest_that_fit
from analysis.kept_patterns.form import size_bytes
from analysis.run_files import RunError
from headscope import capture, load
from headscope.batching import batches
from probes.heads import Head
from probes.listening import listen
from probes.readers import read_examples
from probes.subject import Subject

ROOM = 1 << 30
HALF = 2**-11


def kept(subject, batch, path, strongest=None):
    keeper = PatternKeeper(subject.layout, batch.tokens, strongest, ROOM)
    with listen(subject, batch, keeper.listen):
        subject.forward(batch)
    keeper.save(path)
    return KeptPatterns(path), keeper


def bundled(model, data):
    subject = load(model)
    examples = list(read_examples(data, subject.kind, 1))
    (batch,) = batches(subject, examples, 1, lambda example, reason: None)
    return subject, batch


def all_heads(subject):
    return [
        Head(site.site.tower, site.site.layer, head)
        for site in subject.layout.sites
        for head in range(site.heads)
    ]


@pytest.mark.parametrize(("model", "data"), [("shapes-llava", "scenes"), ("repeat-lm", "repeats")])
def test_short_examples_are_kept_whole(model, data, tmp_path):
    subject, batch = bundled(model, data)
    found, keeper = kept(subject, batch, tmp_path / "0.safetensors")
    seen = capture(subject, batch, patterns="*")
    assert keeper.lossless
    for head in all_heads(subject):
        pattern, expected = found.head(head), seen.pattern(head)[0].numpy()
        assert pattern.key is None and pattern.lossless
        assert pattern.queries.tolist() == list(range(len(expected)))
        assert np.abs(pattern.weight - expected).max() <= HALF


def test_of_long_examples_the_strongest_keys_of_each_query(tmp_path):
    subject, batch = bundled("repeat-lm", "repeats")
    found, keeper = kept(subject, batch, tmp_path / "0.safetensors", strongest=5)
    seen = capture(subject, batch, patterns="*")
    assert not keeper.lossless
    for head in all_heads(subject):
        pattern, expected = found.head(head), seen.pattern(head)[0].numpy()
        assert pattern.weight.shape == (len(expected), 5)
        for query, row in enumerate(expected):
            best = np.sort(row)[::-1][:5]
            mine = pattern.row(query)
            assert np.sort(mine)[::-1][:5] == pytest.approx(best, abs=HALF)
            there = mine > 0
            assert mine[there] == pytest.approx(row[there], abs=HALF)
            assert pattern.missing()[query] == pytest.approx(1 - best.sum(), abs=5 * HALF)


@pytest.mark.parametrize("make", [small_vlms.qwen2, small_vlms.qwen2_5, small_vlms.qwen3])
def test_packed_images_and_windows_are_told_by_their_positions(make, tmp_path):
    tokenizer = small_tokenizer()
    subject, batch = packed_batch(
        make(), tokenizer, lambda counts: [f"a {'<image> ' * count}b" for count in counts]
    )
    found, _ = kept(subject, batch, tmp_path / "0.safetensors")
    seen = capture(subject, batch, patterns="vision.*")
    tokens = batch.tokens["vision"]
    for site in subject.layout.sites:
        if site.site.tower != "vision":
            continue
        blocks = seen.pattern(site.site)
        for head in range(site.heads):
            pattern = found.head(Head("vision", site.site.layer, head))
            assert pattern.lossless and pattern.keys == len(tokens)
            for block, first in zip(blocks, tokens.starts.tolist(), strict=False):
                for query in (0, len(block[head]) - 1):
                    expected = np.zeros(len(tokens))
                    expected[first : first + block.shape[-1]] = block[head, query].numpy()
                    assert pattern.row(first + query) == pytest.approx(expected, abs=HALF)


def small_tokenizer():
    words = tiny_models.tokenizer("left")
    assert words("<image>")["input_ids"] == [IMAGE]
    return words


def test_cross_attention_reads_another_tower(tmp_path):
    subject = load(tiny_models.t5(), tiny_models.tokenizer())
    batch = subject.prepare(["a b c d e"], answers=["b c"])
    found, _ = kept(subject, batch, tmp_path / "0.safetensors")
    seen = capture(subject, batch, patterns="cross.*")
    pattern, expected = found.head("cross.L1H2"), seen.pattern("cross.L1H2")[0].numpy()
    assert pattern.key_tower == "encoder"
    assert expected.shape[0] != expected.shape[1]
    assert pattern.keys == expected.shape[1]
    rows = np.stack([pattern.row(int(query)) for query in pattern.queries])
    assert rows == pytest.approx(expected, abs=HALF)


def test_a_tower_without_a_token_map_numbers_for_itself(tmp_path):
    subject = Subject(tiny_models.gpt2())
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    batch = subject.prepare(input_ids=ids)
    seen = capture(subject, batch, patterns="*")
    site = subject.layout.sites[0].site

    class Nameless:
        """A listener that is not told of positions."""

        def __init__(self, keeper):
            self.keeper = keeper

        def __call__(self, call):
            call.query_index = call.key_index = None
            self.keeper.listen(call)

    keeper = PatternKeeper(subject.layout, batch.tokens, None, ROOM)
    with listen(subject, batch, Nameless(keeper)):
        subject.forward(batch)
    keeper.save(tmp_path / "0.safetensors")
    pattern = KeptPatterns(tmp_path / "0.safetensors").head(Head(site.tower, site.layer, 1))
    assert not pattern.named_queries and not pattern.named_keys
    expected = seen.pattern(Head(site.tower, site.layer, 1))[0].numpy()
    rows = np.stack([pattern.row(query) for query in range(7)])
    assert rows == pytest.approx(expected, abs=HALF)


def test_it_gives_up_where_there_is_no_room(tmp_path):
    subject, batch = bundled("repeat-lm", "repeats")
    keeper = PatternKeeper(subject.layout, batch.tokens, None, 1000)
    with pytest.raises(TooLarge), listen(subject, batch, keeper.listen):
        subject.forward(batch)


def test_fewer_keys_are_kept_before_fewer_examples():
    subject, batch = bundled("repeat-lm", "repeats")
    everything = size_bytes(subject.layout, batch.tokens, None)
    assert strongest_that_fit(subject.layout, batch.tokens, 4 * everything, 8) == (None,)
    assert strongest_that_fit(subject.layout, batch.tokens, everything, 1) == (None,)
    least = size_bytes(subject.layout, batch.tokens, 8)
    assert least < everything
    assert strongest_that_fit(subject.layout, batch.tokens, 4 * least, 8) == (8,)
    # Alone it gets all that is left, rather than nothing.
    assert strongest_that_fit(subject.layout, batch.tokens, least, 8) == (8,)
    assert strongest_that_fit(subject.layout, batch.tokens, least - 1, 8) is None


def test_the_size_is_known_beforehand(tmp_path):
    subject, batch = bundled("shapes-llava", "scenes")
    for strongest in (None, 8):
        _, keeper = kept(subject, batch, tmp_path / f"{strongest}.safetensors", strongest)
        expected = size_bytes(subject.layout, batch.tokens, strongest)
        assert keeper.nbytes == expected
        file = (tmp_path / f"{strongest}.safetensors").stat().st_size
        assert expected < file < expected + 20_000


def test_a_damaged_file_and_a_strange_head_are_sentences(tmp_path):
    subject, batch = bundled("repeat-lm", "repeats")
    found, _ = kept(subject, batch, tmp_path / "0.safetensors")
    with pytest.raises(KeyError, match="must have been kept"):
        found.head("vision.L0H0")
    with pytest.raises(KeyError, match="must be one of"):
        found.head("language.L0H99")
    data = (tmp_path / "0.safetensors").read_bytes()
    (tmp_path / "1.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="cannot be read"):
        KeptPatterns(tmp_path / "1.safetensors")
