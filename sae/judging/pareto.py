"""The table of a sweep: sparsity against what is kept, and which settings none other beats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import write_json, written_atomically
from sae.coders.coder import Coder
from sae.judging.judgement import Judgement
from sae.judging.loss_sums import LossRecovered

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
TABLE, ABOUT = "pareto.parquet", "pareto.json"
_FIDELITY = (
    "l0",
    "explained_variance",
    "cosine",
    "l2_ratio",
    "reconstruction_bias",
    "squared_error",
)


def pareto_table(
    coders: Mapping[str, Coder],
    judged: Mapping[str, Judgement],
    losses: Mapping[str, Mapping[str, LossRecovered]],
    kinds: Mapping[str, tuple[str, str]],
) -> pd.DataFrame:
    """A line per coder: trained ones first, then baselines, each by rising L0.

    Args:
        losses: by name and loss; empty where the model was not run.
        kinds: by name, ``trained`` or which baseline, and the setting that it belongs to.

    Returns:
        ``name kind setting coder latents rows l0 explained_variance cosine l2_ratio
        reconstruction_bias squared_error dead_share dense_share pareto``, and for each loss
        ``LOSS_recovered`` (against zero ablation), ``LOSS_recovered_mean`` and ``LOSS_increase``,
        each with ``_low`` and ``_high``, ``LOSS_clean``, ``LOSS_spliced``, ``LOSS_zero_ablation``,
        ``LOSS_mean_ablation``, ``LOSS_examples`` and ``LOSS_reason`` (why a share is not
        measured). NaN where not measured. ``pareto``: no other trained setting explains as much
        with fewer latents, or more with as few; false for baselines.
    """
    import pandas as pd

    names = sorted(coders, key=lambda name: (kinds[name][0] != "trained", judged[name].fidelity.l0))
    lines = []
    for name in names:
        found = judged[name]
        line: dict[str, Any] = {
            "name": name,
            "kind": kinds[name][0],
            "setting": kinds[name][1],
            "coder": coders[name].architecture,
            "latents": coders[name].latents,
            "rows": found.fidelity.rows,
        }
        line |= {field: getattr(found.fidelity, field) for field in _FIDELITY}
        line |= {
            "dead_share": found.latents.dead_share,
            "dense_share": found.latents.dense_share,
        }
        for loss, told in losses.get(name, {}).items():
            line |= _of_loss(loss, told)
        lines.append(line)
    table = pd.DataFrame(lines)
    numbers = [column for column in table if column not in _WORDS and "_reason" not in str(column)]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    table["pareto"] = pareto(table["l0"], table["explained_variance"], table["kind"] == "trained")
    return table


_WORDS = ("name", "kind", "setting", "coder")


def pareto(l0: pd.Series, value: pd.Series, among: pd.Series) -> list[bool]:
    """Which of those ``among`` no other of them beats: smaller ``l0``, larger ``value``.

    Equal ones do not beat each other; one without a value is never on the front.
    """
    points = list(zip(l0, value, among, strict=True))
    found = []
    for x, y, counts in points:
        beaten = any(other and a <= x and b >= y and (a < x or b > y) for a, b, other in points)
        found.append(bool(counts) and y == y and not beaten)
    return found


def write_pareto(
    folder: Path,
    table: pd.DataFrame,
    site: str,
    trained_on: Mapping[str, Any],
    judged_on: Mapping[str, Any],
    not_measured: Mapping[str, str],
) -> None:
    """Write ``pareto.parquet`` and, with where the numbers come from, ``pareto.json``.

    Raises:
        DiskFull: no room; what stood there before still does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with written_atomically(folder / TABLE) as temporary:
        table.to_parquet(temporary, index=False)
    write_json(
        folder / ABOUT,
        {
            "schema": SCHEMA,
            "kind": "sae sweep",
            "site": site,
            "trained_on": dict(trained_on),
            "judged_on": dict(judged_on),
            "not_measured": dict(not_measured),
            "lines": [
                {name: None if value != value else value for name, value in line.items()}
                for line in table.to_dict(orient="records")
            ],
        },
    )


def _of_loss(loss: str, told: LossRecovered) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for name, estimate in ((f"{loss}_recovered", told.of_zero),
                           (f"{loss}_recovered_mean", told.of_mean)):  # fmt: skip
        line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    line |= {
        f"{loss}_increase": told.increase.value,
        f"{loss}_increase_low": told.increase.low,
        f"{loss}_increase_high": told.increase.high,
        f"{loss}_examples": told.examples,
    }
    line |= {f"{loss}_{state}": getattr(told, state) for state in ("clean", "spliced")}
    line |= {f"{loss}_{state}_ablation": getattr(told, state) for state in ("zero", "mean")}
    line[f"{loss}_reason"] = told.of_zero.reason or told.of_mean.reason
    return line
