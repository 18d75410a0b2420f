"""Writing a coder as SAELens reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.atomic_file import write_json
from sae.coders.coder import Coder
from sae.exchange.refusals import CoderFolderError, refuse_taken, require_finite, require_heads
from sae.exchange.saelens.density import log_density
from sae.exchange.saelens.layout import CONFIG, KINDS, NAMES, RECORD, SPARSITY, VERSION, WEIGHTS
from sae.exchange.tensor_file import write_tensors

_SITE = re.compile(r"^(?P<tower>[A-Za-z_][A-Za-z0-9_]*)\.L(?P<layer>\d+)$", re.ASCII)
_ARCHITECTURES = {ours: theirs for theirs, ours in KINDS.items()}


def write_saelens(
    coder: Coder,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    density: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write a coder so that ``SAE.load_from_disk`` of SAELens 6 reads it.

    What is written is `Coder.as_used`: kinds that choose over a batch become ``jumprelu`` with
    their threshold. Coders of a site take head outputs ``[... head head_width]`` there
    (``hook_z``); their hook is ``blocks.2.attn.hook_z`` for ``language.L2`` and
    ``vision.blocks.2.attn.hook_z`` in another tower, which SAELens reads but finds in no model of
    its own. ``metadata`` names tower, layer, heads and head width, and keeps what we know beyond
    that for `read_saelens`.

    Args:
        about: as of `save_coder`; None: what the coder says itself.
        density: ``[latent]``, 0 to 1: the share of rows at which each latent fires.
        metadata: entries of ``metadata`` (JSON) beside or in place of these, such as
            ``model_name``, ``module_path``, ``context_size`` or ``prepend_bos``.
        replace: whether a coder that stands in the folder may be replaced.

    Returns:
        The folder.

    Raises:
        CoderFolderError: the folder is taken, the kind has no counterpart in SAELens, or values
            are not finite.
        ValueError: ``density`` or ``metadata`` are not what they must be.
    """
    folder = Path(folder).expanduser()
    about = dict(coder.about if about is None else about)
    refuse_taken(folder, CONFIG, {CONFIG, WEIGHTS, SPARSITY}, replace)
    require_heads(about, coder.width, str(folder))
    used = coder.as_used()
    if used.architecture not in _ARCHITECTURES:
        raise CoderFolderError(
            f"SAELens has no coder of the kind {used.architecture}, only "
            f"{', '.join(_ARCHITECTURES)}. Let its `as_used` give one of these."
        )
    entries = _entries(used, _metadata(coder, about, metadata or {}))
    state = {name: value.detach().cpu() for name, value in used.state_dict().items()}
    require_finite(state, "The coder")
    tensors = {theirs: state[ours] for theirs, ours in NAMES[entries["architecture"]].items()}
    tensors["W_enc"] = tensors["W_enc"].T
    sparsity = None if density is None else log_density(density, coder.latents)
    folder.mkdir(parents=True, exist_ok=True)
    # Taken away first and written last: half a folder is no coder.
    for name in (CONFIG, SPARSITY):
        (folder / name).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    if sparsity is not None:
        write_tensors(folder / SPARSITY, {"sparsity": sparsity})
    write_json(folder / CONFIG, entries)
    return folder


def hook_name(site: str) -> str | None:
    """The hook of a site in TransformerLens' spelling, None for a name that is no site.

    >>> hook_name("language.L2"), hook_name("vision.L0"), hook_name("input")
    ('blocks.2.attn.hook_z', 'vision.blocks.0.attn.hook_z', None)
    """
    found = _SITE.match(site)
    if found is None:
        return None
    tower = "" if found["tower"] == "language" else f"{found['tower']}."
    return f"{tower}blocks.{int(found['layer'])}.attn.hook_z"


def _entries(used: Coder, metadata: dict[str, Any]) -> dict[str, Any]:
    entries = {
        "architecture": _ARCHITECTURES[used.architecture],
        "d_in": used.width,
        "d_sae": used.latents,
        "dtype": str(used.decoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": used.centred,
        "normalize_activations": "none",
        "reshape_activations": "none" if metadata.get("hook_name") is None else "hook_z",
        "metadata": metadata,
    }
    if entries["architecture"] == "topk":
        # Ours compares pre-activations as they are.
        entries |= {"k": used.settings["k"], "rescale_acts_by_decoder_norm": False}
    return entries


def _metadata(coder: Coder, about: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    site = str(about.get("site", ""))
    found: dict[str, Any] = {"hook_name": hook_name(site), "hook_head_index": None}
    if place := _SITE.match(site):
        found |= {"tower": place["tower"], "layer": int(place["layer"])}
    found |= {name: about[name] for name in ("heads", "head_width") if name in about}
    subject = about.get("subject")
    if isinstance(subject, Mapping) and "name" in subject:
        found["model_name"] = subject["name"]
    found |= given
    hook = found["hook_name"]
    if hook is not None and not (isinstance(hook, str) and hook.endswith("_z")):
        raise ValueError(
            f"`hook_name` must end in _z, or SAELens refuses to read it as head outputs, got "
            f"{hook!r}. Give such a name or None."
        )
    # Without a version from 6 on SAELens takes the file for one of another layout. It did not
    # train this coder.
    found |= {"sae_lens_version": VERSION, "sae_lens_training_version": None}
    record = {
        "architecture": coder.architecture,
        "settings": coder.settings,
        "about": dict(about),
    }
    return _as_json({**found, RECORD: record})


def _as_json(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`about` and `metadata` must be values of JSON: {error}. Use numbers, text and lists."
        ) from error
