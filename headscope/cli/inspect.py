"""`headscope inspect`: towers, layers, heads, what can be captured and what cannot."""

from __future__ import annotations

from typing import Any

from headscope.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    load_subject,
)


def inspect(
    model: Model,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print a model's towers, layers and heads, what can be captured, and why not the rest."""
    from headscope.cli.screen import print_json, print_lines, print_table
    from headscope.inspection import describe

    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    found = describe(subject)
    if as_json:
        print_json(found)
        return
    print_lines(
        f"{found['model']} ({found['class']}, {found['kind']}, {found['dtype']} on "
        f"{found['device']}, {found['parameters']:,} parameters)",
        "",
    )
    if not found["towers"]:
        print_lines("No softmax attention was found that can be captured.", "")
    else:
        columns = ("tower", ">layers", ">heads", ">kv heads", ">head width", "pattern from")
        rows = [_tower_row(name, tower) for name, tower in found["towers"].items()]
        print_table("Towers", columns, rows)
        print_lines("")
    anatomy = [[name, verdict] for name, verdict in found["anatomy"].items()]
    print_table("Anatomy", ("part", "verified"), anatomy)
    if found["refused"]:
        rows = [[refusal["path"], refusal["reason"]] for refusal in found["refused"]]
        print_lines("")
        print_table("Cannot be captured", ("where", "why"), rows)


def _tower_row(name: str, tower: dict[str, Any]) -> list[str]:
    empty = tower["layers_without_attention"]
    layers = str(tower["layers"]) + (f" ({len(empty)} without attention)" if empty else "")
    numbers = (tower[key] for key in ("heads", "kv_heads", "head_width"))
    return [name, layers, *(_numbers(value) for value in numbers), ", ".join(tower["source"])]


def _numbers(value: Any) -> str:
    """One number, or the distinct ones in order where layers differ."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in dict.fromkeys(value))
    return str(value)
