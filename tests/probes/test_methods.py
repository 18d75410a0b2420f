"""Methods: what they may see before they act, their control, and that they leave no trace."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.edit import EditPlace, EditReport
from probes.edits.method import Prepared
from probes.heads import Site
from probes.listening import attach
from probes.subject import Subject
from probes.tap import Attached, TapError
from tests import tiny_models as tiny
from tests.probes.test_tap import IDS, LEFT, hooks


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llama()), tiny.tokenizer("left"))


@pytest.fixture(scope="module")
def seeing() -> Subject:
    return Subject(tiny.llava(), tiny.llava_processor())


@dataclass
class Doubling:
    """Doubles heads by a factor that it finds before each batch; keeps a diary."""

    subject: Subject | None = None
    diary: list[Any] = field(default_factory=list)
    label: str = "doubling"
    heads: Any = "language.L1H2"
    stage: Literal["z"] = "z"
    factor: float = 0.0

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        self.diary.append(("apply", place.step, place.batch.size))
        return values * self.factor

    def before(self, batch: Any, generated: int) -> None:
        assert self.subject is not None
        plain = self.subject.forward(batch).logits
        self.diary.append(("before", generated, plain))
        self.factor = 2.0


@dataclass(frozen=True)
class DoublingMethod:
    made: Doubling
    label: str = "doubling"

    def on(self, subject: Subject) -> Prepared:
        self.made.subject = subject
        return Prepared(edits=(self.made,), before=self.made.before)


@dataclass(frozen=True)
class Ready:
    """A method that was prepared by hand."""

    prepared: Prepared
    label: str

    def on(self, subject: Subject) -> Prepared:
        return self.prepared


def fail(batch: Any, generated: int) -> None:
    raise ZeroDivisionError


def test_before_sees_the_model_without_this_method_but_with_others(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    with edit(subject, edits.zero("L0H1")):
        without = subject.forward(batch).logits
    with edit(subject, edits.zero("L0H1"), edits.scale("L1H2", 2.0)):
        expected = subject.forward(batch).logits
    made = Doubling()
    with edit(subject, edits.zero("L0H1"), DoublingMethod(made)) as reports:
        found = subject.forward(batch).logits
    assert torch.equal(found, expected)
    assert [entry[0] for entry in made.diary] == ["before", "apply"]
    assert torch.equal(made.diary[0][2], without)
    assert str(reports[1]) == "doubling on 1 heads: fired 1, touched 11"  # z of padding is 0


def test_before_comes_once_per_batch_with_the_tokens_to_be_written(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    made = Doubling()
    with edit(subject, DoublingMethod(made)):
        capture(subject, batch, z=["L2"])
        subject.generate(batch, max_new_tokens=3, min_new_tokens=3)
    assert [entry[:2] for entry in made.diary] == [
        ("before", 0), ("apply", 0), ("before", 3), ("apply", 0), ("apply", 1), ("apply", 2),
    ]  # fmt: skip


def test_nothing_is_left_of_a_method_whose_look_ahead_failed(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    plain = subject.forward(batch).logits
    made = Doubling()
    method = Ready(Prepared(edits=(made,), before=fail), "failing")
    count = hooks(subject.model)
    with pytest.raises(ZeroDivisionError), edit(subject, method):
        subject.forward(batch)
    assert hooks(subject.model) == count
    assert torch.equal(subject.forward(batch).logits, plain)


def test_the_residual_stream_is_what_blocks_read_and_give(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    sites = [site.site for site in subject.layout.sites]
    entered: dict[Site, Tensor] = {}
    left: dict[Site, Tensor] = {}
    watcher = Attached(
        frozenset(sites),
        on_residual=lambda site, x, step: entered.update({site: x.clone()}),
        on_block_output=lambda site, x, step: left.update({site: x.clone()}),
    )
    subject.forward(batch, output_hidden_states=True)  # transformers leaves hooks of its own
    count = hooks(subject.model)
    with attach(subject, watcher):
        states = subject.forward(batch, output_hidden_states=True).hidden_states
    assert hooks(subject.model) == count
    for layer, site in enumerate(sites):
        assert torch.equal(entered[site], states[layer])
        if layer + 1 < len(sites):
            assert torch.equal(left[site], states[layer + 1])
    assert set(left) == set(sites)


def test_shared_blocks_and_blocks_of_two_layers_of_attention() -> None:
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=31, embedding_size=11, hidden_size=15, num_hidden_layers=3,
        num_attention_heads=3, intermediate_size=23,
    )  # fmt: skip
    albert = Subject(AlbertModel(config).eval())
    t5 = Subject(tiny.t5())
    for subject, batch in (
        (albert, albert.prepare(input_ids=IDS)),
        (t5, t5.prepare(input_ids=IDS, decoder_input_ids=IDS[:, :5])),
    ):
        sites = [s for s in subject.layout.sites if s.site in subject.layout.anatomy.blocks]
        heard: list[tuple[Site, Tensor]] = []
        watcher = Attached(
            frozenset(s.site for s in sites),
            on_residual=lambda site, x, step, heard=heard: heard.append((site, x.clone())),
        )
        with attach(subject, watcher):
            output = subject.forward(batch, output_hidden_states=True)
        assert sorted(site for site, _ in heard) == sorted(s.site for s in sites)
        states = {
            "language": getattr(output, "hidden_states", None),
            "encoder": getattr(output, "encoder_hidden_states", None),
            "decoder": getattr(output, "decoder_hidden_states", None),
        }
        states["cross"] = states["decoder"]
        for site, x in heard:
            assert torch.equal(x, states[site.tower][site.layer]), site  # type: ignore[index]


def test_roles_of_queries_and_keys_in_prompt_and_steps(seeing: Subject) -> None:
    import numpy as np

    images = [np.full((30, 30, 3), value, np.uint8) for value in (30, 200)]
    batch = seeing.prepare(
        ["<image> the red cat", "<image> a dog and the blue cat"], images, padding_side="left"
    )
    tokens = batch.tokens["language"]
    width = int(tokens.lengths[0])
    roles = tokens.role.reshape(2, width)
    seen: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def look(pattern: Tensor, place: EditPlace) -> Tensor:
        assert pattern.shape[0] == 2 and pattern.shape[3] == place.keys_with("text").shape[1]
        seen[place.step] = (
            place.queries_with("generated"), place.keys_with("image"), place.keys_with("pad"),
            place.key_index,
        )  # fmt: skip
        return pattern

    with edit(seeing, edits.edit_pattern("language.L1", look)):
        seeing.generate(batch, max_new_tokens=3, min_new_tokens=3)
    names = ("bos", "system", "text", "image", "special", "cls", "register", "generated", "pad")
    image, pad = roles == names.index("image"), roles == names.index("pad")
    assert image.sum(1).tolist() == [16, 16] and pad.any(1).tolist() == [True, False]
    assert sorted(seen) == [0, 1, 2]
    for step, (generated, keys, padding, index) in seen.items():
        assert torch.equal(keys[:, :width], image) and not keys[:, width:].any()
        assert torch.equal(padding[:, :width], pad) and not padding[:, width:].any()
        assert keys.shape[1] == width + step
        assert bool(generated.all()) == (step > 0)
        assert index[:, 0].tolist() == [0, width + 3]  # three generated positions in each row


def test_a_model_called_alone_has_no_roles(subject: Subject) -> None:
    change = edits.edit_pattern("L1", lambda p, place: p * place.keys_with("text")[:, None, None])
    said = "An edit at language.L1 must know what each key is, but"
    with pytest.raises(ValueError, match=said), torch.no_grad(), edit(subject, change):
        subject.model(input_ids=IDS)


def test_logits_of_a_method_are_read_in_generation_only(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)

    def only_seven(batch: Any, report: EditReport) -> Any:
        def process(ids: Tensor, scores: Tensor) -> Tensor:
            report.fired += 1
            report.touched += len(scores)
            return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([7]), 0.0)

        return process

    prepared = Prepared(logits=only_seven)
    method = Ready(prepared, "sevens")
    plain = subject.generate(batch, max_new_tokens=2).ids
    with edit(subject, method) as (report,):
        assert subject.generate(batch, max_new_tokens=2).ids.tolist() == [[7, 7], [7, 7]]
    assert (report.fired, report.touched) == (2, 4)
    assert torch.equal(subject.generate(batch, max_new_tokens=2).ids, plain)
    with pytest.raises(TapError, match="Edit sevens on"), edit(subject, method):
        report.fired = 0
        subject.forward(batch)


@pytest.mark.parametrize("way", ["projection", "call"])
@pytest.mark.parametrize("factor", [2.5, 0.0])
def test_the_control_moves_z_by_as_much_in_other_heads(
    subject: Subject, way: str, factor: float
) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    of = edits.scale(["L1H0", "L1H3"], factor)
    plain = capture(subject, batch, z=["L1"]).z("L1")

    def z_under(change: Any) -> Tensor:
        # A pattern that is captured brings the mode, and edits are then made at the call.
        patterns = ["L0H0"] if way == "call" else ()
        with edit(subject, change):
            return capture(subject, batch, patterns=patterns, z=["L1"]).z("L1")

    change = z_under(of) - plain
    drawn = set()
    for seed in range(4):
        moved = z_under(edits.matched_random(of, seed)) - plain
        for row, query in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
            if not LEFT[row, query]:
                continue
            heads = moved[row, query].norm(dim=-1).nonzero().flatten().tolist()
            assert len(heads) == 2
            drawn.add(tuple(heads))
            assert float(moved[row, query].norm()) == pytest.approx(
                float(change[row, query].norm()), rel=1e-5
            )
            along = (moved[row, query] * plain[row, query]).sum()
            assert (float(along) > 0) == (factor > 1)
    assert len(drawn) > 1


def test_the_control_of_a_pattern_edit_shows_listeners_the_plain_pattern(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    of = edits.knock_out("L1H0", keys=[0])
    plain = capture(subject, batch, patterns=["L1"], z=["L1"])
    with edit(subject, of):
        knocked = capture(subject, batch, patterns=["L1"], z=["L1"])
    with edit(subject, edits.matched_random(of, 1)) as (report,):
        control = capture(subject, batch, patterns=["L1"], z=["L1"])
    assert torch.equal(plain.pattern("L1"), control.pattern("L1"))  # type: ignore[arg-type]
    assert not torch.equal(plain.pattern("L1"), knocked.pattern("L1"))  # type: ignore[arg-type]
    sizes = [(seen.z("L1") - plain.z("L1")).flatten(2).norm(dim=-1) for seen in (knocked, control)]
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-4, atol=1e-5)
    assert report.touched == 2 * 7  # query 0 too, which may read nothing else
    assert report.label == "random heads like knock_out(all -> 0) (seed=1)"


def test_a_control_beside_other_edits_moves_z_as_its_edit_would(subject: Subject) -> None:
    """Other edits of the same heads, before the control in the call, are neither undone nor
    counted twice."""
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    others = [edits.knock_out("L1H2", keys=[5]), edits.scale(["L1H0", "L1H1"], 3.0)]
    of = edits.knock_out(["L1H0", "L1H3"], keys=[4])

    def run(*changes: Any) -> tuple[Tensor, list[EditReport]]:
        with edit(subject, *changes) as reports:
            return capture(subject, batch, z=["L1"]).z("L1"), reports

    base, plain = run(*others)
    moved, beside = run(*others, edits.matched_random(of, 3))
    assert [str(report) for report in beside[:2]] == [str(report) for report in plain]
    # What the edit does to its heads, before the scaling that comes behind it.
    unscaled, _ = run(others[0])
    knocked, _ = run(others[0], of)
    wanted = (knocked - unscaled).flatten(2).norm(dim=-1)
    torch.testing.assert_close((moved - base).flatten(2).norm(dim=-1), wanted, atol=1e-4, rtol=1e-4)
    assert beside[2].touched == 2 * int((wanted > 0).sum()) > 0
    changed = (moved - base).norm(dim=-1) > 0
    assert changed.any((0, 1)).sum() == 2


def test_a_control_counts_what_it_changed(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    silent = edits.zero(["L1H0", "L1H1", "L1H2"])
    with edit(subject, silent, edits.matched_random(edits.scale("L1H3", 2.0), 1)) as reports:
        found = capture(subject, batch, z=["L1"]).z("L1")
    with edit(subject, silent):
        plain = capture(subject, batch, z=["L1"]).z("L1")
    assert reports[1].touched == int((found != plain).any(-1).sum())


def test_a_control_of_nothing_is_refused(subject: Subject) -> None:
    prepared = Prepared(logits=lambda batch, report: None)
    method = Ready(prepared, "sevens")
    with (
        pytest.raises(ValueError, match="sevens must change heads to have a control"),
        edit(subject, edits.matched_random(method)),
    ):
        pass
