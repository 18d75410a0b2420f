"""A coder, a training, a sweep or a store of head outputs on the screen, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.cli.coder_progress import COLUMNS, cells
from headscope.cli.coder_report import print_sweep
from headscope.cli.screen import print_json, print_lines, print_table, wrapped

if TYPE_CHECKING:
    from headscope.coding.described import (
        CoderFolder,
        StoreFolder,
        SweepFolder,
        TrainingFolderState,
    )


def print_coding(folder: Path, as_json: bool) -> None:
    """Print what a folder of `headscope sae` holds."""
    from headscope.coding.described import (
        CoderFolder,
        StoreFolder,
        TrainingFolderState,
        described,
    )

    found = described(folder)
    if isinstance(found, CoderFolder):
        _print_coder(found, as_json)
    elif isinstance(found, TrainingFolderState):
        _print_training(found, as_json)
    elif isinstance(found, StoreFolder):
        _print_store(found, as_json)
    else:
        _print_sweep(found, as_json)


def _print_coder(found: CoderFolder, as_json: bool) -> None:
    coder, about = found.coder, found.coder.about
    if as_json:
        print_json(
            {
                "coder": str(found.path),
                "format": found.format,
                "architecture": coder.architecture,
                "width": coder.width,
                "latents": coder.latents,
                "settings": coder.settings,
                "about": about,
            }
        )
        return
    where = about.get("site") or "a site that it does not name"
    heads = about.get("heads")
    wide = f"width {coder.width:,}" + (f" ({heads} head{'s' * (heads != 1)})" if heads else "")
    active = f", k {coder.settings['k']}" if "k" in coder.settings else ""
    lines = [f"coder  {found.path}  ({_TOOLS.get(found.format, found.format)})"]
    lines += [f"model  {_model(about.get('subject'))}", f"data   {_data(about.get('provenance'))}"]
    trained = (about.get("training") or {}).get("tokens")
    config = about.get("config") or {}
    if trained and config:
        lines.append(
            f"made   of {trained:,} tokens, {config['batch_size']:,} a step, seed {config['seed']}"
        )
    print_lines(
        f"{coder.architecture} coder of {where}: {coder.latents:,} latents, {wide}{active}",
        *lines,
        "",
        f"Judge it: headscope sae evaluate {found.path}{_to_be_named(about)}",
    )


def _print_training(found: TrainingFolderState, as_json: bool) -> None:
    if as_json:
        print_json(_training_record(found))
        return
    _print_progress(found, found.path)
    if found.state == "finished":
        print_lines("", f"Judge it: headscope sae evaluate {found.path}")


def _print_sweep(found: SweepFolder, as_json: bool) -> None:
    judged = found.judged
    if as_json:
        lines = None if judged is None else judged.table.to_dict(orient="records")
        print_json(
            {"sweep": str(found.path), "training": _training_record(found.training),
             "lines": lines}
        )  # fmt: skip
        return
    _print_progress(found.training, found.path)
    print_lines("")
    if judged is not None:
        print_sweep(judged, found.path, False)
    elif found.training.state == "finished":
        print_lines("Not judged yet. If it does not run, go on with --resume.")


def _print_store(found: StoreFolder, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "store": str(found.path),
                "finished": found.finished,
                "rows": dict(found.rows),
                "shards": found.shards,
                "plan": dict(found.plan),
            }
        )
        return
    state = "finished" if found.finished else "unfinished, go on with --resume"
    about = found.plan["about"]
    print_lines(
        f"Head outputs of {_model(about.get('subject'))}",
        f"store  {found.path}  ({state}: {found.shards:,} shard{'s' * (found.shards != 1)}, "
        f"{found.megabytes:,.0f} MB)",
        f"data   {_data(about)}",
        *(
            f"{site}  {count:,} positions, width {found.plan['widths'][site]:,}"
            for site, count in found.rows.items()
        ),
    )


def _print_progress(found: TrainingFolderState, folder: Path) -> None:
    """State and a row per coder, as while it trains."""
    data = found.plan["data"]
    how = {
        f"{config['coder']}, {config['latents']} latents, k {config['k']}"
        for config in found.configs.values()
    }
    many = len(found.sites)
    print_lines(
        f"Training of {many} coder{'s' if many > 1 else ''}"
        + (f" ({next(iter(how))})" if len(how) == 1 else "")
        + f" on {_model(data.get('subject'))}",
        f"folder {folder}  ({_state(found)})",
        f"data   {_data(data)}",
        "",
    )
    rows = []
    for name in found.sites:
        record = found.last.get(name)
        if record is None:
            rows.append([name, *["–"] * (len(COLUMNS) - 1)])
            continue
        shown = list(cells(record, found.first[name]))
        if found.state != "running":
            shown[-1] = ""  # nothing is left to wait for
        rows.append(shown)
    columns = [name if number == 0 else f">{name}" for number, name in enumerate(COLUMNS)]
    print_table("At the last logged step", columns, rows, wraps=False)
    if found.altered:
        print_lines(
            "",
            *wrapped([f"Changed since it was finished: {', '.join(found.altered)}. Trust these at "
                      "your own risk."]),
        )  # fmt: skip


def _state(found: TrainingFolderState) -> str:
    if found.state == "finished":
        return "finished"
    together = " of all coders together" if len(found.sites) > 1 else ""
    safe = f"{found.safe:,} steps{together} are safe" if found.safe else "no checkpoint yet"
    if found.state == "running":
        return f"being trained: {safe}"
    advice = "go on with --resume" if found.safe else "start it again"
    return f"unfinished: {safe}, {advice}"


def _training_record(found: TrainingFolderState) -> dict[str, Any]:
    return {
        "training": str(found.path),
        "state": found.state,
        "safe_steps": found.safe,
        "data": found.plan["data"],
        "coders": {
            name: {
                "site": site,
                "config": dict(found.configs[name]),
                "last": asdict(found.last[name]) if name in found.last else None,
            }
            for name, site in found.sites.items()
        },
        "altered": list(found.altered),
    }


_TOOLS = {"saelens": "SAELens"}


def _model(subject: Mapping[str, Any] | None) -> str:
    if not subject or not subject.get("name"):
        return "a model that is not named"
    dtype = f" in {subject['dtype']}" if subject.get("dtype") else ""
    revision = f", revision {subject['revision']}" if subject.get("revision") else ""
    return f"{subject['name']}{dtype}{revision}"


def _to_be_named(about: Mapping[str, Any]) -> str:
    """What a coder of another tool does not say, and its judge must be told."""
    model = "" if (about.get("subject") or {}).get("name") else " MODEL"
    return model + ("" if about.get("site") else " --site SITE")


def _data(provenance: Mapping[str, Any] | None) -> str:
    data: Mapping[str, Any] = (provenance or {}).get("data") or {}
    if not data:
        return "not known"
    parts = [str(data.get("name") or "examples without a name")]
    if data.get("examples"):
        parts.append(f"{data['examples']:,} examples to learn from")
    if data.get("held_out"):
        parts.append(f"{100 * data['held_out']:g} % held out")
    if data.get("context"):
        parts.append(f"cut at {data['context']:,} tokens")
    roles = (provenance or {}).get("roles")
    if roles:
        parts.append(f"only {', '.join(roles)} positions")
    return ", ".join(parts)
