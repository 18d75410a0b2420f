"""What a model writes before and after edits, with what it makes up marked: ``hs.generate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.hallucination.chair import judge
from headscope.evaluating.conditions import conditions_of, refuse_inapplicable, under
from headscope.plan import AskedWrongly
from headscope.word_divergence import WordDivergence, word_divergence
from probes.inputs import InputError
from probes.prompts import DESCRIBE

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.hallucination.chair import Judged
    from analysis.hallucination.vocabulary import Mention, Vocabulary
    from headscope.evaluating.conditions import Edits
    from probes.inputs import Batch
    from probes.subject import Subject

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Version:
    """What the model wrote under one edit.

    Attributes:
        edit: its name; ``baseline`` without one.
        judged: the objects it names and those of them that are not there; None without a truth.
        touched: (example, query, head) rows that the edit changed; None for the baseline.
        words: T-VHD of each word, as the plain model reads the text; empty without an image.
    """

    edit: str
    text: str
    judged: Judged | None = None
    touched: int | None = None
    words: tuple[WordDivergence, ...] = ()

    @property
    def hallucinated(self) -> tuple[Mention, ...]:
        """Objects it names that are not there, with their places in `text`."""
        return self.judged.hallucinated if self.judged is not None else ()

    @property
    def marked(self) -> str:
        """The text with brackets around what is not there."""
        return "".join(f"[{piece}]" if wrong else piece for piece, wrong in self.pieces)

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The text in parts, each with whether it names something that is not there."""
        found, place = [], 0
        for mention in self.hallucinated:
            found.append((self.text[place : mention.start], False))
            found.append((self.text[mention.start : mention.end], True))
            place = mention.end
        return [part for part in (*found, (self.text[place:], False)) if part[0]]


@dataclass(frozen=True)
class Versions:
    """What the model wrote, first without and then with each edit.

    Attributes:
        notes: what could not be measured, and why.
    """

    prompt: str
    versions: tuple[Version, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def __getitem__(self, edit: str) -> Version:
        return {version.edit: version for version in self.versions}[edit]

    def __repr__(self) -> str:
        return "\n".join(f"{version.edit}: {version.marked}" for version in self.versions)


def generate(
    subject: Subject,
    prompt: str | None = None,
    images: Any = None,
    edits: Edits = (),
    *,
    objects: Sequence[str] | None = None,
    vocabulary: Vocabulary | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **settings: Any,
) -> Versions:
    """What a model writes after a prompt, plainly and under each edit.

    Args:
        images: paths, PIL images or arrays; none for a language model.
        edits: edits, methods, or texts such as ``"vhr:alpha=2"``, in a row or by name; each is
            applied alone.
        objects: what is in the image. Objects of the vocabulary that are named and not among them
            are hallucinated.
        vocabulary: which words name objects; default: those of the bundled world, for its models.
        settings: of the generation, such as ``do_sample=True``.

    Raises:
        AskedWrongly: a model that writes nothing, an edit that does not apply to it, or objects
            without a vocabulary.
        ValueError: an image that cannot be read, or a prompt that does not fit.
    """
    if not subject.generates:
        raise AskedWrongly(f"{subject.name!r} writes no text. Choose a model that does.")
    if prompt is None and images is None:
        raise AskedWrongly("There is nothing to go on from. Give a prompt, an image, or both.")
    conditions = conditions_of(edits, 0, 0)
    words = _vocabulary(subject, objects, vocabulary)
    for condition in conditions[1:]:
        refuse_inapplicable(subject, condition)
    batch = subject.prepare(text=prompt, images=images)
    versions: list[Version] = []
    notes: dict[str, None] = {}
    for condition in conditions:
        with under(subject, condition) as report:
            made = subject.generate(batch, max_new_tokens, **settings)
        text = made.texts[0].strip()
        judged = None
        if objects is not None and words is not None:
            judged = judge(text, objects, words)
        touched = None if report is None else report.touched
        scores = _word_scores(subject, batch, made.ids, notes)
        versions.append(Version(condition.edit, text, judged, touched, scores))
    return Versions(prompt or DESCRIBE, tuple(versions), tuple(notes))


def _word_scores(
    subject: Subject, batch: Batch, ids: Tensor, notes: dict[str, None]
) -> tuple[WordDivergence, ...]:
    """Measured without the edit: methods that need the image cannot read the text without it."""
    if not batch.examples[0].pictures:
        return ()
    try:
        return tuple(word_divergence(subject, batch, ids))
    except InputError as error:
        notes[f"T-VHD was not measured: {error}"] = None
        return ()


def _vocabulary(
    subject: Subject, objects: Sequence[str] | None, given: Vocabulary | None
) -> Vocabulary | None:
    """Which words name objects, if it is known what is there.

    Raises:
        AskedWrongly: objects are given and no vocabulary, or one that does not know them.
    """
    if objects is None:
        return None
    words = given or _bundled_vocabulary(subject)
    if words is None:
        raise AskedWrongly(
            "What is not in the image can only be found among known objects. Give a table of "
            "them with `--synonyms` (`vocabulary=`) beside `--objects`."
        )
    unknown = [name for name in objects if words.kind_of(name) is None]
    if unknown:
        raise AskedWrongly(
            f"{unknown[0]!r} must be an object of the table of synonyms, it is not. Add it there, "
            "or correct `--objects`."
        )
    return words


def _bundled_vocabulary(subject: Subject) -> Vocabulary | None:
    from analysis.hallucination.vocabulary import Vocabulary
    from probes.bundled import bundled_models, bundled_sets

    model = bundled_models().get(subject.name)
    known = bundled_sets().get(model.default_set) if model is not None else None
    names = known.details.get("vocabulary") if known is not None else None
    return Vocabulary.of(names) if names else None
