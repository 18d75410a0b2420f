"""Everything that parity asks of one model, measured once and used by tests and documentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.inputs import Batch
from probes.layout import Layout
from probes.listening import listen
from probes.observe import observe
from probes.subject import Subject

from .reference import EagerMap, eager_maps, flat_tensors


@dataclass
class Heard:
    """One attention call as a listener saw it, copied."""

    path: str
    site: Any
    pattern: Tensor
    z: Tensor
    product: Tensor


@dataclass
class Parity:
    """What came out for one model.

    Attributes:
        pattern_error: largest difference to the eager patterns.
        product_error: largest ``|pattern @ value - z|``, in units of the largest ``|z|``.
        z_error: largest difference to the eager run's own z, in units of its largest entry.
        output_error: largest change of an output by the tap, in units of that output's largest
            entry; 0 means bit-identical.
        projection_error: largest difference between the sum of the heads' contributions plus
            bias, by the anatomy's matrices, and what the output projection of the eager run
            returned; in units of the largest entry.
        projected: attention layers for which that was compared.
        empty_rows: query rows that may read nothing, left out of ``pattern_error``.
        unmatched: eager maps that no call equals in place and order, calls without an eager map.
    """

    layout: Layout
    model_class: str
    implementation: str
    maps: int = 0
    pattern_error: float = 0.0
    product_error: float = 0.0
    z_error: float = 0.0
    output_error: float = 0.0
    projection_error: float = 0.0
    projected: int = 0
    sharpest: float = 1.0
    empty_rows: int = 0
    unmatched: list[str] = field(default_factory=list)


def subject_of(
    model: nn.Module, tensors: dict[str, Any], name: str, aliases: dict[str, str] | None = None
) -> tuple[Subject, Batch]:
    """A subject whose layout was observed on these very tensors, and the batch of them.

    Args:
        aliases: usual name of a tensor to the name in ``tensors`` and in the model's forward.
    """
    back = {own: usual for usual, own in (aliases or {}).items()}
    tensors = {back.get(own, own): tensor for own, tensor in tensors.items()}
    subject = Subject(model, name=name, aliases=aliases)
    batch = subject.prepare(**tensors)
    subject._layout = observe(
        model, lambda: seeded(subject, batch), examples=rows_of(tensors), inputs=list(tensors)
    )
    return subject, batch


def rows_of(tensors: dict[str, Any]) -> int:
    """Examples in a batch: rows of the ids where there are any, else of the first tensor."""
    main = tensors.get("input_ids", next(iter(tensors.values())))
    return main.shape[0]


def seeded(subject: Subject, batch: Batch) -> Any:
    """One forward; families that draw numbers draw the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return subject.forward(batch)


def heard(subject: Subject, batch: Batch) -> tuple[list[Heard], Any]:
    """All calls of one tapped forward, and the outputs."""
    calls: list[Heard] = []

    def keep(call: AttentionCall) -> None:
        product = call.weighted_values()
        calls.append(Heard(call.path, call.site, call.pattern(), call.z.float().clone(), product))

    with listen(subject, batch, keep):
        outputs = seeded(subject, batch)
    return calls, outputs


def measure(
    model: nn.Module,
    eager: nn.Module,
    tensors: dict[str, Any],
    name: str,
    aside: tuple[str, ...] = (),
    aliases: dict[str, str] | None = None,
) -> Parity:
    """Compare a tapped model with the eager run of a model of the same weights.

    Args:
        aside: eager maps that are no attention or are refused: parts of paths, or "7x14" for
            the number of queries and keys where one module makes both kinds.
    """
    subject, batch = subject_of(model, tensors, name, aliases)
    parity = Parity(
        subject.layout, type(model).__name__, subject.attention_implementation or "its own"
    )
    plain = seeded(subject, batch)
    if not subject.layout.towers:
        parity.unmatched = [m.path for m in _kept(eager_maps(eager, tensors)[0], aside)]
        return parity
    calls, tapped = heard(subject, batch)
    parity.output_error = largest_change(plain, tapped)
    paths = {found.path for found in subject.layout.anatomy.projections.values()}
    with outputs_of(eager, paths) as written:
        maps = _kept(eager_maps(eager, tensors)[0], aside)
    _compare_projections(parity, eager, calls, written)
    parity.maps = len(maps)
    for path in dict.fromkeys([m.path for m in maps] + [c.path for c in calls]):
        _compare(parity, [c for c in calls if c.path == path], [m for m in maps if m.path == path])
    return parity


@contextmanager
def outputs_of(model: nn.Module, paths: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What modules return while the block runs, call by call."""
    written: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            written[path].append(flat_tensors(output)[0].detach().clone())

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(path)) for path in paths if path
    ]
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()


def _compare_projections(
    parity: Parity, eager: nn.Module, calls: list[Heard], written: dict[str, list[Tensor]]
) -> None:
    anatomy = parity.layout.anatomy
    for site in parity.layout.sites:
        found = anatomy.projections.get(site.site)
        own = [call for call in calls if call.site == site.site]
        if found is None or len(own) != 1:
            continue
        matrix = anatomy.output_matrix(site.site)
        assert matrix is not None
        sharing = [s for s in parity.layout.sites if anatomy.projections.get(s.site) is not None]
        sharing = [s for s in sharing if anatomy.projections[s.site].path == found.path]
        if len(written[found.path]) != len(sharing):
            continue  # used without being called, or once for several pieces of a layer
        actual = written[found.path][sharing.index(site)].float()
        total = torch.einsum("bhqw,hwm->bqm", own[0].z, matrix)
        if actual.numel() != total.numel():
            continue  # pieces of one layer, joined before the map
        bias: Any = getattr(eager.get_submodule(found.path), "bias", None)
        total = total if bias is None else total + bias.detach().float()
        empty = (own[0].pattern.sum(-1) == 0).any(1).unsqueeze(-1).expand_as(total)
        choices = [(total, empty), (total.transpose(0, 1), empty.transpose(0, 1))]
        apart = min(  # some keep the sequence first
            float((one.reshape(actual.shape) - actual).abs()[~hide.reshape(actual.shape)].max())
            for one, hide in choices
        )
        size = float(actual.abs().max().clamp_min(1e-12))
        parity.projection_error = max(parity.projection_error, apart / size)
        parity.projected += 1


def largest_change(one: Any, other: Any) -> float:
    """Largest relative difference between two outputs; infinite if their shapes differ."""
    first, second = flat_tensors(one), flat_tensors(other)
    if [t.shape for t in first] != [t.shape for t in second] or not first:
        return float("inf")
    pairs = zip(first, second, strict=True)
    return max(
        0.0
        if torch.equal(a, b)
        else float((a - b).abs().nan_to_num(1e9).max() / a.abs().max().clamp_min(1e-12))
        for a, b in pairs
    )


def has_part(path: str, part: str) -> bool:
    """Whether a module path has these steps in it; the last one may go on.

    >>> has_part("cls_attn_blocks.0.attn", "blocks.0"), has_part("stages.blocks.0.x", "blocks.0")
    (False, True)
    """
    return f".{part}" in f".{path}"


def _kept(maps: list[EagerMap], aside: tuple[str, ...]) -> list[EagerMap]:
    def is_aside(one: EagerMap) -> bool:
        size = "x".join(map(str, one.pattern.shape[-2:]))
        return any(has_part(one.path, part) or part == size for part in aside)

    return [one for one in maps if not is_aside(one)]


def _compare(parity: Parity, calls: list[Heard], maps: list[EagerMap]) -> None:
    if not calls or not maps or len(maps) % len(calls):
        parity.unmatched.append(
            f"{(calls or maps)[0].path}: {len(maps)} eager maps, {len(calls)} calls"
        )
        return
    per_call = len(maps) // len(calls)
    for index, call in enumerate(calls):
        group = maps[index * per_call : (index + 1) * per_call]
        pattern = _arranged([m.pattern for m in group], call.pattern)
        if pattern is None:
            shapes = [tuple(m.pattern.shape) for m in group]
            parity.unmatched.append(f"{call.path}: {shapes} against {tuple(call.pattern.shape)}")
            continue
        empty = call.pattern.sum(-1) == 0
        parity.empty_rows += int(empty.sum())
        error = (pattern - call.pattern).abs().amax(-1).masked_fill(empty, 0.0)
        parity.pattern_error = max(parity.pattern_error, float(error.max()))
        filled = call.pattern.amax(-1)[~empty]
        if call.pattern.shape[-1] > 1:
            parity.sharpest = min(parity.sharpest, float(filled.mean()))
        difference = (call.product - call.z).abs().amax(-1).masked_fill(empty, 0.0)
        size = float(call.z.abs().max().clamp_min(1e-12))
        parity.product_error = max(parity.product_error, float(difference.max()) / size)
        if all(m.z is not None for m in group):
            z = _arranged([m.z for m in group if m.z is not None], call.z)
            if z is None:
                parity.unmatched.append(f"{call.path}: z has another shape")
                continue
            apart = (z - call.z).abs().amax(-1).masked_fill(empty, 0.0)
            parity.z_error = max(parity.z_error, float(apart.max()) / size)


def _arranged(parts: list[Tensor], like: Tensor) -> Tensor | None:
    """Eager tensors of one call in the shape of ours ``[batch head query any]``."""
    if len(parts) > 1:
        parts = [part.reshape(like.shape[0], -1, *part.shape[-2:]) for part in parts]
        return _arranged([torch.cat(parts, dim=1)], like)
    one = parts[0].float()
    if one.shape[-2:] != like.shape[-2:] or one.numel() != like.numel():
        return None
    choices = [one.reshape(like.shape)]
    if one.ndim == 5:  # windows after heads instead of before them
        choices.append(one.transpose(1, 2).reshape(like.shape))
    return min(choices, key=lambda choice: float((choice - like).abs().max()))
