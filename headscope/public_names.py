"""Which public names there are and where each lives, loaded only when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

PUBLIC = {
    "Batch": "probes.inputs:Batch",
    "Example": "probes.inputs:Example",
    "Head": "probes.heads:Head",
    "HeadTable": "analysis.head_table:HeadTable",
    "LoadError": "probes.load_error:LoadError",
    "Site": "probes.heads:Site",
    "Subject": "probes.subject:Subject",
    "atlas": "headscope.pattern_atlas:atlas",
    "capture": "probes.capture:capture",
    "compare": "analysis.compare.comparison:compare",
    "edit": "probes.edits.apply:edit",
    "edits": "probes.edits",
    "evaluate": "headscope.evaluation:evaluate",
    "evaluate_coder": "headscope.coding.evaluating:evaluate_coder",
    "figures": "dashboard.figures",
    "generate": "headscope.generation:generate",
    "index_features": "headscope.coding.feature_index:index_features",
    "kept_patches": "analysis.vision.pruning.kept_patches:kept_patches",
    "load": "probes.loading:load",
    "load_coder": "sae.exchange.formats:load_coder",
    "open_evaluation": "headscope.evaluating.result:open_evaluation",
    "open_run": "analysis.run_folder:open_run",
    "patch": "headscope.patching:patch",
    "patch_overlap": "analysis.vision.pruning.kept_patches:patch_overlap",
    "read_feature": "headscope.coding.feature_reading:read_feature",
    "read_head": "headscope.coding.head_reading:read_head",
    "scan": "headscope.scanning:scan",
    "score": "headscope.scoring:score",
    "sweep_coders": "headscope.coding.training:sweep_coders",
    "train_coders": "headscope.coding.training:train_coders",
}
"""Public name -> module, or module and the name in it."""


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports a public name at first use.

    `import headscope` itself loads neither torch nor pandas, so the command line answers at once.
    """

    def attribute(name: str) -> Any:
        if name not in PUBLIC:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, member = PUBLIC[name].partition(":")
        found = importlib.import_module(module)
        return getattr(found, member) if member else found

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *PUBLIC})

    return attribute, names
