"""The sections of the page about taking heads away, written from the measured figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from measuring import quartiles
from page_parts import machine_lines, machine_name, spread, table
from results_file import earlier_lines

_READS = {"tokens": "loss of every token", "answer": "loss at the answer position"}
_NAMES = {"ours": "the study", "folded": "the study, heads folded into the batch"}

_LEAVE_ONE_OUT = """\
Zero ablation of each head, alone. The **naive loop** runs one whole forward per head, with a
pre-hook that zeroes what the output projection reads of the head. **Ours** is what the study
`importance` does (`probes/replay.py`): record one forward, then start again at the head's layer.
Same threads, same `logits_to_keep`, same metric; one process per line. A turn takes {taken} of the
heads of every layer away, a different one in each turn, the same for both, each head with one
contender and at once with the other; `s` are the seconds for all heads: the intact forward, and
layer by layer as many times what a head took. Medians over turns, quartiles in brackets.

Ours reuses two things: what came before the head's layer (**restart**), and, another exact idea,
the attention of the edited layer itself, since nothing before its output projection can have
changed. Where the answer alone is read there is a third: the last block computes, from its output
projection on, only the positions that are read."""

_BOUND = """\
`bound` is how many times faster than the naive loop the first idea can be at most: restarts at the
block's input without any cost of their own, out of the pieces of a forward that the same process
measured in the middle of every turn. H heads in each of L layers, E up to the first block, B a
block, U from the last one to the metric, for everybody one intact forward first:

    naive = H L (E + L B + U)        restart = H sum over l of ((L - l) B + U)

`all ideas` is the same bound when the edited block costs only P, what it does from its output
projection on (and the last block only its read positions there): what is missing is overhead."""


def importance_section(result: dict[str, Any]) -> str:
    """Everything that `importance.py` measured on one device."""
    settings = result["settings"]
    threads = settings["threads"]
    many = f"{threads} thread{'s' * (threads > 1)}, " if "gpu" not in result["machine"] else ""
    model = "a toy model" if settings["toy"] else "GPT-2 small in size, random weights"
    parts = [
        f"## Taking heads away: {machine_name(result['machine'])}\n",
        machine_lines(result["machine"]) + earlier_lines(result),
        f"{model[0].upper()}{model[1:]}; {settings['length']} tokens; {many}{settings['dtype']}.\n",
    ]
    by_part = {
        part: [entry for entry in result["entries"] if entry["part"] == part]
        for part in ("ablation", "memory", "atp", "peers")
    }
    if by_part["ablation"]:
        parts.append(_ablation(by_part["ablation"]))
    if by_part["memory"]:
        parts.append(_memory(by_part["memory"]))
    if by_part["atp"]:
        parts.append(_attribution(by_part["atp"]))
    parts += [_peer(entry) for entry in by_part["peers"]]
    return "\n".join(parts)


def _ablation(entries: list[dict[str, Any]]) -> str:
    done = [entry for entry in entries if "failed" not in entry]
    parts = ["### Leave one out over all heads, exact\n"]
    taken = " or ".join(str(number) for number in sorted({entry["taken"] for entry in done}))
    parts.append(_LEAVE_ONE_OUT.format(taken=taken or "some") + "\n")
    heading = ["", "naive s", "ours s", "times faster", "bound", "of it", "all ideas", "of it"]
    rows = []
    for entry in entries:
        if "failed" in entry:
            rows.append([_what(entry), f"not run: {entry['failed']}", *[""] * 6])
            continue
        rows += [_speed_row(entry, name) for name in _NAMES if name in entry["turns"][0]["seconds"]]
    parts += [table(heading, rows), _BOUND + "\n"]
    if not done:
        return "\n".join(parts)
    parts.append(
        "The pieces, milliseconds (`B`, `P`: mean of the layers), and the model's truth:\n"
    )
    heading = ["", "E", "B", "P", "U", "of it metric", "naive s by the model", "measured"]
    parts.append(table(heading, [_pieces_row(entry) for entry in done]))
    parts.append("\n".join(_equality(entry) for entry in done) + "\n")
    return "\n".join(parts)


def _speed_row(entry: dict[str, Any], name: str) -> list[str]:
    turns = entry["turns"]
    label = _what(entry) + (f", {_NAMES[name]}" if name != "ours" else "")
    naive = _median(turn["seconds"]["naive"] for turn in turns)
    ours = _median(turn["seconds"][name] for turn in turns)
    faster = [turn["seconds"]["naive"] / turn["seconds"][name] for turn in turns]
    cells = [label, f"{naive:.3g}", f"{ours:.3g}", spread(faster)]
    for bound in ("restart", "rows"):
        limits = [turn["modelled"]["naive"] / turn["modelled"][bound] for turn in turns]
        shares = [one / limit for one, limit in zip(faster, limits, strict=True)]
        cells += [f"{_median(limits):.2f}", f"{100 * _median(shares):.0f} %"]
    return cells


def _pieces_row(entry: dict[str, Any]) -> list[str]:
    pieces = [turn["pieces"] for turn in entry["turns"]]
    values = [
        [one["before"] for one in pieces],
        [sum(one["blocks"]) / len(one["blocks"]) for one in pieces],
        [sum(one["projected"]) / len(one["projected"]) for one in pieces],
        [one["after"] + one["metric"] for one in pieces],
        [one["metric"] for one in pieces],
    ]
    model = _median(turn["modelled"]["naive"] for turn in entry["turns"])
    measured = _median(turn["seconds"]["naive"] for turn in entry["turns"])
    cells = [f"{1000 * _median(some):.3g}" for some in values]
    return [_what(entry), *cells, f"{model:.3g}", f"{measured:.3g}"]


def _equality(entry: dict[str, Any]) -> str:
    equal = entry["ours_equal"]
    text = (
        f"- {_what(entry)}: effects of {equal['heads']} heads differ by at most "
        f"{equal['difference']:.1e} nats per read between the two; the largest effect is "
        f"{equal['largest']:.1e}."
    )
    if "folded_equal" in entry:
        text += f" Folded: {entry['folded_equal']['difference']:.1e}."
    if "whole" in entry:
        whole = entry["whole"]
        text += (
            f" The whole study, which also takes each whole layer away ({whole['runs']} runs): "
            f"{whole['seconds']:.3g} s, differences {whole['difference']:.1e}."
        )
    return text


def _memory(entries: list[dict[str, Any]]) -> str:
    by_setting: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for entry in entries:
        by_setting.setdefault((entry["rows"], entry["read"]), {})[entry["contender"]] = entry
    rows = []
    for found in by_setting.values():
        for name in ("naive", *_NAMES):
            if name not in found:
                continue
            label = f"{_what(found[name])}, {_NAMES.get(name, 'naive loop')}"
            if "failed" in found[name]:
                rows.append([label, f"not run: {found[name]['failed']}", ""])
                continue
            peak = _peak(found[name])
            naive = found.get("naive", {})
            ratio = f"{peak / _peak(naive):.2f}" if "peaks" in naive else ""
            rows.append([label, f"{peak:,.0f}", ratio])
    return (
        "### Memory of leave one out\n\n"
        "The peak of the whole process (on a GPU: of the device) over the intact forward and a "
        "head of the first and of the last layer, a process of its own each; median of the runs.\n"
        f"\n{table(['', 'peak MiB', 'x naive'], rows)}"
    )


def _attribution(entries: list[dict[str, Any]]) -> str:
    rows, columns, reasons = [], set(), set()
    for entry in entries:
        if "failed" in entry:
            rows.append([_what(entry), f"not run: {entry['failed']}", *[""] * 4])
            continue
        turns = entry["turns"]
        reasons |= set(entry["reasons"])
        for effect, found in entry["columns"].items():
            columns |= {f"`{measure}` ({variant})" for measure, variant in found}
            seconds = [_median(turn[name] for turn in turns) for name in ("plain", effect)]
            ratios = [
                spread(turn[effect] / turn[name] for turn in turns)
                for name in ("plain", "few_logits")
            ]
            cells = [f"{one:.3g}" for one in seconds]
            rows.append([_what(entry), effect.replace("_", " "), *cells, *ratios])
    heading = ["", "effect", "plain s", "`atp` s", "x plain", "x plain with only the read logits"]
    text = (
        "### Attribution patching of all heads, in forwards\n\n"
        "The study `atp` on one batch, with the fixes for queries and keys, against the model's "
        "plain forward in the same process. On cross entropy it also estimates curvature, by a "
        f"second forward and backward; `first order` is without.\n\n{table(heading, rows)}"
    )
    if columns:
        text += f"\nIt gave {', '.join(sorted(columns))}.\n"
    return text + "".join(f"\nNot measured: {why}\n" for why in sorted(reasons))


def _peer(entry: dict[str, Any]) -> str:
    title = "### The same effects as TransformerLens\n"
    if "failed" in entry:
        return f"{title}\nnot run: {entry['failed']}\n"
    names = {
        "study": "the study `importance` (takes each whole layer away, too)",
        "naive": "naive loop of whole forwards",
        "transformer_lens": "TransformerLens, `run_with_hooks` on `hook_z`",
    }
    rows = []
    for name, label in names.items():
        gap = f"{entry['differences'][name]:.1e}" if name in entry["differences"] else ""
        milliseconds = spread((1000 * turn[name] for turn in entry["turns"]), 1)
        rows.append([label, milliseconds, gap])
    rows_of, length = entry["tokens"]
    heading = ["", "milliseconds", "largest difference from TransformerLens, nats per token"]
    return (
        f"{title}\nZero ablation of all {entry['all_heads']} heads of `{entry['model']}`, loss of "
        f"every token, {rows_of} sequences of {length} tokens, the same ids, all in one process of "
        f"the peers' environment. The largest effect on a sequence is {entry['largest']:.2g} nats "
        "per token. TransformerLens runs eager attention, the others SDPA.\n\n"
        f"{table(heading, rows)}"
    )


def _what(entry: dict[str, Any]) -> str:
    return f"batch {entry['rows']}, {_READS[entry['read']]}"


def _peak(entry: dict[str, Any]) -> float:
    return _median(run["peak"] for run in entry["peaks"])


def _median(values: Iterable[float]) -> float:
    return quartiles(values)[1]
