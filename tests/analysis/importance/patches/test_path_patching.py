"""Path patching against four passes with plain hooks, and against circuits that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.importance.patches.pairs import Pairs, pair_up
from analysis.importance.patches.patched_positions import Positions
from analysis.importance.patches.path_patching import OUTPUT, path_patch
from probes.heads import Head
from probes.loading import load
from probes.readers import read_examples
from probes.subject import Subject
from tests import small_pairs

Change = Callable[[Tensor], Tensor]


@contextmanager
def hooked(inputs: dict[nn.Module, Change], outputs: dict[nn.Module, Change]) -> Iterator[None]:
    """Changes of what modules read and of what they give out, each a function of one tensor."""
    handles = [
        m.register_forward_pre_hook(lambda _, args, f=f: (f(args[0]), *args[1:]))
        for m, f in inputs.items()
    ]
    handles += [m.register_forward_hook(lambda _, __, out, f=f: f(out)) for m, f in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class FourPasses:
    """Path patching on a llama of six heads of width 10 on two key heads, by hooks alone."""

    def __init__(self, subject: Subject, pairs: Pairs) -> None:
        self.subject, self.pairs = subject, pairs
        self.layers: Any = subject.model.model.layers  # type: ignore[union-attr]
        self.z = [self.heads_of(batch) for batch in (pairs.clean, pairs.corrupted)]
        self.before = self.difference({}, {})
        self.mlps: dict[nn.Module, Tensor] = {}
        with hooked({}, {x.mlp: self.keep(self.mlps, x.mlp) for x in self.layers}):
            subject.forward(pairs.clean)

    @staticmethod
    def keep(into: dict, key: Any) -> Change:
        return lambda value: into.__setitem__(key, value.clone()) or value

    def heads_of(self, batch: Any) -> list[Tensor]:
        seen: dict[int, Tensor] = {}
        hooks = {x.self_attn.o_proj: self.keep(seen, n) for n, x in enumerate(self.layers)}
        with hooked(hooks, {}):
            self.subject.forward(batch)
        return [seen[n] for n in range(len(self.layers))]

    def difference(self, inputs: dict, outputs: dict) -> Tensor:
        with hooked(inputs, outputs):
            return self.pairs.difference(self.subject.forward(self.pairs.clean))[0]

    def third(self, sender: Head, freeze: bool) -> tuple[dict, dict]:
        clean, corrupted = self.z
        part = slice(sender.head * 10, sender.head * 10 + 10)
        held = [z.clone() for z in clean]
        held[sender.layer][..., part] = corrupted[sender.layer][..., part]
        inputs = {
            x.self_attn.o_proj: lambda _, z=z: z for x, z in zip(self.layers, held, strict=True)
        }
        frozen = {mlp: lambda _, v=v: v for mlp, v in self.mlps.items()} if freeze else {}
        return inputs, frozen

    def to_output(self, sender: Head, freeze: bool = False) -> Tensor:
        return self.before - self.difference(*self.third(sender, freeze))

    def to_head(self, sender: Head, receiver: Head, via: str, freeze: bool = False) -> Tensor:
        attention = self.layers[receiver.layer].self_attn
        modules = [getattr(attention, f"{letter}_proj") for letter in "qkv"]
        if via != "all":
            modules = [modules[["query", "key", "value"].index(via)]]
        seen: dict[nn.Module, Tensor] = {}
        inputs, frozen = self.third(sender, freeze)
        self.difference(inputs, frozen | {m: self.keep(seen, m) for m in modules})

        # A key head serves three query heads; only the receiver may notice.
        def others_as_they_were(z: Tensor) -> Tensor:
            part = slice(receiver.head * 10, receiver.head * 10 + 10)
            kept = self.z[0][receiver.layer].clone()
            kept[..., part] = z[..., part]
            return kept

        return self.before - self.difference(
            {attention.o_proj: others_as_they_were}, {m: lambda _, v=v: v for m, v in seen.items()}
        )


SENDERS = [Head("language", 0, 1), Head("language", 0, 4), Head("language", 1, 5)]
RECEIVERS = [Head("language", 1, 0), Head("language", 2, 2), Head("language", 2, 5)]


@pytest.mark.parametrize(("copies", "freeze"), [(1, False), (5, False), (1, True)])
def test_every_path_equals_four_passes_with_plain_hooks(copies: int, freeze: bool) -> None:
    subject = small_pairs.llama()
    pairs = pair_up(subject, small_pairs.examples())
    vias = ("query", "key", "value", "all")
    frame = path_patch(
        subject, [pairs], SENDERS, [*RECEIVERS, OUTPUT], vias, copies=copies, freeze_mlps=freeze
    )
    assert len(frame) == 2 * (1 + 3 * 4) + (1 + 2 * 4)
    slow = FourPasses(subject, pairs)
    for line in frame.itertuples():
        sender = Head.parse(line.sender)
        if line.receiver == OUTPUT:
            expected = slow.to_output(sender, freeze)
            assert line.via == "direct"
        else:
            expected = slow.to_head(sender, Head.parse(line.receiver), line.via, freeze)
        assert line.value == pytest.approx(float(expected.mean()), abs=2e-5), line
        assert (line.n, line.direction) == (5, "noising")
        assert line.ci_low <= line.value <= line.ci_high
    assert frame["value"].abs().max() > 1e-2


def test_denoising_is_noising_of_the_exchanged_pair_with_the_other_sign() -> None:
    subject = small_pairs.gpt2()
    pairs = [
        pair_up(subject, small_pairs.examples(2)),
        pair_up(subject, small_pairs.examples()[2:]),
    ]
    senders, receivers = [Head("language", 0, 2)], [Head("language", 1, 0), OUTPUT]
    made = path_patch(subject, pairs, senders, receivers, direction="denoising")
    turned = [one.exchanged() for one in pairs]
    other = path_patch(subject, turned, senders, receivers)
    assert made["value"].tolist() == pytest.approx((-other["value"]).tolist(), abs=1e-12)
    assert made["share"].tolist() == pytest.approx(other["share"].tolist(), rel=1e-9)
    whole = path_patch(
        subject,
        [pair_up(subject, small_pairs.examples())],
        senders,
        receivers,
        direction="denoising",
    )
    assert whole["value"].tolist() == pytest.approx(made["value"].tolist(), abs=1e-5)


def test_a_sender_that_does_not_change_changes_nothing_at_all() -> None:
    """In bfloat16 too, where a closed form and the model's kernel round differently."""
    subject = small_pairs.llama()
    subject.model.to(torch.bfloat16)
    examples = small_pairs.examples()
    pairs = pair_up(subject, examples)
    same = Pairs(pairs.clean, pairs.clean, pairs.tower, pairs.position, pairs.correct, pairs.wrong)
    frame = path_patch(subject, [same], SENDERS, RECEIVERS, ("query", "key", "value", "all"))
    assert not frame["value"].any()


def test_positions_of_the_sender() -> None:
    """Noise at the read position alone reaches later heads through their queries only there."""
    subject = small_pairs.llama()
    pairs = pair_up(subject, small_pairs.examples())
    frame = path_patch(
        subject, [pairs], SENDERS[:1], [RECEIVERS[1]], ("query", "key"), at=Positions("answer")
    )
    every = path_patch(subject, [pairs], SENDERS[:1], [RECEIVERS[1]], ("query", "key"))
    query, key = frame["value"]
    assert query == pytest.approx(every["value"][0], abs=1e-6)
    assert key != pytest.approx(every["value"][1], abs=1e-4)


Shares = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def frames() -> dict[str, Any]:
    """Every path from layer 0 to layer 1 of repeat-lm, by what is corrupted."""
    subject = load("repeat-lm")
    heads = [[Head("language", layer, head) for head in range(8)] for layer in range(2)]
    found = {}
    for corruption in ("context", "word"):
        every = read_examples("pairs-induction")
        chosen = [example for example in every if example.extra["corruption"] == corruption]
        pairs = [pair_up(subject, chosen[:16])]
        found[corruption] = path_patch(subject, pairs, heads[0], [*heads[1], OUTPUT], copies=24)
    return found


@pytest.fixture(scope="module")
def shares(frames: dict[str, Any]) -> Shares:
    """Sum of the shares of all paths, by what is corrupted and the receivers' input."""
    return {
        (corruption, via): float(lines["share"].sum())
        for corruption, frame in frames.items()
        for via, lines in frame.groupby("via")
    }


def test_induction_is_key_composition(shares: Shares, frames: dict[str, Any]) -> None:
    """The words before the answer exchanged: layer 0 tells layer 1 where to look, by keys."""
    assert shares["context", "key"] > 0.15
    assert shares["context", "key"] > 1.5 * shares["context", "value"]
    assert abs(shares["context", "query"]) < 0.01
    assert abs(shares["context", "direct"]) < 0.01
    frame = frames["context"]
    first = frame.loc[frame["value"].idxmax()]
    assert first["via"] == "key"
    assert first["ci_low"] > 0
    induction = {f"language.L1H{head}" for head in (0, 1, 4, 5, 7)}  # attention above .7
    assert first["receiver"] in induction


def test_what_is_copied_goes_by_values(shares: Shares) -> None:
    """The word itself replaced: what layer 0 adds to it is copied, where to look stays."""
    assert shares["word", "value"] > 0.3
    for via in ("query", "key", "direct"):
        assert abs(shares["word", via]) < 0.15 * shares["word", "value"]


def test_what_cannot_be_patched_is_said() -> None:
    subject = small_pairs.llama()
    pairs = [pair_up(subject, small_pairs.examples())]
    early, late = Head("language", 0, 0), Head("language", 2, 0)
    with pytest.raises(ValueError, match="A receiver must run after a sender, none does"):
        path_patch(subject, pairs, [late], [early])
    with pytest.raises(ValueError, match="`via` must be one or several of query, key, value, all"):
        path_patch(subject, pairs, [early], [late], "scores")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="A receiver must be a head or 'output', got 'logits'"):
        path_patch(subject, pairs, [early], ["logits"])
    with pytest.raises(ValueError, match="must have at least one pair"):
        path_patch(subject, [], [early], [late])
    with pytest.raises(ValueError, match=r"cannot send at these positions\. No position of"):
        path_patch(subject, pairs, [early], [late], at=Positions("image"))
    written = small_pairs.llama(attn_implementation="eager")
    eager = [pair_up(written, small_pairs.examples())]
    with pytest.raises(ValueError, match="it writes out its own softmax"):
        path_patch(written, eager, [early], [late], "key")
    plain = path_patch(subject, pairs, [early], [late], ("value", "all"))
    made = path_patch(written, eager, [early], [late], ("value", "all"))
    assert made["value"].tolist() == pytest.approx(plain["value"].tolist(), abs=2e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_a_sender_in_a_layer_of_windows() -> None:
    """Qwen2.5-VL: a layer of windows, and a packed one, send to each other and to the text."""
    from small_vlms import qwen2_5

    subject, pairs = _packed(qwen2_5())
    senders = [Head("vision", 0, 1), Head("vision", 1, 0)]
    receivers = [Head("language", 0, 1), OUTPUT]
    frame = path_patch(subject, pairs, senders, receivers, ("value", "all"))
    assert len(frame) == 2 * 3
    by_via = frame.groupby("via")["value"].apply(lambda values: values.abs().max())
    assert by_via["direct"] == 0  # the last word does not see the image itself
    assert by_via["value"] > 0 and by_via["all"] > 0
    with pytest.raises(ValueError, match=r"of one attention call, vision\.L0 makes several"):
        path_patch(subject, pairs, senders[:1], [Head("vision", 0, 0)], "value")
    both = path_patch(subject, pairs, senders[:1], [Head("vision", 1, 0)], "value")
    assert both["value"].abs().max() > 0


def _packed(model: Any) -> tuple[Subject, list[Pairs]]:
    import numpy as np
    from PIL import Image
    from small_vlms import qwen_images

    processor = qwen_images()
    subject = Subject(model)
    halves = []
    for seed in (0, 1):
        values = np.random.default_rng(seed).integers(0, 256, (60, 100, 3), dtype=np.uint8)
        made = dict(processor(images=[Image.fromarray(values)], return_tensors="pt"))
        count = int(made["image_grid_thw"].prod()) // 4
        made["input_ids"] = torch.tensor([[5, *[4] * count, 6, 9, 10]])
        made["mm_token_type_ids"] = (made["input_ids"] == 4).long()
        halves.append(subject.prepare(**made))
    last = torch.tensor([halves[0].tensors["input_ids"].shape[1] - 1])
    return subject, [Pairs(*halves, "language", last, torch.tensor([11]), torch.tensor([12]))]
