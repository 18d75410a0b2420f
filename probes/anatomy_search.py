"""Find the parts around the attention layers in what one observed forward showed."""

from __future__ import annotations

from probes.anatomy import Anatomy, Block, OutputProjection
from probes.heads import Site
from probes.layout import Tower
from probes.lineage import Node
from probes.observation import Observation
from probes.observed import ModuleRun, ObservedCall


def find_anatomy(
    seen: Observation, towers: dict[str, Tower], members: dict[Site, list[ObservedCall]]
) -> Anatomy:
    """Projections, blocks, final norms and unembedding; a sentence for each that is not there."""
    projections: dict[Site, OutputProjection] = {}
    blocks: dict[Site, Block] = {}
    missing: dict[str, str] = {}
    runs: dict[str, list[ModuleRun]] = {}
    for run in seen.runs:
        runs.setdefault(run.path, []).append(run)
    for tower in towers.values():
        for site_layout in tower.sites.values():
            site, calls = site_layout.site, members[site_layout.site]
            if calls[0].projection is not None:
                projections[site] = calls[0].projection
            else:
                missing[f"{site} output projection"] = _sentence(calls[0].projection_obstacle)
            block = _block_path(tower, site_layout.path)
            if block and block in runs:
                blocks[site] = Block(
                    block, _adds_to_residual(_run_at(runs[block], site_layout.occurrence), calls)
                )
                if not blocks[site].residual:
                    missing[f"{site} residual stream"] = (
                        f"The input of {block} was not seen to be added to its attention's output."
                    )
    final_norm, unembedding = _after_last_block(seen, towers, blocks, missing)
    shapes = {
        layout.site: (layout.heads, layout.value_width)
        for tower in towers.values()
        for layout in tower.sites.values()
    }
    return Anatomy(projections, blocks, final_norm, unembedding, missing, shapes)


def _run_at(runs: list[ModuleRun], occurrence: int) -> ModuleRun:
    return runs[min(occurrence, len(runs) - 1)]


def _block_path(tower: Tower, path: str) -> str:
    parts, shape = path.split("."), tower.template.split(".")
    numbered = [i for i, part in enumerate(shape) if part.endswith("*")]
    if not numbered:
        return ""
    varying = [i for i in numbered if len({s.path.split(".")[i] for s in tower.sites.values()}) > 1]
    where = varying[-1] if varying else (numbered[0] or numbered[-1])
    return ".".join(parts[: where + 1])


def _adds_to_residual(run: ModuleRun, calls: list[ObservedCall]) -> bool:
    """Whether block input and projected heads meet in an addition, untouched but for scaling."""
    projected, entered = calls[0].projected, run.entered
    if projected is None or entered is None or run.left is None:
        return False
    seen: set[int] = set()
    queue: list[Node] = [run.left]
    while queue:
        here = queue.pop()
        if id(here) in seen or here is entered:
            continue
        seen.add(id(here))
        if (
            here.name in ("add", "__add__", "__iadd__", "add_", "__radd__")
            and len(here.parents) > 1
        ):
            reach = [_plain_ancestors(parent) for parent in here.parents[:2]]
            for one, other in (reach, reach[::-1]):
                if id(projected) in one and id(entered) in other:
                    return True
        queue.extend(here.parents)
    return False


def _plain_ancestors(node: Node) -> set[int]:
    seen: set[int] = set()
    queue = [node]
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.kind in ("shape", "join", "slice", "element", "norm"):
            queue.extend(here.parents)
    return seen


def _after_last_block(
    seen: Observation, towers: dict[str, Tower], blocks: dict[Site, Block], missing: dict[str, str]
) -> tuple[dict[str, str], str]:
    norms: dict[str, str] = {}
    unembedding = ""
    for tower in towers.values():
        last = [blocks[s.site].path for s in tower.sites.values() if s.site in blocks]
        crossing = any(site.cross for site in tower.sites.values())
        if not last or not tower.template.count("*") or crossing:
            continue
        stack = last[-1].rsplit(".", 1)[0] + "."
        ends = [
            r for r in seen.runs if r.path.startswith(stack) and "." not in r.path[len(stack) :]
        ]
        if not ends or ends[-1].left is None:
            continue
        after = _plain_shape(ends[-1].left)
        for run in seen.runs:
            is_norm = "norm" in type(run.module).__name__.lower()
            outside = not run.path.startswith(stack)
            if is_norm and outside and run.entered and _plain_shape(run.entered) is after:
                norms[tower.name] = run.path
        if tower.name not in norms:
            missing[f"{tower.name} final norm"] = (
                "No norm was seen to read the output of the last block."
            )
    output_node = seen.runs[0].left if seen.runs and seen.runs[0].path == "" else None
    if output_node is not None and norms:
        unembedding = _unembedding(seen, output_node, set(norms.values()))
    if not unembedding:
        missing["unembedding"] = "No linear map from a final norm to the output was seen."
    return norms, unembedding


def _plain_shape(node: Node) -> Node:
    while node.kind in ("shape", "slice") and node.parents:
        node = node.parents[0]
    return node


def _unembedding(seen: Observation, output: Node, norms: set[str]) -> str:
    outputs = {id(run.left): run.path for run in seen.runs if run.path in norms and run.left}
    for run in seen.runs:
        linear = hasattr(run.module, "weight") and getattr(run.module.weight, "ndim", 0) == 2
        if not linear or run.left is None or run.entered is None:
            continue
        reaches_output = id(run.left) in _plain_ancestors(output)
        if reaches_output and _plain_ancestors(run.entered) & set(outputs):
            return run.path
    return ""


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."
