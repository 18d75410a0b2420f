"""A subject in plain values: towers, layers, heads, anatomy, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.layout import Layout, Tower
    from probes.subject import Subject

NOT_MEASURED = "not measured"


def describe(subject: Subject) -> dict[str, Any]:
    """JSON-able facts about a subject, as `headscope inspect` prints them."""
    layout = subject.layout
    return {
        "model": subject.name,
        "revision": subject.revision,
        "class": type(subject.model).__name__,
        "kind": subject.kind,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "device": str(subject.device),
        "attention": subject.attention_implementation,
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "towers": {name: _tower(tower) for name, tower in layout.towers.items()},
        "anatomy": _anatomy(layout),
        "refused": [
            {"path": refusal.path, "reason": refusal.reason} for refusal in layout.refusals
        ],
    }


def _tower(tower: Tower) -> dict[str, Any]:
    sites = list(tower.sites.values())
    return {
        "layers": tower.layers,
        "layers_without_attention": tower.empty_layers,
        "heads": tower.heads,
        "kv_heads": tower.kv_heads,
        "head_width": tower.head_width,
        "source": list(dict.fromkeys(site.source for site in sites)),
        "causal": all(site.causal for site in sites),
        "cross": any(site.cross for site in sites),
        "mismatch": max((site.mismatch for site in sites), default=0.0),
        "modules": tower.template,
    }


def _anatomy(layout: Layout) -> dict[str, str]:
    """For each part, what was verified on one forward, or "not measured" and why."""
    anatomy = layout.anatomy
    found: dict[str, str] = {}
    for name, tower in layout.towers.items():
        sites = [site.site for site in tower.sites.values()]
        residual = sum(site in anatomy.blocks and anatomy.blocks[site].residual for site in sites)
        projected = sum(site in anatomy.projections for site in sites)
        for part, count in (("residual stream", residual), ("output projection", projected)):
            reasons = [anatomy.missing.get(f"{site} {part}", "") for site in sites]
            found[f"{name} {part}"] = _counted(count, len(sites), reasons)
        norm = anatomy.final_norm.get(name)
        found[f"{name} final norm"] = norm or _missing(anatomy.missing.get(f"{name} final norm"))
    found["unembedding"] = anatomy.unembedding or _missing(anatomy.missing.get("unembedding"))
    return found


def _counted(count: int, total: int, reasons: list[str]) -> str:
    if count == total:
        return f"all {total} layers"
    why = next((reason for reason in reasons if reason), None)
    if count == 0:
        return _missing(why)
    return f"{count} of {total} layers; the rest {_missing(why)}"


def _missing(reason: str | None) -> str:
    return f"{NOT_MEASURED}: {reason}" if reason else NOT_MEASURED
