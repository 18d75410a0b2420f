"""The exemplars of a model on a data set: four tables, to be read without the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atomic_file import written_atomically
from analysis.run_files import RunError, read_json, read_table

TABLES = ("events", "pairs", "components", "component_events")
_ABOUT = "exemplars.json"
_AGAIN = "Collect them again: run `headscope atlas` on the model, into another folder."


@dataclass(frozen=True)
class Exemplars:
    """What each head does over a data set. Every table has the columns ``tower layer head``.

    An event is a query and the key outside sinks that it reads most. Its columns: ``example``; for
    query and key each (``query_...``, ``key_...``) ``sequence`` (which of the example's sequences
    in the tower), ``position`` (padding not counted), ``role``, ``token``, ``before`` and ``after``
    (text around it), ``image``, ``tile``, ``row``, ``column`` (-1 where there is none), ``left top
    right bottom`` (pixels of the original image, NaN where there are none); ``weight`` (0 to 1),
    ``share`` (of what the query reads outside sinks), ``contribution`` (``p |v W_O|``, in units of
    the residual stream; NaN where the output matrix is not known) and ``contribution_share`` (of
    the sum over all keys, sinks included).

    Attributes:
        events: events by ``weight`` and by ``contribution`` (column ``by``; the key is the one that
            is largest by it). ``kind`` ``strongest``: ``rank`` 1 is the largest. ``kind``
            ``decile``: drawn evenly from the queries of the whole data, ``decile`` 1 (weakest
            tenth) to 10; ``low`` and ``high`` are the decile's smallest and largest value and
            ``drawn`` the number of queries in the sample.
        pairs: ``query`` and ``key`` (token, or role in angle brackets; ``<self>`` is the query's
            own position; patches of one image have ``row_offset`` and ``column_offset``),
            ``sink`` (the key is BOS, CLS, a register or the first), ``mass`` (weight that was
            counted), ``error`` (how much more it may be), ``chance`` (the same under even weights),
            ``lift`` (mass / chance), ``queries`` (that could read such a key), ``share`` (of all
            weight looked at). Where a table overflowed, all are counted since the pair entered.
        components: principal components of z: ``component`` (0 is the largest), ``explained``
            (share of the variance), ``deviation`` (its root, in units of z), ``effective`` (of the
            head: how many equal components would spread as much), ``queries``.
        component_events: events from the even sample at both ends of a component: ``component``,
            ``sign`` (1 or -1), ``rank``, ``projection`` (in deviations from the mean).
        reasons: (tower, what) -> why there is none.
        how: the options.
    """

    events: pd.DataFrame
    pairs: pd.DataFrame
    components: pd.DataFrame
    component_events: pd.DataFrame
    reasons: dict[tuple[str, str], str]
    how: ExemplarOptions

    def save(self, folder: Path) -> None:
        """Write ``events.parquet`` and so on, and ``exemplars.json``, into a folder."""
        for name in TABLES:
            with written_atomically(folder / f"{name}.parquet") as path:
                getattr(self, name).to_parquet(path, index=False)
        reasons = [[*key, why] for key, why in self.reasons.items()]
        about = {"how": asdict(self.how), "reasons": reasons}
        with written_atomically(folder / _ABOUT) as path:
            path.write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Exemplars:
        """What `save` wrote.

        Raises:
            RunError: a file is not there or cannot be read.
        """
        how, reasons = _read_about(folder)
        frames = {name: read_table(folder / f"{name}.parquet", _AGAIN) for name in TABLES}
        return cls(**frames, reasons=reasons, how=how)


def read_reasons(folder: Path) -> dict[tuple[str, str], str]:
    """``(tower, what)`` -> why there is none, of the exemplars in a folder; none without any.

    Raises:
        RunError: the file that says so cannot be read.
    """
    return _read_about(folder)[1] if (folder / _ABOUT).is_file() else {}


def _read_about(folder: Path) -> tuple[ExemplarOptions, dict[tuple[str, str], str]]:
    about = read_json(folder / _ABOUT, _AGAIN)
    try:
        reasons = {(tower, what): why for tower, what, why in about["reasons"]}
        return ExemplarOptions(**about["how"]), reasons
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / _ABOUT} does not tell of exemplars ({error}). {_AGAIN}"
        ) from error
