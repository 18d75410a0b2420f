"""Rows of head outputs of a model, against z as `capture` keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import packed_batch
import pytest
import small_tokenizers
import small_vlms
import tiny_models
import torch
from PIL import Image

from probes.capture import capture
from probes.edits.apply import edit
from probes.heads import Site
from probes.inputs import Batch, Example
from probes.loading import load
from probes.readers.registry import read_examples
from probes.replay import logits_unread
from probes.subject import Subject
from probes.tap import TapError
from probes.tokens.map import ROLES
from sae.activations.places import PlacedActivations, flat_position
from sae.activations.shuffled_blocks import ShuffledBlocks
from sae.activations.subject_rows import SubjectActivations
from sae.activations.text_windows import text_windows

PAD = ROLES.index("pad")


def slow_rows(subject: Subject, batch: Batch, name: str, roles: Sequence[str] = ()) -> torch.Tensor:
    """Position by position: z of `capture` where the token map has no padding."""
    found = capture(subject, batch, z=[name])
    site = Site(*_parsed(name))
    z, tokens = found.z(name), batch.tokens[site.tower]
    z = z.reshape(-1, *z.shape[-2:]) if z.shape[0] == 1 else z
    rows = []
    for row in range(tokens.rows):
        for position in range(int(tokens.lengths[row])):
            flat = int(tokens.starts[row]) + position
            role = ROLES[int(tokens.role[flat])]
            if (role in roles) if roles else role != "pad":
                rows.append((z[flat] if z.ndim == 3 else z[row, position]).flatten())
    return torch.stack(rows)


def _parsed(name: str) -> tuple[str, int]:
    tower, layer = name.split(".L")
    return tower, int(layer)


class Forwards:
    """How often a module was called."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self.handle = module.register_forward_pre_hook(self._heard)

    def _heard(self, *_: object) -> None:
        self.count += 1


@pytest.fixture(scope="module")
def words() -> Subject:
    return Subject(tiny_models.llama(), tiny_models.tokenizer())


def texts(count: int) -> list[Example]:
    words = [*"abcdefghij", "the", "cat"]
    return [
        Example(f"t{i}", text=" ".join(words[(i + j) % 12] for j in range(2 + (5 * i) % 7)))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("repeat-lm", ["language.L0", "language.L1"]),
        ("prose-lm", ["language.L1", "language.L3"]),
        ("shapes-vit", ["vision.L0", "vision.L2"]),
        ("shapes-llava", ["language.L1", "vision.L0"]),
    ],
)
def test_rows_of_bundled_models_are_what_capture_keeps(name: str, sites: list[str]) -> None:
    subject = load(name)
    data = {"repeat-lm": "repeats", "prose-lm": "prose", "shapes-vit": "shapes"}.get(name, "scenes")
    examples = list(read_examples(data, subject.kind, 5))
    if name == "prose-lm":  # longer than the model can read
        examples = list(text_windows(examples[:2], subject.tokenizer, 131))[:5]
    source = SubjectActivations(subject, examples, sites=sites, batch_size=3)
    batches = 0
    for chunk in source.placed_chunks(epoch=1):
        assert chunk.batch is not None
        batches += 1
        for site in sites:
            assert torch.equal(chunk.rows[site], slow_rows(subject, chunk.batch, site))
            assert chunk.rows[site].shape[1] == source.widths[site]
    assert batches == 2 and source.skipped == []
    together = list(source.chunks(epoch=1))
    assert [c[sites[0]].shape[0] for c in together] == [
        c.rows[sites[0]].shape[0] for c in source.placed_chunks(1)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gives_no_rows_on_either_side(words: Subject, side: str) -> None:
    batch = words.prepare(text=["a b c d e f", "the cat", "j"], padding_side=side)
    tokens = batch.tokens["language"]
    pads = int((tokens.role == PAD).sum())
    assert pads > 5 and (tokens.role[0 if side == "right" else -1] != PAD)
    source = SubjectActivations(words, [batch], sites=["language.L1"])
    (chunk,) = source.placed_chunks(0)
    assert chunk.rows["language.L1"].shape == (len(tokens) - pads, 60)
    assert torch.equal(chunk.rows["language.L1"], slow_rows(words, batch, "language.L1"))


def test_heads_of_grouped_keys_lie_one_after_the_other(words: Subject) -> None:
    """Llama with six query heads on two key heads: slices of ten belong to heads."""
    source = SubjectActivations(words, texts(1), sites="language.L2")
    assert source.widths == {"language.L2": 60} and source.heads == {"language.L2": 6}
    (chunk,) = source.placed_chunks(0)
    assert chunk.batch is not None
    z = capture(words, chunk.batch, z=["language.L2"]).z("language.L2")
    assert torch.equal(chunk.rows["language.L2"][:, 40:50], z[0, :, 4])
    (one,) = SubjectActivations(words, texts(1), sites="language.L2H4").chunks(0)
    assert one["language.L2"].shape[1] == 60  # a head names its layer: coders read all heads


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("model", ["qwen2", "qwen2_5"])
def test_packed_images_and_windows(model: str, kernel: str) -> None:
    made = getattr(small_vlms, model)()
    made.set_attn_implementation(kernel)
    tokenizer = small_tokenizers.word_tokenizer("<image>", "<vs>", "<ve>", "<video>")
    subject, batch = packed_batch.packed_batch(
        made,
        tokenizer,
        lambda counts: [
            "a b " + "<image> " * counts[0] + "c",
            "a " + "<image> " * counts[1] + "b c d",
        ],
    )
    sites = [str(place.site) for place in subject.layout.sites]
    assert {site.split(".")[0] for site in sites} == {"language", "vision"}
    (chunk,) = SubjectActivations(subject, [batch], sites=sites).placed_chunks(0)
    for site in sites:
        assert torch.equal(chunk.rows[site], slow_rows(subject, batch, site)), site
    examples = chunk.places["vision.L0"].example
    lengths = batch.tokens["vision"].lengths.tolist()
    assert examples.tolist() == [0] * lengths[0] + [1] * lengths[1] and lengths[0] != lengths[1]


def test_an_encoder_decoder() -> None:
    subject = Subject(tiny_models.t5(), tiny_models.tokenizer())
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 0, 0]])
    batch = subject.prepare(
        input_ids=ids, attention_mask=(ids > 0).long(), decoder_input_ids=ids[:, :4]
    )
    sites = [str(place.site) for place in subject.layout.sites]
    assert len({site.split(".")[0] for site in sites}) == 3
    (chunk,) = SubjectActivations(subject, [batch], sites="*").placed_chunks(0)
    for site in sites:
        assert torch.equal(chunk.rows[site], slow_rows(subject, batch, site)), site
    assert chunk.rows["encoder.L1"].shape[0] == 8


def test_only_roles_that_were_asked_for() -> None:
    subject = load("shapes-llava")
    examples = list(read_examples("scenes", subject.kind, 3))
    for roles in (("image",), ("text", "special")):
        source = SubjectActivations(subject, examples, sites="language.L1", roles=roles)
        (chunk,) = source.placed_chunks(0)
        assert chunk.batch is not None
        expected = slow_rows(subject, chunk.batch, "language.L1", roles)
        assert torch.equal(chunk.rows["language.L1"], expected)
        tokens, flat = chunk.batch.tokens["language"], chunk.flat["language.L1"]
        assert {ROLES[i] for i in tokens.role[flat].tolist()} <= set(roles)


@pytest.mark.parametrize("sites", [["language.L2"], ["language.*", "vision.*"]])
def test_one_forward_a_batch_for_however_many_sites(sites: list[str]) -> None:
    subject = load("shapes-llava")
    examples = list(read_examples("scenes", subject.kind, 5))
    source = SubjectActivations(subject, examples, sites=sites, batch_size=2)
    list(source.chunks(0))  # how logits are left out is found out once for each model
    whole = Forwards(subject.model)
    unembedding = Forwards(subject.model.lm_head)
    assert len(list(source.chunks(1))) == 3
    assert whole.count == 3 and unembedding.count == 0
    assert len(source.sites) == (1 if len(sites) == 1 else len(subject.layout.sites))


def test_logits_that_nobody_reads_are_left_out_where_the_forward_runs_to_its_end() -> None:
    subject = load("shapes-llava")
    examples = [Example("words", text="a red circle"), *read_examples("scenes", subject.kind, 1)]
    source = SubjectActivations(subject, examples, sites="*", batch_size=1, seed=None)
    list(source.chunks(0))
    seen = []
    subject.model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    sizes = [chunk["vision.L0"].shape[0] for chunk in source.chunks(0)]
    assert sizes[0] == 0 < sizes[1] and seen == [1]  # vision might have come: the text runs on


def test_rows_are_in_the_precision_of_the_model() -> None:
    subject = Subject(tiny_models.llama().bfloat16(), tiny_models.tokenizer())
    source = SubjectActivations(subject, texts(3), sites="language.L1")
    (chunk,) = source.placed_chunks(0)
    assert chunk.batch is not None and chunk.rows["language.L1"].dtype == torch.bfloat16
    expected = slow_rows(subject, chunk.batch, "language.L1")
    assert torch.equal(chunk.rows["language.L1"], expected)
    assert next(iter(ShuffledBlocks(source, 8, 4)))[1].dtype == torch.float32


@pytest.mark.gpu
def test_rows_stay_on_the_device_and_wait_where_they_are_told_to() -> None:
    subject = load("shapes-llava", device="cuda")
    examples = list(read_examples("scenes", subject.kind, 9))
    source = SubjectActivations(subject, examples, sites="*", batch_size=4)
    here = SubjectActivations(load("shapes-llava"), examples, sites="*", batch_size=4)
    for chunk, known in zip(source.chunks(0), here.chunks(0), strict=True):
        for site, rows in chunk.items():
            assert rows.is_cuda
            torch.testing.assert_close(rows.cpu(), known[site], atol=1e-3, rtol=1e-3)
    for keep_on in (None, "cpu"):
        whole = list(islice(iter(ShuffledBlocks(source, 90, 7, keep_on=keep_on)), 60))
        blocks = ShuffledBlocks(source, 90, 7, keep_on=keep_on)
        list(islice(iter(blocks), 41))
        state = blocks.state()
        assert all(not rows.is_cuda for rows in state.carry.values())
        later = ShuffledBlocks(source, 90, 7, keep_on=keep_on)
        later.resume(state)
        for (site, x), (name, y) in zip(islice(iter(later), 19), whole[41:], strict=True):
            assert site == name and torch.equal(x, y) and x.is_cuda == (keep_on is None)


def test_the_forward_ends_with_the_last_site_and_leaves_the_model_as_it_was(words: Subject) -> None:
    above = Forwards(words.model.model.layers[2])
    projection = Forwards(words.model.model.layers[1].self_attn.o_proj)
    words.model.train()
    before = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in _modules(words)}
    batch = words.prepare(text=["a b c"])
    logits_unread(words, batch)
    above.count = projection.count = 0
    list(SubjectActivations(words, [batch], sites="language.L1").chunks(0))
    assert (above.count, projection.count) == (0, 1)
    assert words.model.training and words.model.model.layers[2].training
    words.model.eval()
    after = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in _modules(words)}
    assert before == after
    assert torch.equal(words.forward(batch).logits, Subject(words.model).forward(batch).logits)


def _modules(subject: Subject):
    return list(subject.model.named_modules())


def test_the_forward_goes_on_where_somebody_else_listens(words: Subject) -> None:
    from probes.listening import attach
    from probes.tap import Attached

    heard = []
    last = Site("language", 2)
    other = Attached(frozenset([last]), on_z=lambda site, z, step: heard.append(site))
    source = SubjectActivations(words, texts(2), sites="language.L0")
    with attach(words, other):
        list(source.chunks(0))
    assert heard == [last]


def test_rows_are_those_after_edits(words: Subject) -> None:
    source = SubjectActivations(words, texts(2), sites="language.L1")
    (plain,) = source.chunks(0)
    with edit(words, "zero", heads=["language.L1H2"]):
        (edited,) = source.chunks(0)
    rows = edited["language.L1"]
    assert not rows[:, 20:30].any()
    rows = torch.cat([rows[:, :20], rows[:, 30:]], 1)
    kept = plain["language.L1"]
    assert torch.equal(rows, torch.cat([kept[:, :20], kept[:, 30:]], 1))


def test_orders_differ_by_epoch_and_start_takes_up_anywhere(words: Subject) -> None:
    source = SubjectActivations(words, texts(23), sites="language.L0", batch_size=3, seed=5)
    first, second = (list(source.placed_chunks(epoch)) for epoch in (0, 1))
    assert len(first) == 8
    seen = [chunk.places["language.L0"].example.unique().tolist() for chunk in first]
    assert seen != [c.places["language.L0"].example.unique().tolist() for c in second]
    assert sorted(index for group in seen for index in group) == list(range(23))
    for start in range(9):
        later = list(source.chunks(0, start))
        assert len(later) == 8 - start
        for chunk, known in zip(later, first[start:], strict=True):
            assert torch.equal(chunk["language.L0"], known.rows["language.L0"])
    thirds = [next(iter(source.chunks(0, rank, every=3))) for rank in range(3)]
    assert all(
        torch.equal(thirds[i]["language.L0"], first[i].rows["language.L0"]) for i in range(3)
    )
    again = SubjectActivations(words, texts(23), sites="language.L0", batch_size=3, seed=6)
    assert seen != [
        c.places["language.L0"].example.unique().tolist() for c in again.placed_chunks(0)
    ]


def test_batches_are_of_like_length(words: Subject) -> None:
    examples = [Example(str(i), text=" ".join("abcdefghij"[: 2 + i % 7])) for i in range(70)]
    source = SubjectActivations(words, examples, sites="language.L0", batch_size=7)
    padded = rows = 0
    for chunk in source.placed_chunks(0):
        assert chunk.batch is not None
        padded += len(chunk.batch.tokens["language"])
        rows += chunk.rows["language.L0"].shape[0]
    assert padded < 1.1 * rows  # in random groups it is 1.5


def test_places_find_the_row_again_in_another_batch() -> None:
    subject = load("shapes-llava")
    examples = list(read_examples("scenes", subject.kind, 7))
    examples[2] = replace(examples[2], question=(examples[2].question or "") + " red red red")
    source = SubjectActivations(subject, examples, sites=["language.L1", "vision.L1"], batch_size=4)
    assert isinstance(source, PlacedActivations)
    checked = 0
    for chunk in source.placed_chunks(3):
        for site in ("language.L1", "vision.L1"):
            places, rows = chunk.places[site], chunk.rows[site]
            for at in (0, 11, len(rows) - 1):
                index, position = int(places.example[at]), int(places.position[at])
                alone = subject.prepare(examples=[examples[index]])
                tokens = alone.tokens[site.split(".")[0]]
                z = capture(subject, alone, z=[site]).z(site)
                row = z.reshape(-1, rows.shape[1])[flat_position(tokens, 0, position)]
                torch.testing.assert_close(row, rows[at], atol=1e-5, rtol=1e-4)
                checked += 1
    assert checked == 12
    with pytest.raises(ValueError, match=r"`position` must be one of the \d+ positions"):
        flat_position(tokens, 0, 10_000)


def test_examples_that_cannot_be_prepared_are_left_out_and_counted(words: Subject) -> None:
    examples = texts(6)
    examples[4] = Example("long", text="a " * 99)
    examples[1] = Example("empty", text="")
    source = SubjectActivations(words, examples, sites="language.L1", batch_size=3, seed=2)
    passes = [list(source.placed_chunks(0)) for _ in range(2)]
    ids = {source.ids[i] for c in passes[0] for i in c.places["language.L1"].example.tolist()}
    assert ids == {"t0", "t2", "t3", "t5"}
    assert [name for name, _ in source.skipped] == ["empty", "long"]
    assert "99 tokens" in source.skipped[1][1] or "100 tokens" in source.skipped[1][1]
    for chunk, known in zip(*passes, strict=True):  # knowing them beforehand changes nothing
        assert torch.equal(chunk.rows["language.L1"], known.rows["language.L1"])


def test_a_chunk_in_which_all_are_bad_is_empty_but_counts(words: Subject) -> None:
    examples = [Example("long", text="a " * 99), *texts(2)]
    source = SubjectActivations(words, examples, sites="language.L1", batch_size=1, seed=None)
    sizes = [chunk["language.L1"].shape for chunk in source.chunks(0)]
    assert sizes[0] == (0, 60) and sizes[1][0] > 0 and len(sizes) == 3
    assert [chunk.number for chunk in source.placed_chunks(0)] == [1, 2]
    nothing = SubjectActivations(words, examples[:1], sites="language.L1")
    with pytest.raises(ValueError, match=r"At least one of the 1 examples must be prepared, none"):
        list(nothing.chunks(0))


def test_examples_that_do_not_go_together_are_one_chunk_of_several_batches() -> None:
    """Images of two sizes, for a model whose processor leaves sizes alone."""
    processor = tiny_models.image_processor(20)
    subject = Subject(tiny_models.vit(), processor)
    examples = [Example(f"i{n}", image=Image.effect_noise((20, 20), 9 + n)) for n in range(3)]
    whole = list(SubjectActivations(subject, examples, sites="vision.*").placed_chunks(0))
    prepare = subject.prepare

    def one_by_one(*args, examples=None, **settings):
        if len(examples) > 1:
            raise ValueError("sizes differ")
        return prepare(*args, examples=examples, **settings)

    subject.prepare = one_by_one
    source = SubjectActivations(subject, examples, sites="vision.*")
    parts = list(source.placed_chunks(0))
    assert [part.number for part in parts] == [0, 0, 0] and source.skipped == []
    (chunk,) = source.chunks(0)
    torch.testing.assert_close(chunk["vision.L1"], whole[0].rows["vision.L1"])
    assert list(source.chunks(0, 1)) == []


def test_nan_is_named_by_site_and_batch() -> None:
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    source = SubjectActivations(
        subject, texts(6), sites=["language.L0", "language.L1"], batch_size=2, seed=None
    )
    list(source.chunks(0))
    # Word f (id 10) alone makes NaN, in layer 1 only.
    seen = []

    def poison(module, args, output):
        ids = seen[-1]
        return torch.where((ids == 10)[..., None], float("nan"), output)

    subject.model.register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["input_ids"]), with_kwargs=True
    )
    subject.model.model.layers[1].self_attn.v_proj.register_forward_hook(poison)
    with pytest.raises(
        ValueError,
        match=r"outputs of language.L1 must be finite, got NaN or infinity in \d+ of \d+ rows of "
        r"batch \d of epoch 4 \(t\d, t\d, \.\.\.\)",
    ):
        list(source.chunks(4))


def test_a_tower_that_no_example_reaches_is_a_sentence() -> None:
    subject = load("shapes-llava")
    examples = [Example(str(i), text="a red circle") for i in range(5)]
    source = SubjectActivations(subject, examples, sites=["language.L0", "vision.L1"], batch_size=2)
    whole = Forwards(subject.model)
    with pytest.raises(ValueError, match=r"reached by some example, vision.L1 is not. Give data"):
        list(source.chunks(0))
    assert whole.count <= 3  # found out with the first batch, not at the end
    mixed = [*examples, *read_examples("scenes", subject.kind, 1)]
    sizes = [
        chunk["vision.L1"].shape[0]
        for chunk in SubjectActivations(
            subject, mixed, sites=["vision.L1"], batch_size=2, seed=None
        ).chunks(0)
    ]
    assert sizes[:2] == [0, 0] and sizes[2] > 0
    unheard = SubjectActivations(subject, examples, sites="language.L0", roles=("image",))
    with pytest.raises(ValueError, match=r"Some position of language.L0 must have a role among im"):
        list(unheard.chunks(0))


def test_what_cannot_be_asked_is_refused(words: Subject) -> None:
    with pytest.raises(ValueError, match="language.L7|layer"):
        SubjectActivations(words, texts(2), sites="language.L7")
    with pytest.raises(ValueError, match=r"`roles` must be some of bos, .* got picture"):
        SubjectActivations(words, texts(2), sites="language.L0", roles=("picture",))
    with pytest.raises(ValueError, match=r"`roles` must be some of .*, generated, got pad\. Leave"):
        SubjectActivations(words, texts(2), sites="language.L0", roles=("text", "pad"))
    with pytest.raises(ValueError, match="at least one example, got none"):
        SubjectActivations(words, [], sites="language.L0")
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        SubjectActivations(words, texts(2), sites="language.L0", batch_size=0)


def test_a_tower_without_a_token_map_is_refused() -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 3], window_size=4
    )
    subject = Subject(SwinModel(config).eval(), name="swin")
    batch = subject.prepare(pixel_values=torch.zeros(2, 3, 32, 32))
    source = SubjectActivations(subject, [batch], sites="vision.L1")
    with pytest.raises(TapError, match=r"known which positions of the input vision.L1 has"):
        list(source.chunks(0))


def test_the_record_tells_model_data_and_roles_apart(words: Subject) -> None:
    def about(**changes):
        given = {"data": texts(3), "sites": "language.L1", **changes}
        return SubjectActivations(words, given.pop("data"), **given).about

    base = about()
    assert base["subject"]["fingerprint"] and base["data"]["examples"] == 3
    assert base == about()
    other = [replace(e, text=(e.text or "") + " a") for e in texts(3)]
    assert about(data=other)["data"]["digest"] != base["data"]["digest"]
    pictures = [
        [Example("p", text="a", image=Image.new("RGB", (4, 4), color))] for color in ("red", "blue")
    ]
    assert len({about(data=data)["data"]["digest"] for data in pictures}) == 2
    batches = [words.prepare(text=[text]) for text in ("a b", "a c")]
    assert about(data=batches[:1])["data"]["digest"] != about(data=batches[1:])["data"]["digest"]


def test_long_texts_are_cut_between_tokens() -> None:
    subject = load("prose-lm")
    examples = list(read_examples("prose", subject.kind, 4))
    pieces = list(text_windows(examples, subject.tokenizer, 101))
    for example in examples:
        mine = [piece for piece in pieces if piece.id.split("#")[0] == example.id]
        assert "".join(piece.text or "" for piece in mine) == example.text
        assert [piece.id for piece in mine] == [f"{example.id}#{n}" for n in range(len(mine))]
        lengths = [len(subject.tokenizer(piece.text)["input_ids"]) for piece in mine]
        assert max(lengths) <= 101 and all(length >= 95 for length in lengths[:-1])
    source = SubjectActivations(subject, examples, sites="language.L0", context=101)
    assert source.ids == [piece.id for piece in pieces]
    rows = sum(chunk["language.L0"].shape[0] for chunk in source.chunks(0))
    total = sum(len(subject.tokenizer(piece.text)["input_ids"]) for piece in pieces)
    assert rows == total and not source.skipped
    short = [replace(example, id="s", text="one two") for example in examples[:1]]
    assert list(text_windows(short, subject.tokenizer, 101)) == short
    with pytest.raises(ValueError, match="leave room for a token"):
        SubjectActivations(subject, examples, sites="language.L0", context=1)
