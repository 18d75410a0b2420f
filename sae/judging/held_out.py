"""Which examples a coder is trained on and which it is judged on."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from probes.inputs import Example

SHARE = 0.1


def is_held_out(example_id: str, share: float = SHARE, seed: int = 0) -> bool:
    """Whether an example belongs to the part that is judged: a function of the arguments alone.

    So an example is on the same side in whatever data and order it comes, and with a larger share
    all that was held out before still is.

    >>> [is_held_out(f"scene-{i}", share=0.3) for i in range(6)]
    [True, False, False, True, False, False]
    """
    text = f"{seed}\0{example_id}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(blake2b(text, digest_size=8, person=b"held out").digest(), "little")
    return drawn < share * 2**64


def split_examples(
    examples: Iterable[Example], share: float = SHARE, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and examples to judge on, by a hash of their ids, in order.

    Examples that share an id stay together. Long texts must be split before they are cut into
    windows, so that no text is on both sides.

    Args:
        share: about how much is judged, between 0 and 1.

    Raises:
        ValueError: another share, or too few examples for both parts.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be between 0 and 1, got {share}. Take 0.1.")
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[is_held_out(example.id, share, seed)].append(example)
    if not parts[0] or not parts[1]:
        raise ValueError(
            f"There must be examples to train on and to judge on, got {len(parts[0])} and "
            f"{len(parts[1])}. Give more examples, or another `share` than {share}."
        )
    return parts
