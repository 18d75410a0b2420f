"""Find out what a subject's output is and what it should be: the reader of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.readings import Kind, Reading, ReadingError, next_tokens, vectors_in

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

Data = Callable[[], Iterable["Batch"]]
"""Gives the batches of the data anew each time it is called."""

PREDICTED = "predicted"
"""As `label`: what the intact model says is taken for the truth."""
ZERO_SHOT_PROMPT = "a photo of a {}"


class Reader:
    """Says for each batch where the output is read and what should stand there.

    Attributes:
        kind: ``tokens``, ``class`` or ``features``.
        known_targets: whether there is something to be right about.
        classes: number of classes or words that a target is one of, 0 where there are none.
    """

    def __init__(self, subject: Subject, data: Data, *, label: str = "", seed: int = 0) -> None:
        self.subject, self.label, self.seed = subject, label, seed
        first = next(iter(data()), None)
        if first is None:
            raise ReadingError("There must be at least one example to read, got none.")
        output = subject.forward(first)
        self.kind: Kind
        self._zero_shot: Tensor | None = None
        self._scale = 1.0
        self._names: dict[str, int] = self._class_names()
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        self._features = vectors_in(output, list(subject.towers))
        if isinstance(logits, Tensor) and logits.ndim in (2, 3):
            self.kind = "tokens" if logits.ndim == 3 and "input_ids" in first.tensors else "class"
            if logits.ndim == 3 and self.kind == "class":
                self.kind, self._features = "features", self._features
            self.classes = logits.shape[-1]
        elif self._features:
            self.kind, self.classes = "features", 0
            if hasattr(output, "logits_per_image") and self._label_words(data):
                self._read_zero_shot(data, first, output)
        else:
            raise ReadingError(
                f"The output of {type(subject.model).__name__} must be logits or vectors, got "
                f"{type(output).__name__}, so no effect on it can be told."
            )
        self._predicts = self.kind == "tokens" and self._is_causal()
        self.known_targets = self._has_targets(first, data)

    def reading(self, batch: Batch) -> Reading:
        """Where this batch is read.

        Raises:
            ReadingError: a label is missing or is none of the model's classes; the sentence names
                the example.
        """
        if self.kind == "tokens":
            return self._tokens(batch)
        example = torch.arange(batch.size)
        unknown = torch.full_like(example, -1)
        target, shuffled = unknown, unknown
        if self.kind == "class" and self.known_targets and self.label != PREDICTED:
            target = torch.tensor([self._class_of(e) for e in batch.examples])
            shuffled = self._other_class(batch.examples, target)
        return Reading(
            self.kind,
            batch.size,
            example,
            unknown,
            target,
            unknown.clone(),
            shuffled,
            self._features,
            self._zero_shot,
            self._scale,
        )

    def predicted(self, reading: Reading, batch: Batch, read: Tensor) -> Reading:
        """The reading with the intact model's own answers as targets, if that was asked for."""
        if self.label != PREDICTED or self.kind == "features":
            return reading
        target = read.argmax(-1).cpu()
        shuffled = (
            self._other_class(batch.examples, target)
            if self.kind == "class"
            else self._other_tokens(batch, reading.example, target)
        )
        return replace(reading, target=target, shuffled=shuffled)

    def _tokens(self, batch: Batch) -> Reading:
        name = "decoder_input_ids" if "decoder_input_ids" in batch.tensors else "input_ids"
        tower = "decoder" if name != "input_ids" and "decoder" in batch.tokens else "language"
        places = next_tokens(batch, tower, name)
        ids = batch.tensors[name].cpu()
        starts = batch.answer_starts or (-1,) * batch.size
        for row, (example, mine) in enumerate(zip(batch.examples, places, strict=True)):
            if example.answer is not None and starts[row] < 0:
                raise ReadingError(
                    f"Example {example.id!r}: the tokens of its answer must be found in what the "
                    "model reads, and are not. Leave the answer out, or write it into the text.",
                    example.id,
                )
            if not mine and name != "input_ids" and not self.known_targets:
                mine.append(_length(batch, row, ids.shape[1]))  # what would come next
            if not mine:
                raise ReadingError(
                    f"Example {example.id!r} must have a token to predict, it has none. "
                    "Give it an answer or a longer text.",
                    example.id,
                )
        rows = [row for row, mine in enumerate(places) for _ in mine]
        example = torch.tensor(rows)
        where = torch.tensor([position for mine in places for position in mine])
        target = torch.full_like(where, -1)
        shuffled = target
        if self._predicts and self.known_targets and self.label != PREDICTED:
            target = ids[example, where]
            shuffled = self._other_tokens(batch, example, target)
        position = where - 1 if self._predicts else where
        wrong = torch.full_like(where, -1)
        return Reading(
            "tokens", batch.size, example, position, target, wrong, shuffled, self._features
        )

    def _is_causal(self) -> bool:
        towers = self.subject.towers
        name = "decoder" if "decoder" in towers else "language"
        return name in towers and all(site.causal for site in towers[name].sites.values())

    def _has_targets(self, batch: Batch, data: Data) -> bool:
        if self.label == PREDICTED:
            return self.kind != "features"
        if self.kind == "tokens":
            decodes = "decoder_input_ids" in batch.tensors
            return self._predicts and (not decodes or any(e.answer for e in batch.examples))
        if self.kind == "class":
            labels = (self._label_of(e) for one in data() for e in one.examples)
            return any(label is not None for label in labels)
        return False

    def _label_of(self, example: Example) -> int | str | None:
        if not self.label:
            return example.label
        return example.label if self.label == "label" else example.extra.get(self.label)

    def _class_names(self) -> dict[str, int]:
        names = getattr(self.subject.config, "id2label", None) or {}
        return {str(word): int(index) for index, word in names.items()}

    def _class_of(self, example: Example) -> int:
        label = self._label_of(example)
        field = self.label or "label"
        if label is None:
            raise ReadingError(
                f"Example {example.id!r} must have a {field!r} for this effect, it has none. "
                "Add it, or choose an effect without labels: jsd, flip or cosine."
            )
        found = self._names.get(str(label)) if isinstance(label, str) else int(label)
        if found is None and str(label).lstrip("-").isdigit():
            found = int(label)
        if found is None or not 0 <= found < self.classes:
            known = ", ".join(list(self._names)[:6]) or "numbers"
            raise ReadingError(
                f"The {field!r} of example {example.id!r} must be a class of the model (0 to "
                f"{self.classes - 1}: {known} ...), got {label!r}. Correct it, or name the field "
                "with `--label`."
            )
        return found

    def _other_class(self, examples: Sequence[Example], target: Tensor) -> Tensor:
        if self.classes < 2:
            return torch.full_like(target, -1)
        steps = [1 + _number(e.id, self.seed) % (self.classes - 1) for e in examples]
        return (target + torch.tensor(steps)) % self.classes

    def _other_tokens(self, batch: Batch, example: Tensor, target: Tensor) -> Tensor:
        """Each example's targets in another order, none where it was; a random word for one."""
        shuffled = torch.empty_like(target)
        for row, item in enumerate(batch.examples):
            mine = (example == row).nonzero()[:, 0]
            own = target[mine]
            draw = torch.Generator().manual_seed(_number(item.id, self.seed) % 2**31)
            if own.unique().numel() < 2:
                step = torch.randint(1, max(self.classes, 2), own.shape, generator=draw)
                shuffled[mine] = (own + step) % max(self.classes, 2)
                continue
            choice = torch.randint(0, own.numel(), own.shape, generator=draw)
            for _ in range(own.numel()):
                same = own[choice] == own
                if not bool(same.any()):
                    break
                choice = torch.where(same, (choice + 1) % own.numel(), choice)
            shuffled[mine] = own[choice]
        return shuffled

    def _label_words(self, data: Data) -> list[str]:
        words = [self._label_of(example) for batch in data() for example in batch.examples]
        if not all(isinstance(word, str) for word in words):
            return []
        return sorted({str(word) for word in words})

    def _read_zero_shot(self, data: Data, batch: Batch, output: Any) -> None:
        """Classes from the words that the data's labels use, told by image-text cosine."""
        words = self._label_words(data)
        if len(words) < 2:
            return
        picture = batch.examples[0].pictures[:1]
        vectors = []
        for word in words:
            asked = self.subject.prepare(
                text=ZERO_SHOT_PROMPT.format(word), images=list(picture), chat_template=False
            )
            vectors.append(self.subject.forward(asked).text_embeds[0].float())
        self._zero_shot = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
        scale = getattr(self.subject.model, "logit_scale", None)
        self._scale = float(scale.detach().exp()) if isinstance(scale, Tensor) else 1.0
        self._names = {word: index for index, word in enumerate(words)}
        self.kind, self.classes = "class", len(words)


def _length(batch: Batch, row: int, longest: int) -> int:
    """Real tokens of a row of the decoder."""
    mask = batch.tensors.get("decoder_attention_mask")
    return int(mask[row].sum()) if isinstance(mask, Tensor) else longest


def _number(example_id: str, seed: int) -> int:
    text = f"{seed}\0{example_id}\0target".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
