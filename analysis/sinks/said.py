"""What the study of sinks found, in sentences and in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.precision import plain

if TYPE_CHECKING:
    import pandas as pd

TOKEN_COLUMNS = ("sink", "kind", "layers", "examples", "phi or norm", "weight received", "null")
"""Of the lines that `sink_lines` gives."""
_OFTEN = 0.5
"""Places that are a sink in at least this share of the examples are shown."""
_HEADS = 24
_PLACE = ["tower", "kind", "position", "role", "token", "row", "column"]


def sink_sentences(tables: Mapping[str, pd.DataFrame], heads: pd.DataFrame) -> list[str]:
    """Dimensions, heads, massive activations and artefacts, a sentence each.

    Args:
        tables: of the study; it says nothing of those that are not there.
        heads: lines of the head table.
    """
    lines = [_dimensions(tables["sink_dimensions"])] if "sink_dimensions" in tables else []
    if "sink_tokens" in tables:
        lines += _heads(heads)
    if "massive" in tables:
        lines += _largest(tables["massive"])
    if "patch_norms" in tables:
        lines += _artefacts(tables["patch_norms"])
    return lines


def sink_lines(tokens: pd.DataFrame) -> list[list[str]]:
    """Places that are a sink in half of the examples or more; cells as `TOKEN_COLUMNS` has them.

    The weight received is the mean over the heads, in the layer where it is largest.
    """
    if tokens.empty:
        return []
    often = tokens[tokens["share"] >= _OFTEN]
    rows = []
    for place, lines in often.groupby(_PLACE, sort=False):
        most = lines.loc[lines["received"].fillna(-1).idxmax()]
        read = most["received"] == most["received"]
        rows.append(
            [
                place_words(dict(zip(_PLACE, place, strict=True))),
                str(most["kind"]),
                _span(lines["layer"].tolist()),
                f"{100 * lines['share'].mean():.0f} %",
                _range(lines["score"]),
                f"{plain(most['received'])} in layer {most['layer']}" if read else "–",
                plain(most["received_null"]) if read else "–",
            ]
        )
    return rows


def _dimensions(ranking: pd.DataFrame) -> str:
    chosen = sorted(ranking.loc[ranking["chosen"], "dimension"])
    tower, width = ranking["tower"].iloc[0], ranking["width"].iloc[0]
    if not chosen:
        said = f"No dimension of {tower} is massive at a sink."
    else:
        named = ", ".join(str(dimension) for dimension in chosen)
        said = f"Sinks of {tower} are massive in dimensions {named} of {width}."
    backbone = ranking["backbone"].iloc[0]
    if not backbone:
        return said
    listed = sorted(ranking.loc[ranking["published"], "dimension"])
    same = "as published for" if chosen == listed else "not those published for"
    return f"{said} They are {same} {backbone}."


def _heads(frame: pd.DataFrame) -> list[str]:
    said = []
    mass = frame[frame["measure"] == "sink_mass"]
    for (tower, kind), lines in mass.groupby(["tower", "variant"], sort=False):
        sinks = "artefact patches" if kind == "artefact" else f"{kind} sinks"
        above = lines[lines["ci_low"] > lines["null_high"]].sort_values("value", ascending=False)
        if above.empty:
            said.append(f"No head of {tower} gives {sinks} more than uniform attention would.")
            continue
        names = [f"L{line.layer}H{line.head}" for line in above.itertuples()]
        shown = " ".join(names[:_HEADS]) + (" ..." if len(names) > _HEADS else "")
        said.append(
            f"{len(above)} of {len(lines)} heads of {tower} "
            f"{'gives' if len(above) == 1 else 'give'} {sinks} more than uniform "
            f"attention would ({_range(above['value'])} of a query's weight): {shown}"
        )
    return said


def _largest(massive: pd.DataFrame) -> list[str]:
    said = []
    for tower, lines in massive.groupby("tower", sort=False):
        line = lines.loc[lines["ratio"].idxmax()]
        said.append(
            f"Largest |x| of {tower}: {_range(lines['ratio'])} times the median (normal noise: "
            f"{plain(lines['ratio_null'].median())}), most in layer {line['layer']}: dimension "
            f"{line['dimension']} at {place_words(line)} ({plain(line['largest'])})."
        )
    return said


def _artefacts(norms: pd.DataFrame) -> list[str]:
    said = []
    for tower, lines in norms[norms["role"] == "image"].groupby("tower", sort=False):
        line = lines.iloc[-1]
        said.append(
            f"Patches of {tower} above median + 6 MAD in layer {line['layer']}: "
            f"{100 * line['artefacts']:.2g} % "
            f"(normal noise: {100 * line['artefacts_null']:.1g} %), "
            f"bimodality {plain(line['bimodality'])} (normal: {plain(line['bimodality_null'])})."
        )
    return said


def place_words(place: Any) -> str:
    """``<bos>, position 0``; ``patch row 0, column 5``."""
    if place["row"] >= 0:
        return f"patch row {place['row']}, column {place['column']}"
    if place["position"] < 0:
        return "an unknown position"
    return f"{place['token'] or place['role'] or 'token'}, position {place['position']}"


def _range(values: Any) -> str:
    low, high = plain(float(min(values))), plain(float(max(values)))
    return low if low == high else f"{low} to {high}"


def _span(layers: list[int]) -> str:
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(str(layer) for layer in layers)
