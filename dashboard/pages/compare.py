"""Compare: two runs, towers or variants: maps with their difference, heads that moved, ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from analysis.compare import Comparison, compare
from analysis.precision import plain, rounded
from analysis.run_files import JOURNAL, RunError
from analysis.run_folder import Run
from dashboard.drawn import clicked, draw, escaped
from dashboard.empty import tell
from dashboard.figures import comparison_maps, rank_agreement
from dashboard.guarded import fragment
from dashboard.measure_words import said_of
from dashboard.opened_runs import opened
from dashboard.page import Page
from dashboard.run_state import picked_row
from dashboard.shelf import RUN, Item
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd

_MAPS, _MOVED, _RANKS = "compare-maps", "compare-moved", "compare-ranks"
_MOST_LISTED = 50
_QUICKLY_PAIRED = 64 * 2**20
"""Bytes of scores of single examples up to which examples are paired without being asked."""
_PAIRED, _SEPARATE = "by example", "from the tables"


@dataclass(frozen=True)
class _Sides:
    """What stands against what."""

    left: Item
    right: Item
    towers: tuple[str, str]
    pair: bool

    @property
    def same_run(self) -> bool:
        return self.left.name == self.right.name


def show(view: View) -> None:
    """Maps of both sides and their difference, what moved, and how alike the rankings are."""
    left = view.item
    assert left is not None
    items = [item for item in view.shelf.of(RUN) if not item.problem]
    right = _against(view, left, items)
    runs = view.run, opened(right)
    if not (len(runs[0].heads) and len(runs[1].heads)):
        tell("One of these runs has no head yet: no shard of it is done.")
        return
    sides = _Sides(left, right, _towers(view, *runs, left.name == right.name), _pair(view, *runs))
    heads = [run.heads.select(tower=tower) for run, tower in zip(runs, sides.towers, strict=True)]
    common = [name for name in heads[0].measures if name in heads[1].measures]
    if not common:
        tell(f"{sides.towers[0]} and {sides.towers[1]} have no measure in common.")
        return
    measure = view.choose("measure", "measure", common)
    there = [table.variants(measure) for table in heads]
    variant = view.choose("variant", "variant", there[0])
    other = variant
    if sides.same_run and sides.towers[0] == sides.towers[1]:
        others = [name for name in there[1] if name != variant]
        if not others:
            tell(
                f"{measure} has one variant in {sides.towers[0]}: nothing to compare in one run. "
                "Choose another run, tower or measure."
            )
            return
        other = view.choose("against_variant", "against variant", others)
    elif variant not in there[1]:
        other = view.choose("against_variant", "against variant", there[1])
    try:
        found = _compared(sides, runs, measure, (variant, other))
    except ValueError as error:
        tell(str(error))
        return
    names = _names(sides, variant, other)
    _maps_and_moved(view, found, names, runs[0].heads.layers[sides.towers[0]], measure)
    if not sides.same_run:
        _ranks(sides, runs)


def _against(view: View, left: Item, items: list[Item]) -> Item:
    by_name = {item.name: item for item in items}
    alike = [name for name, item in by_name.items() if item.model == left.model]
    default = next((name for name in [*alike, *by_name] if name != left.name), left.name)
    # No label for this run's own name: the address has what is shown.
    name = view.choose("against", "against run", list(by_name), default)
    return by_name[name]


def _towers(view: View, left: Run, right: Run, same_run: bool) -> tuple[str, str]:
    tower = view.choose("tower", "tower", left.heads.towers)
    there = right.heads.towers
    if tower in there and not same_run:
        return tower, tower
    return tower, view.choose("against_tower", "against tower", there, tower)


def _pair(view: View, *runs: Run) -> bool:
    files = [file for run in runs for file in (run.path / JOURNAL).glob("shard-*.safetensors")]
    if sum(file.stat().st_size for file in files) <= _QUICKLY_PAIRED:
        return True
    return view.choose("intervals", "intervals", [_SEPARATE, _PAIRED]) == _PAIRED


def _names(sides: _Sides, variant: str, other: str) -> tuple[str, str]:
    if not sides.same_run:
        return sides.left.name, sides.right.name
    if sides.towers[0] != sides.towers[1]:
        return sides.towers
    return variant or "plain", other or "plain"


def _compared(
    sides: _Sides, runs: tuple[Run, Run], measure: str | None, variants: tuple[str, str] | None
) -> Comparison:
    places = str(sides.left.path), str(sides.right.path)
    stamps = sides.left.stamp, sides.right.stamp
    return _kept(places, stamps, sides.towers, measure, variants, sides.pair, runs)


@st.cache_resource(max_entries=32, show_spinner=False)
def _kept(
    places: tuple[str, str],
    stamps: tuple[tuple[float, ...], ...],
    towers: tuple[str, str],
    measure: str | None,
    variants: tuple[str, str] | None,
    pair: bool,
    _runs: tuple[Run, Run],
) -> Comparison:
    return compare(*_runs, measure, towers, variants, paired=None if pair else False)


@fragment
def _maps_and_moved(
    view: View, found: Comparison, names: tuple[str, str], layers: int, measure: str
) -> None:
    figure = comparison_maps(found.heads, *names, layers)
    draw(figure, _MAPS, _caption(found, names, measure), found.heads, on_select=lambda: None)
    picked = [str(name) for name in clicked(_MAPS)]
    moved = found.most_moved()
    if not len(moved):
        tell("No head has an interval on both sides, so it cannot be told which ones moved.")
    else:
        st.markdown("### Heads that moved most")
        shown = moved.head(_MOST_LISTED)
        event = st.dataframe(
            _listed(shown, names),
            hide_index=True,
            height=min(36 + 35 * len(shown), 386),
            key=f"{_MOVED}-{measure}-{'-'.join(names)}",
            on_select="rerun",
            selection_mode=["single-row", "single-cell"],
        )
        row = picked_row(event)
        if row is not None and row < len(shown):
            line = shown.iloc[row]
            picked.append(f"{line['tower']}.L{line['layer']}H{line['head']}")
    if picked and "head" in view.pages:
        view.open("head", head=picked[-1])


def _listed(lines: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    import pandas as pd

    numbers = (lines[name] for name in ("difference", "ci_low", "ci_high"))
    ends = zip(lines["ci_low"], lines["ci_high"], strict=True)
    return pd.DataFrame(
        {
            "head": [f"L{y}H{x}" for y, x in zip(lines["layer"], lines["head"], strict=True)],
            names[0]: [plain(value) for value in lines["left"]],
            f"{names[1]} ": [plain(value) for value in lines["right"]],
            "difference": [rounded(*three) for three in zip(*numbers, strict=True)],
            "95 % interval": [f"{plain(low)} to {plain(high)}" for low, high in ends],
            "q": [plain(q, 2) if q >= 1e-6 else "< 1e-6" for q in lines["q"]],
            "moved": ["yes" if q <= 0.05 else "" for q in lines["q"]],
        }
    )


def _caption(found: Comparison, names: tuple[str, str], measure: str) -> str:
    n = found.heads[["n_left", "n_right"]].max()
    if found.unpaired:
        how = f"intervals put together as of separate samples ({found.unpaired})"
    else:
        how = "intervals by resampling each example on both sides at once"
    ranks = found.ranks.iloc[0]
    rho = rounded(ranks["rank_correlation"], ranks["ci_low"], ranks["ci_high"])
    return escaped(
        f"{said_of(measure)} Left and middle share a scale; right: {names[1]} minus {names[0]}, "
        "blue is higher, red is lower, framed heads moved: q of 0.05 and less, so that at most 5 "
        f"% of the framed ones are there by chance. n = {n.iloc[0]} and {n.iloc[1]}; {how}. Rank "
        f"correlation over heads {rho}. A click on a cell of the difference opens the head."
    )


@fragment
def _ranks(sides: _Sides, runs: tuple[Run, Run]) -> None:
    with st.spinner("Comparing every measure"):
        try:
            found = _compared(sides, runs, None, None)
        except (ValueError, RunError) as error:
            tell(str(error))
            return
    ranks = found.ranks
    if ranks["rank_correlation"].notna().any():
        draw(
            rank_agreement(ranks),
            _RANKS,
            "1: both sides order the heads alike. 0: the order on one side says nothing about the "
            "other. Intervals treat the heads as drawn (Bonett and Wright 2000); measures of few "
            "examples or of values all alike rank low by noise alone.",
            ranks,
        )
    if found.left_out:
        with st.expander(f"Not compared ({len(found.left_out)})"):
            st.dataframe(found.left_out, hide_index=True, key="compare-left-out")


PAGE = Page("compare", "Compare", "Two runs, towers or variants against each other.", show)
