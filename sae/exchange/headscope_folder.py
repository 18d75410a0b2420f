"""Our own folder of one coder: `coder.safetensors` (parameters) and `coder.json` (all else)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.atomic_file import write_json
from sae.coders.coder import Coder
from sae.exchange.bundled_coder import coder_folder
from sae.exchange.refusals import CoderFolderError, refuse_taken, require_finite, require_heads
from sae.exchange.tensor_file import TensorFileError, read_shapes, read_tensors, write_tensors

SCHEMA = 1
FORMAT = "headscope coder"
DESCRIPTION, WEIGHTS = "coder.json", "coder.safetensors"
_FIELDS: dict[str, tuple[type, str]] = {
    "architecture": (str, "text"),
    "width": (int, "a whole number"),
    "latents": (int, "a whole number"),
    "centred": (bool, "true or false"),
    "settings": (dict, "an object"),
    "about": (dict, "an object"),
    "digest": (str, "text"),
}


def save_coder(
    coder: Coder,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write a coder; the description is written last, so that half a folder is no coder.

    Args:
        about: what it was made from, JSON values only: ``site``, ``heads``, ``head_width``,
            ``subject``, ``provenance``, ``config``. None: what the coder says itself
            (`Coder.about`).
        replace: whether a coder that stands in the folder may be replaced.

    Returns:
        The folder.

    Raises:
        CoderFolderError: the folder holds a coder or something else, the coder has values that
            are not finite, or ``heads`` x ``head_width`` is not its width.
    """
    folder = Path(folder).expanduser()
    about = dict(coder.about if about is None else about)
    refuse_taken(folder, DESCRIPTION, {DESCRIPTION, WEIGHTS}, replace)
    require_heads(about, coder.width, str(folder))
    tensors = {name: value.detach().cpu() for name, value in coder.state_dict().items()}
    require_finite(tensors, "The coder")
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    write_json(
        folder / DESCRIPTION,
        {
            "format": FORMAT,
            "schema": SCHEMA,
            "architecture": coder.architecture,
            "width": coder.width,
            "latents": coder.latents,
            "centred": coder.centred,
            "settings": coder.settings,
            "about": about,
            "digest": _digest(folder / WEIGHTS),
        },
    )
    return folder


def load_coder(folder: str | Path, device: str | torch.device = "cpu") -> Coder:
    """The coder in a folder of ours, ready to use: eval mode, no gradients, `about` filled.

    Args:
        folder: or the name of a bundled coder.

    Raises:
        CoderFolderError: there is none, it is of another format or schema, of a kind that is not
            known here, a file is damaged, or parameters are missing or of wrong shapes.
    """
    folder = coder_folder(folder)
    described = _description(folder)
    coder = _empty(described, folder)
    tensors = _tensors(folder / WEIGHTS, described["digest"])
    _check_shapes(coder, tensors, folder / WEIGHTS)
    require_finite(tensors, str(folder / WEIGHTS))
    coder.load_state_dict(tensors)
    coder.about = described["about"]
    return coder.to(device).eval().requires_grad_(False)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"has no {DESCRIPTION}"
        raise CoderFolderError(
            f"{folder} must be a folder of headscope's, it {what}. Check the path; a folder of "
            "another tool is read by `sae.exchange.formats.load_coder`."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CoderFolderError(f"{path} is damaged ({error}). Take another copy of it.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CoderFolderError(
            f'{path} must say "format": "{FORMAT}", it does not. It belongs to another program.'
        )
    if found.get("schema") != SCHEMA:
        raise CoderFolderError(
            f"{path} has schema {found.get('schema')}, this version of headscope reads {SCHEMA}. "
            "Install the version that wrote it."
        )
    for name, (kind, what) in _FIELDS.items():
        if name not in found:
            raise CoderFolderError(f"{path} lacks `{name}`. Take another copy of it.")
        if type(found[name]) is not kind:
            raise CoderFolderError(
                f"`{name}` in {path} must be {what}, got {found[name]!r}. Take another copy of it."
            )
    require_heads(found["about"], found["width"], str(path))
    return found


def _empty(described: Mapping[str, Any], folder: Path) -> Coder:
    from sae.coders.registry import coder_of

    # Sizes are compared with the file before anything of that size is made.
    width, latents = described["width"], described["latents"]
    shape = _read(read_shapes, folder / WEIGHTS).get("decoder")
    if shape != [latents, width]:
        raise CoderFolderError(
            f"`decoder` in {folder / WEIGHTS} must be [latents, width] = [{latents}, {width}] as "
            f"{DESCRIPTION} says, got {shape}. Take another copy of both files."
        )
    try:
        kind = coder_of(described["architecture"])
        return kind(width, latents, centred=described["centred"], **described["settings"])
    except (TypeError, ValueError) as error:
        raise CoderFolderError(f"{folder / DESCRIPTION} describes no coder: {error}") from error


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    if _digest(path) != digest:
        raise CoderFolderError(
            f"{path} is not the file that {DESCRIPTION} was written with. Take another copy of "
            "both."
        )
    return _read(read_tensors, path)[0]


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        return reader(path)
    except TensorFileError as error:
        raise CoderFolderError(f"{error} Take another copy of the folder.") from error


def _check_shapes(coder: Coder, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: list(value.shape) for name, value in coder.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise CoderFolderError(
                f"{path} lacks `{name}`, which a coder of kind {coder.architecture} needs. "
                "Take another copy of it."
            )
        if list(tensors[name].shape) != shape:
            raise CoderFolderError(
                f"`{name}` in {path} must be {shape}, got {list(tensors[name].shape)}. "
                "Take another copy of it."
            )
    unknown = sorted(tensors.keys() - wanted.keys())
    if unknown:
        raise CoderFolderError(
            f"{path} holds `{unknown[0]}`, which a coder of kind {coder.architecture} does not "
            "know. Take another copy of it."
        )


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CoderFolderError(f"{path} cannot be read ({error}).") from error
    return digest.hexdigest()
