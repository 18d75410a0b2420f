"""T-VHD of hallucinated against true object words, on the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from analysis.precision import plain
from headscope.cli.screen import print_lines, print_table, wrapped

if TYPE_CHECKING:
    from analysis.run_folder import Run

SECTION, TABLE, MEASURE = "vision", "token_groups", "t_vhd"


def print_vhd(run: Run) -> None:
    """Print what the study `vhd` of a run found about words, if it was asked for."""
    section = run.sections.get(SECTION)
    if section is None or not section.finished or "tokens" not in section.tables:
        return
    if TABLE not in section.tables:
        print_lines(
            "",
            *wrapped(
                [
                    "T-VHD of every token: table 'tokens' in "
                    f"{section.path}. There were no true and hallucinated object words to compare."
                ]
            ),
        )
        return
    table = section.table(TABLE)
    lines = table[table["measure"] == MEASURE].to_dict("records")
    columns = ["hallucinated object words against", ">T-VHD", ">theirs"]
    columns += [">difference, 95 % interval", ">lower in, 95 % interval", ">n"]
    print_lines("")
    print_table(
        "T-VHD: do heads turn to the image less where the model makes something up?",
        columns,
        [_row(line) for line in lines],
        wraps=False,
    )
    print_lines(
        *wrapped(
            [
                "T-VHD adds up the most divergent quarter of each layer's heads. Lower in: the "
                "share of pairs in which the hallucinated one is lower; 50 % is chance. n: "
                f"hallucinated, true. More in {section.path}: tokens, token_groups (other numbers "
                "of heads per layer)."
            ]
        )
    )


_AGAINST = {
    "mentions": "true ones",
    "mentions of one text": "true ones of the same text",
    "mentions of one kind": "true ones of the same kind",
    "mentions at one place": "true ones at the same place in the text",
    "texts": "whole texts with, against without",
}


def _row(line: dict[str, Any]) -> list[str]:
    return [
        _AGAINST.get(str(line["compared"])) or str(line["compared"]),
        plain(line["hallucinated"]),
        plain(line["true"]),
        _between(line, "difference", plain),
        _between(line, "lower", lambda share: f"{100 * share:.0f} %"),
        f"{line['n_hallucinated']}, {line['n_true']}",
    ]


def _between(line: dict[str, Any], name: str, said: Callable[[float], str]) -> str:
    low, high = line[f"{name}_low"], line[f"{name}_high"]
    value = said(line[name])
    return f"{value}, {said(low)} to {said(high)}" if low == low else value
