"""Trained coders and what they are worth, on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.precision import plain
from headscope.cli.screen import print_json, print_lines, print_table, wrapped

if TYPE_CHECKING:
    from headscope.coding.evaluating import CoderEvaluation
    from sae.coders.coder import Coder
    from sae.judging.sweep import Sweep

_ROWS_OF = {"random": "random dictionary", "pca": "PCA", "untrained": "untrained"}
_REASONS_SHOWN = 3


def print_training(coders: Mapping[str, Coder], out: Path, as_json: bool) -> None:
    """What a finished training made."""
    last = _last_records(out)
    if as_json:
        print_json(
            {
                "out": str(out),
                "coders": {
                    name: {
                        "path": str(out / name),
                        "coder": coder.architecture,
                        "width": coder.width,
                        "latents": coder.latents,
                        "last": last.get(name),
                    }
                    for name, coder in coders.items()
                },
            }
        )
        return
    rows = []
    for name, coder in coders.items():
        record = last.get(name, {})
        rows.append(
            [
                name,
                coder.architecture,
                f"{coder.latents:,}",
                f"{record.get('tokens', 0):,}",
                _number(record.get("explained_variance")),
                _number(record.get("l0")),
                f"{record.get('dead', 0):,}",
                str(out / name),
            ]
        )
    columns = ["site", "coder", ">latents", ">tokens", ">explained", ">L0", ">dead", "folder"]
    print_table("Trained; explained variance and L0 of the last batch", columns, rows)
    print_lines("", f"Judge it: headscope sae evaluate {out}")


def print_evaluations(found: Sequence[CoderEvaluation], as_json: bool) -> None:
    """Coders beside baselines, each with its own table."""
    if as_json:
        records = [each.record() for each in found]
        print_json(records[0] if len(records) == 1 else records)
        return
    for number, each in enumerate(found):
        print_lines(*[""] * bool(number))
        _print_evaluation(each)


def print_sweep(found: Sweep, out: Path, as_json: bool) -> None:
    """Settings by L0, each beside its baselines."""
    if as_json:
        print_json({"out": str(out), "lines": found.table.to_dict(orient="records")})
        return
    losses = [c.removesuffix("_clean") for c in found.table.columns if c.endswith("_clean")]
    names = {
        line["name"]: ("* " if line["pareto"] else "  ") + str(line["name"])
        if line["kind"] == "trained"
        else f"    {_ROWS_OF[line['kind']]} of {line['setting']}"
        for line in found.table.to_dict(orient="records")
    }
    _print_lines_of(f"Sweep in {out}", found.table, losses, names)
    notes = ["* none other explains as much with fewer active latents."]
    notes += [f"Not measured: {name}: {why}" for name, why in found.not_measured.items()]
    print_lines("", *wrapped(notes))


def _print_evaluation(found: CoderEvaluation) -> None:
    data = found.data
    title = (
        f"{found.coder} at {found.site}, judged on {data['examples']:,} examples of {data['name']} "
        f"(baselines fitted on {data['fitted']:,} others)"
    )
    kinds = {"trained": "trained"} | _ROWS_OF
    names = {line.name: kinds[line.kind] for line in found.table.itertuples(index=False)}
    _print_lines_of(title, found.table, list(found.losses), names)
    print_lines("", *wrapped(_beside(found)))


def _print_lines_of(
    title: str, table: Any, losses: Sequence[str], names: Mapping[str, str]
) -> None:
    """Two tables of the same rows: what is reconstructed, and what the model loses by it."""
    lines = table.to_dict(orient="records")
    columns = ["", ">L0", ">explained variance", ">cosine", ">bias", ">dead", ">dense"]
    rows = [
        [
            names[line["name"]],
            f"{line['l0']:.1f}",
            f"{line['explained_variance']:.3f}" if line["explained_variance"] is not None else "–",
            _number(line["cosine"]),
            _number(line["reconstruction_bias"]),
            f"{100 * line['dead_share']:.0f} %",
            f"{100 * line['dense_share']:.0f} %",
        ]
        for line in lines
    ]
    print_table(title, columns, rows, wraps=False)
    if not losses:
        return
    main, others = losses[0], losses[1:]
    columns = ["", f">{_words(main)}", ">recovered of z = 0", ">of mean z"]
    columns += [f">{_words(loss)} from intact" for loss in others]
    rows = [
        [
            names[line["name"]],
            _number(line.get(f"{main}_spliced")),
            _interval(line, f"{main}_recovered"),
            _interval(line, f"{main}_recovered_mean"),
            *(_number(line.get(f"{loss}_spliced")) for loss in others),
        ]
        for line in lines
    ]
    print_lines("")
    print_table("With the reconstruction in the place of z", columns, rows, wraps=False)


def _words(loss: str) -> str:
    return loss.upper() if loss == "kl" else loss.replace("_", " ")


def _beside(found: CoderEvaluation) -> list[str]:
    """What the table does not say."""
    first = found.table.to_dict(orient="records")[0]
    lines = []
    for loss in found.losses[:1]:
        lines.append(
            f"{_words(loss).capitalize()}: {_number(first[f'{loss}_clean'])} intact, "
            f"{_number(first[f'{loss}_zero_ablation'])} with z = 0, "
            f"{_number(first[f'{loss}_mean_ablation'])} with its mean, over "
            f"{int(first[f'{loss}_examples'])} examples."
        )
        if first.get(f"{loss}_reason"):
            lines.append(f"Recovered is not measured: {first[f'{loss}_reason']}")
    by_head = found.judged.fidelity.explained_variance_by_head
    if len(by_head) > 1:
        each = ", ".join(f"H{head} {_number(value)}" for head, value in enumerate(by_head))
        lines.append(f"Explained variance by head: {each}.")
    latents = found.judged.latents
    if latents.duplicates is not None:
        lines.append(
            f"Decoder rows that nearly agree (cosine {latents.duplicates.threshold:g}): "
            f"{latents.duplicates.pairs} pairs."
        )
    lines += [f"Not measured: {name}: {why}" for name, why in found.not_measured.items()]
    left = [f"{name} ({why})" for name, why in found.skipped.items()]
    if left:
        more = f" and {len(left) - _REASONS_SHOWN} more" if len(left) > _REASONS_SHOWN else ""
        lines.append(f"Left out: {'; '.join(left[:_REASONS_SHOWN])}{more}.")
    return lines


def _last_records(out: Path) -> dict[str, dict[str, Any]]:
    from sae.training.metrics import METRICS, read_metrics

    if not (out / METRICS).is_file():
        return {}
    return {record["site"]: record for record in read_metrics(out)}


def _number(value: Any) -> str:
    return "–" if value is None or value != value else plain(float(value))


def _interval(line: Mapping[str, Any], name: str) -> str:
    value, low, high = (line.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or value != value:
        return "–"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
