"""A scan on the screen: the heads that differ most with interval and null, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.precision import plain, rounded
from headscope.cli.screen import print_lines, print_table, wrapped

if TYPE_CHECKING:
    from analysis.importance.scans.result import Scan
    from analysis.run_folder import Run

TOP = 10
_NAMED = 4
_LENGTHS_APART = 0.05
_SIDES = {
    "more": "higher on the behaviour",
    "less": "lower on the behaviour",
    "either": "farthest apart",
}


def is_difference(measure: str) -> bool:
    """Whether lines of the head table have a table of their own here."""
    return measure.startswith("difference_")


def scan_of(run: Run) -> Scan | None:
    """The scan in a run, if there is one and it is finished."""
    from headscope.scan_run import SECTION, read_scan

    section = run.sections.get(SECTION)
    return read_scan(section) if section is not None and section.finished else None


def print_scan(run: Run) -> None:
    """Print the scan of a run, if there is one."""
    found = scan_of(run)
    if found is None:
        return
    _print_heads(found)
    if len(found.confirmation):
        _print_confirmation(found)
    elif found.how.top:
        print_lines("", f"No head is {_SIDES[found.how.side]}, so none was taken away.")


def scan_record(found: Scan) -> dict[str, Any]:
    """A scan as JSON-able values."""
    frames = ("heads", "confirmation", "how")
    about = {name: value for name, value in vars(found).items() if name not in frames}
    return {
        **about,
        "how": vars(found.how),
        "discovered": found.discovered,
        "heads": [
            {"name": f"{line['tower']}.L{line['layer']}H{line['head']}", **line}
            for line in found.heads.to_dict("records")
        ],
        "excess": {name: found.excess(name).to_dict("records") for name in ("behaviour", "control")}
        if len(found.confirmation)
        else {},
    }


def _print_heads(found: Scan) -> None:
    from analysis.importance.scans.result import FALSE_DISCOVERIES

    lines = found.heads.dropna(subset="effect_size").head(TOP).to_dict("records")
    rows = [
        [
            f"{line['tower']}.L{line['layer']}H{line['head']}",
            rounded(line["effect_size"], line["ci_low"], line["ci_high"]),
            f"{plain(line['ci_low'])} to {plain(line['ci_high'])}",
            f"{plain(line['null_low'])} to {plain(line['null_high'])}",
            plain(line["p"], 2),
            plain(line["q"], 2),
            plain(line["mean_behaviour"]),
            plain(line["mean_control"]),
            "differs" if line["q"] <= FALSE_DISCOVERIES else "not told from chance",
        ]
        for line in lines
    ]
    columns = ["head", ">d", "95 % interval", "null", ">p", ">q", ">behaviour", ">control", ""]
    print_lines("")
    print_table(_title(found), columns, rows, wraps=False)
    print_lines(*wrapped([" ".join(_notes(found, len(rows)))]))


def _title(found: Scan) -> str:
    variant = f" ({found.variant})" if found.variant else ""
    one, other = found.examples
    return (
        f"{found.how.measure}{variant}: {one} examples of the behaviour, {other} of the control, "
        "d in standard deviations"
    )


def _notes(found: Scan, shown: int) -> list[str]:
    notes = [
        f"Largest {shown} of {found.compared} heads; {found.discovered} "
        f"{'differs' if found.discovered == 1 else 'differ'} at a false discovery rate of 5 % (q "
        "over all heads).",
        f"Null: the same with examples dealt to the sets at random ({found.splits:,} splits).",
    ]
    if found.null_largest is not None:
        notes.append(
            f"There the largest of all heads stays below {plain(found.null_largest, 2)} in 95 %."
        )
    known = [f"{tower} {value:.2f}" for tower, value in found.reliability.items()]
    if known:
        notes.append(
            f"Two halves of the examples rank the heads alike: {', '.join(known)} (Spearman)."
        )
    left = len(found.heads) - found.compared
    if left:
        notes.append(f"Not compared: {left} heads without a value on some example.")
    if found.lengths is not None:
        one, other = found.lengths
        if abs(one - other) > _LENGTHS_APART * max(one, other):
            notes.append(
                f"The sets differ in length too, {plain(one)} and {plain(other)} positions of "
                f"{found.towers[0]} on average: that alone can make a head differ."
            )
    return notes


def _print_confirmation(found: Scan) -> None:
    both = {name: found.excess(name).to_dict("records") for name in ("behaviour", "control")}
    rows = []
    for own, side in zip(both["behaviour"], both["control"], strict=True):
        for name, line in (("behaviour", own), ("control", side)):
            random = [
                *(plain(line[column], 2) for column in ("random_mean", "random_high")),
                str(line["randoms"]),
            ]
            rows.append(
                [
                    str(line["k"]) if name == "behaviour" else "",
                    name,
                    rounded(line["chosen"], line["ci_low"], line["ci_high"]),
                    f"{plain(line['ci_low'])} to {plain(line['ci_high'])}",
                    *(random if line["randoms"] else ["", "", "none"]),
                    plain(line["p"], 2) if line["randoms"] else "",
                    _named(line["heads"]) if name == "behaviour" else "",
                ]
            )
    title = (
        f"Without heads that are {_SIDES[found.how.side]}: what is lost, {found.effect} in "
        f"{found.effect_unit or 'shares'}"
    )
    columns = ["heads", "inputs", ">lost", "95 % interval"]
    columns += [">random", ">highest", ">sets", ">p", "which"]
    print_lines("")
    print_table(title, columns, rows)
    judged = int(both["behaviour"][0]["n"]), int(both["control"][0]["n"])
    print_lines(
        *wrapped(
            [
                "Heads were chosen on one half of the examples and judged on the other "
                f"({judged[0]} and {judged[1]}). Random: mean over other sets with as many heads "
                "in each layer; p: how often one of them costs as much, for each line by itself "
                "and no less than 1 / (1 + sets)."
            ]
        )
    )


def _named(heads: str) -> str:
    names = heads.split()
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return " ".join(names[:_NAMED]) + more
