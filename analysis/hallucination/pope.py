"""POPE: what yes/no answers about objects are worth."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.hallucination.chair import Ratio

UNITS = {
    "accuracy": "share of answers",
    "precision": "share of yes answers",
    "recall": "share of present objects",
    "f1": "",
    "yes_ratio": "share of answers",
    "unclear": "share of answers",
}
_NO = {"No", "no", "not"}
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class PopeAnswer:
    """What an answer says.

    Attributes:
        yes: what it counts as; None where it counts as neither.
        clear: whether it holds a yes or a no, whatever it counts as.
    """

    yes: bool | None
    clear: bool


def parse_answer(text: str, strict: bool = False) -> PopeAnswer:
    """Whether an answer says yes.

    By POPE's own rule (``evaluate.py``): of the text before the first full stop, without commas and
    split at spaces, ``No``, ``no`` or ``not`` mean no, and everything else means yes, even nothing
    at all. ``clear`` tells how much of that is the rule's doing.

    Args:
        strict: the first of the words yes and no decides, in any case; without one the answer
            counts as neither, which is wrong whatever the truth.

    >>> parse_answer("I cannot say.")
    PopeAnswer(yes=True, clear=False)
    >>> parse_answer("No, there is not.", strict=True)
    PopeAnswer(yes=False, clear=True)
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    said = next((word for word in words if word in ("yes", "no")), None)
    negated = _NO.intersection(text.split(".")[0].replace(",", "").split(" "))
    if strict:
        return PopeAnswer(None if said is None else said == "yes", said is not None)
    return PopeAnswer(not negated, said is not None or bool(negated))


def pope_values(answers: Iterable[tuple[bool, PopeAnswer]]) -> dict[str, Ratio]:
    """What the answers about one image add to each metric, as numerator and denominator.

    Yes is the positive class. ``accuracy`` (TP + TN) / all; ``precision`` TP / (TP + FP);
    ``recall`` TP / (TP + FN); ``f1`` 2 TP / (2 TP + FP + FN), which is 2PR / (P + R);
    ``yes_ratio`` answers yes / all; ``unclear`` answers with neither yes nor no / all.

    Args:
        answers: the truth (whether the object is there), and the answer.
    """
    counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0, "yes": 0, "unclear": 0, "all": 0, "present": 0}
    for there, answer in answers:
        counts["all"] += 1
        counts["present"] += there
        counts["yes"] += answer.yes is True
        counts["unclear"] += not answer.clear
        if there:
            counts["tp" if answer.yes else "fn"] += 1
        elif answer.yes is not None:
            counts["fp" if answer.yes else "tn"] += 1
    tp, fp, fn, total = counts["tp"], counts["fp"], counts["fn"], counts["all"]
    return {
        "accuracy": (tp + counts["tn"], total),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "yes_ratio": (counts["yes"], total),
        "unclear": (counts["unclear"], total),
    }
