"""Find out what a subject's output is and what it should be: the reader of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.readings import (
    IMAGE_TOWER,
    Kind,
    Reading,
    ReadingError,
    next_tokens,
    real_positions,
    vectors_in,
)
from analysis.importance.shuffled_targets import other_classes, other_words
from probes.replay import logits_unread

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
        output = subject.forward(first, **logits_unread(subject, first))  # only its shape matters
        self.kind: Kind
        self._zero_shot: Tensor | None = None
        self._scale = 1.0
        self._names: dict[str, int] = self._class_names()
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        self._features = vectors_in(output, list(subject.towers))
        if isinstance(logits, Tensor) and logits.ndim == 3 and _ids_of(first):
            self.kind, self.classes = "tokens", logits.shape[-1]
        elif isinstance(logits, Tensor) and logits.ndim == 2:
            self.kind, self.classes = "class", logits.shape[-1]
        elif self._features:
            self.kind, self.classes = "features", 0
            if hasattr(output, "logits_per_image") and self._label_words(data):
                self._read_zero_shot(data, first, output)
        else:
            raise ReadingError(
                f"The output of {type(subject.model).__name__} must be logits or vectors, got "
                f"{type(output).__name__}, so no effect on it can be told."
            )
        self._causal = self._is_causal()
        self._predicts = self.kind == "tokens" and self._causal and self._tells_words()
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
        target, wrong, shuffled, position = unknown, unknown, unknown, unknown
        if self.kind == "features":
            position = self._standing_for(batch)
        if self.kind == "class" and self.known_targets and self.label != PREDICTED:
            target = torch.tensor([self._class_of(e) for e in batch.examples])
            wrong = torch.tensor([self._wrong_class_of(e) for e in batch.examples])
            shuffled = other_classes(batch.examples, target, self.classes, self.seed)
        return Reading(
            self.kind,
            batch.size,
            example,
            position,
            target,
            wrong,
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
        if self.kind == "class":
            shuffled = other_classes(batch.examples, target, self.classes, self.seed)
        else:
            shuffled = self._shuffled(batch, reading.example, target)
        return replace(reading, target=target, shuffled=shuffled)

    def _tokens(self, batch: Batch) -> Reading:
        name = _ids_of(batch)
        tower = "decoder" if name != "input_ids" and "decoder" in batch.tokens else "language"
        places = next_tokens(batch, tower, name)
        ids, real = batch.tensors[name].cpu(), real_positions(batch, name)
        starts = batch.answer_starts or (-1,) * batch.size
        for row, (example, mine) in enumerate(zip(batch.examples, places, strict=True)):
            if example.answer is not None and starts[row] < 0:
                raise ReadingError(
                    f"Example {example.id!r}: the tokens of its answer must be found in what the "
                    "model reads, and are not. Leave the answer out, or write it into the text.",
                    example.id,
                )
            if not mine and name != "input_ids" and not self.known_targets:
                mine.append(int(real[row].nonzero()[-1]) + 1)  # what would come next
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
            shuffled = self._shuffled(batch, example, target)
        position = where - 1 if self._predicts else where
        wrong = torch.full_like(where, -1)
        return Reading(
            "tokens", batch.size, example, position, target, wrong, shuffled, self._features
        )

    def _shuffled(self, batch: Batch, example: Tensor, target: Tensor) -> Tensor:
        return other_words(batch.examples, example, target, self.classes, self.seed)

    def _is_causal(self) -> bool:
        towers = self.subject.towers
        name = "decoder" if "decoder" in towers else "language"
        return name in towers and all(site.causal for site in towers[name].sites.values())

    def _tells_words(self) -> bool:
        """Whether logits are over the words that are read, and not over classes of words."""
        config = getattr(self.subject.config, "text_config", None) or self.subject.config
        words = getattr(config, "vocab_size", None)
        return not isinstance(words, int) or self.classes >= words

    def _standing_for(self, batch: Batch) -> Tensor:
        """Long ``[example]``: the position whose vector is the example's, -1 for the mean of all.

        Of text the last real one where positions see only what is before them, else the first
        real one (CLS); of images CLS, and the mean where there is none.
        """
        name = _ids_of(batch)
        if not name:
            tokens = batch.tokens.towers.get(IMAGE_TOWER)
            told = tokens is not None and bool(tokens.has_role("cls").any())
            return torch.full((batch.size,), 0 if told else -1)
        real = real_positions(batch, name).long()
        if not self._causal:
            return real.argmax(-1)
        return real.shape[1] - 1 - real.flip(-1).argmax(-1)

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
        return self._class_index(example, field, label)

    def _wrong_class_of(self, example: Example) -> int:
        """The class that the target is to be told from, -1 for all others."""
        if example.wrong is None or self.label not in ("", "label"):
            return -1
        return self._class_index(example, "wrong", example.wrong)

    def _class_index(self, example: Example, field: str, label: int | str) -> int:
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


def _ids_of(batch: Batch) -> str:
    """The tensor of the words that the model goes on with; empty where it reads none."""
    return next((n for n in ("decoder_input_ids", "input_ids") if n in batch.tensors), "")
