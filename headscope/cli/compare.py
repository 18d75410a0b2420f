"""`headscope compare`: what changed from one run to another, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.options import Json

if TYPE_CHECKING:
    from analysis.compare import Comparison

_HEADS_SHOWN = 12


def compare(
    left: Annotated[str, typer.Argument(metavar="A", help="A run's folder.")],
    right: Annotated[str, typer.Argument(metavar="B", help="Another; differences are B - A.")],
    measures: Annotated[
        str, typer.Option(metavar="NAMES", help="Separated by commas. Default: all that both have.")
    ] = "",
    towers: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="One, or A's and B's to be compared.")
    ] = "",
    variants: Annotated[
        str,
        typer.Option(metavar="NAME[;NAME]", help="One, or A's and B's; quoted, for the `;`."),
    ] = "",
    inputs: Annotated[
        str, typer.Option(metavar="NAME[;NAME]", help="Of measures that were taken on several.")
    ] = "",
    paired: Annotated[
        bool | None,
        typer.Option(
            "--paired/--separate",
            help="Resample examples in both at once, or not. Default: where both have the same.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: differences per head with intervals, ranks, heads that moved most."""
    from analysis.compare import compare as compared
    from headscope.cli.screen import print_json

    wanted = [name.strip() for name in measures.split(",") if name.strip()] or None
    found = compared(
        left,
        right,
        wanted,
        _choice(towers, ",", "--towers"),
        _choice(variants, ";", "--variants"),
        _choice(inputs, ";", "--inputs"),
        paired,
    )
    if as_json:
        print_json({"left": left, "right": right, **_record(found)})
    else:
        _print(found, left, right)


def _choice(text: str, sign: str, option: str) -> str | tuple[str, str] | None:
    from headscope.plan import AskedWrongly

    names = [name.strip() for name in text.split(sign)] if text else []
    if len(names) > 2:
        raise AskedWrongly(f"`{option}` must be one name or two, got {len(names)}: {text!r}.")
    if len(names) == 2:
        return names[0], names[1]
    return names[0] if names else None


def _record(found: Comparison) -> dict[str, Any]:
    return {
        "paired": not found.unpaired,
        "unpaired": found.unpaired,
        "ranks": found.ranks.to_dict("records"),
        "heads": found.heads.to_dict("records"),
        "left_out": found.left_out,
    }


def _print(found: Comparison, left: str, right: str) -> None:
    from headscope.cli.screen import print_lines, print_table, wrapped

    for tower, ranks in found.ranks.groupby("tower", sort=False):
        rows = [_rank_row(line) for line in ranks.to_dict("records")]
        columns = [
            "measure", ">heads", ">rank correlation", ">mean B - A", ">largest", "unit", ">moved",
        ]  # fmt: skip
        print_table(f"{tower}: {left} (A) against {right} (B)", columns, rows, wraps=False)
        print_lines("")
    moved = found.moved()
    rows = [_head_row(line) for line in moved.head(_HEADS_SHOWN).to_dict("records")]
    if rows:
        title = f"Heads that moved, the surest first ({len(rows)} of {len(moved)})"
        print_table(title, ["head", "measure", ">A", ">B", ">B - A", "unit", ">q"], rows, False)
    else:
        print_lines("No head moved beyond chance.")
    print_lines("", *wrapped(_legend(found)))


def _rank_row(line: dict[str, Any]) -> list[str]:
    from analysis.precision import plain

    correlation = f"{plain(line['rank_correlation'])}"
    if line["ci_low"] == line["ci_low"]:
        correlation += f" ({line['ci_low']:.2f} to {line['ci_high']:.2f})"
    return [
        _named(line),
        str(line["heads"]),
        correlation,
        plain(line["mean_difference"]),
        plain(line["largest_difference"]),
        line["unit"],
        f"{line['moved']} of {line['told']}" if line["told"] else "no interval",
    ]


def _head_row(line: dict[str, Any]) -> list[str]:
    from analysis.precision import plain, rounded

    return [
        f"{line['tower']}.L{line['layer']}H{line['head']}",
        _named(line),
        plain(line["left"]),
        plain(line["right"]),
        rounded(line["difference"], line["ci_low"], line["ci_high"]),
        line["unit"],
        f"{line['q']:.1g}" if line["q"] >= 1e-6 else "< 1e-6",
    ]


def _named(line: dict[str, Any]) -> str:
    return f"{line['measure']} {line['variant']}".rstrip()


def _legend(found: Comparison) -> list[str]:
    if found.unpaired:
        how = f"Intervals as of separate samples ({found.unpaired})."
    else:
        how = "Intervals by resampling each example in both runs at once."
    lines = [
        f"{how} They are of 95 %. Moved: q of 0.05 and less, so that of the heads that moved in a "
        "measure 5 % at most are expected to be there by chance."
    ]
    if found.left_out:
        one = found.left_out[0]
        rest = f", and {len(found.left_out) - 1} more, with `--json`" * (len(found.left_out) > 1)
        what = " ".join(part for part in (one["tower"], one["measure"], one["variant"]) if part)
        lines.append(f"Left out: {what}: {one['reason']}{rest}.")
    return lines
