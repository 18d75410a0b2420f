"""Runs that are stopped on the way, as by Ctrl-C or a machine that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headscope.scorer import Scorer


@contextmanager
def stopped_after(batches: int, error: BaseException | None = None) -> Iterator[None]:
    """Runs inside the block fail when one batch more than so many is scored.

    The block must let the error through (Ctrl-C by default), which ends here.
    """
    error = KeyboardInterrupt() if error is None else error
    real, calls = Scorer.score, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) > batches:
            raise error
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(type(error)) as caught:
        patched.setattr(Scorer, "score", stopped)
        yield
    assert caught.value is error
