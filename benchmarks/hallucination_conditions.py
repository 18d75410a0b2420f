"""Under what the describer is asked: published methods, prior heads taken away, and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BASELINE = "baseline"
ALPHA = 2.0
"""Of VHR, and of everything that is compared with it."""
MATCHED, SAME = "norm-matched random heads", "as many random heads"
METHODS = ("vhr", "var", "act", "paint", "gift")
SINK_METHODS = ("var", "act", "sink_removal_visual", "sink_removal_both", "vhr")


@dataclass(frozen=True)
class Row:
    """One line of a table: a method, or a control whose seeds are counted together.

    Attributes:
        edits: name of a condition -> edit; several for a control that is drawn several times.
        of: the method that this is a control of, if it is one.
        role: ``method``, ``matched`` (its norm-matched control), ``control`` or ``extra``
            (not counted among the comparisons that were planned).
    """

    name: str
    edits: Mapping[str, Any]
    role: str = "method"
    of: str = ""
    about: str = ""


def rows_on_plain(
    subject: Any, prior: Mapping[str, Any], means: Mapping[Any, Any], mass: np.ndarray, draws: int
) -> list[Row]:
    """What shapes-llava is asked under, the baseline left out.

    Args:
        prior: what `prior_heads.search` found.
        means: mean z by layer, for averaging heads away.
        mass: ``[layer head]`` weight of text on the image.
        draws: how often each random control is drawn.
    """
    from headscope import edits

    found: list[Row] = []
    for name, method in _published(METHODS).items():
        found += [_method(name, method), _matched(name, method, draws)]
        if name == "VHR":
            found += _vhr_controls(subject, mass, draws)
    heads = list(prior["prior"])
    if heads:
        name, zeroed = "prior heads zeroed", edits.zero(heads)
        found += [
            _method(name, zeroed, ", ".join(heads)),
            _matched(name, zeroed, draws),
            _several(name, SAME, _zeroed_instead(heads, mass.shape[1], draws)),
            Row("prior heads averaged", {"prior averaged": edits.mean(heads, means)}, "extra"),
        ]
    order = [step["head"] for step in prior["chosen"]]
    for count in range(1, len(order) + 1):
        if count != len(heads):
            name = f"the first {count} zeroed" if count > 1 else "the first zeroed"
            about = ", ".join(order[:count])
            found.append(Row(name, {name: edits.zero(order[:count])}, "extra", about=about))
            others = _zeroed_instead(order[:count], mass.shape[1], draws)
            found.append(_several(name, SAME, others, "extra"))
    return found


def rows_on_sinks(draws: int) -> list[Row]:
    """What shapes-llava-sinks is asked under, the baseline left out."""
    found: list[Row] = []
    for name, method in _published(SINK_METHODS).items():
        found += [_method(name, method), _matched(name, method, draws)]
    return found


def places(subject: Any, prior: Mapping[str, Any]) -> list[Row]:
    """Two methods in parts of the model: to look where they act, not to judge."""
    from probes.edits.apply import factory_of

    vhr, act = factory_of("vhr"), factory_of("act")
    tower = subject.towers["language"]
    first, rest = (0.0, 1 / tower.depth), (1 / tower.depth, 1.0)
    heads = [f"{tower.name}.L0H{head}" for head in range(tower.sites[0].heads)]
    made = {
        "VHR in the first layer alone": vhr(ALPHA, depth=(first,)),
        "VHR without the first layer": vhr(ALPHA, depth=((18 / 32, 1.0),)),
        "ACT in the first layer alone": act(depth=first),
        "ACT without the first layer": act(depth=rest),
    }
    chosen = list(prior["prior"])
    if chosen:
        others = tuple(head for head in heads if head not in chosen)
        made["ACT in the prior heads alone"] = act(heads=tuple(chosen))
        made["ACT in the other heads of the first layer"] = act(heads=others)
    return [Row(name, {name: edit}, "extra", about=edit.label) for name, edit in made.items()]


def strengths() -> list[Row]:
    """The methods at other strengths than the published ones: to look around, not to judge."""
    from probes.edits.parse import parse_edit

    texts = [
        *(f"vhr:alpha={alpha}" for alpha in (0.5, 1.25, 1.5, 3)),
        *(f"act:beta={beta}" for beta in (0, 0.7)),
        *(f"paint:alpha={alpha},beta={alpha}" for alpha in (0.1, 0.3, 1.5)),
        *(f"gift:alpha={alpha}" for alpha in (1, 2.5, 10)),
        *(f"modulation:gain={gain}" for gain in (0.5, 1.5, 2, 4)),
    ]
    return [Row(text, {text: parse_edit(text)}, "extra") for text in texts]


def _published(names: Sequence[str]) -> dict[str, Any]:
    """Methods as they were published, by the name that tables give them."""
    from probes.edits.apply import factory_of

    found = {}
    for name in names:
        if name.startswith("sink_removal"):
            which = name.rpartition("_")[2]
            label = "visual sinks removed" if which == "visual" else "all sinks removed"
            found[label] = factory_of("sink_removal")(which=which)
        else:
            found[name.upper()] = factory_of(name)()
    return found


def _method(name: str, made: Any, about: str = "") -> Row:
    return Row(name, {name: made}, "method", about=about or made.label)


def _matched(name: str, made: Any, draws: int) -> Row:
    from probes.edits.matched_random import matched_random

    return _several(name, MATCHED, [matched_random(made, seed) for seed in range(draws)], "matched")


def _several(of: str, what: str, edits: Sequence[Any], role: str = "control") -> Row:
    name = f"{of}: {what}"
    return Row(name, {f"{name} {seed}": made for seed, made in enumerate(edits)}, role, of)


def _vhr_controls(subject: Any, mass: np.ndarray, draws: int) -> list[Row]:
    """Other heads in the same layers, scaled by as much, as many of them where that says nothing
    else."""
    from headscope import edits
    from probes.edits.apply import factory_of

    vhr = factory_of("vhr")
    random = [vhr(ALPHA, choose="random", seed=seed) for seed in range(draws)]
    named = _most_on_image(subject, mass)
    return [
        _several("VHR", SAME, random),
        _several("VHR", "the lower half by VHD", [vhr(ALPHA, choose="below")]),
        _several("VHR", "every head", [vhr(ALPHA, choose="every")]),
        _several("VHR", "the upper half by text → image", [edits.scale(named, ALPHA)]),
    ]


def _most_on_image(subject: Any, mass: np.ndarray) -> list[str]:
    """In VHR's layers, the half of the heads whose text looks at the image most."""
    from analysis.vision.methods.vhr import DEPTH
    from probes.depth import sites_near

    half = mass.shape[1] // 2
    return [
        f"{site}H{head}"
        for site in sites_near(subject.towers["language"], DEPTH)
        for head in sorted(np.argsort(-mass[site.layer])[:half].tolist())
    ]


def _zeroed_instead(heads: Sequence[str], per_layer: int, draws: int) -> list[Any]:
    """Zeroing of as many other heads of the same layers, drawn without replacement."""
    from headscope import edits

    chosen: dict[str, list[int]] = {}
    for head in heads:
        layer, _, number = head.rpartition("H")
        chosen.setdefault(layer, []).append(int(number))
    found = []
    for seed in range(draws):
        dice = np.random.default_rng((7, seed))
        drawn = []
        for layer, taken in chosen.items():
            others = [head for head in range(per_layer) if head not in taken]
            count = min(len(taken), len(others))
            # One head: another one in each draw, so that draws do not repeat.
            start = seed % len(others)
            several = [others[start]] if count == 1 else dice.permutation(others)[:count].tolist()
            drawn += [f"{layer}H{head}" for head in several]
        found.append(edits.zero(drawn))
    return found
