"""Tensors by name in one safetensors file, with a JSON object beside them; whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.atomic_file import written_atomically

_ABOUT = "about"


class TensorFileError(ValueError):
    """A file of tensors is missing or damaged."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
) -> None:
    """Write tensors, on whatever device they are; a file of that name is replaced at once.

    Raises:
        DiskFull: no room; what stood there before still does.
    """
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = None if about is None else {_ABOUT: json.dumps(about, ensure_ascii=False)}
    with written_atomically(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(plain, temporary, metadata=text)
        # save_file's own files can be read by their owner alone, whatever the umask.
        temporary.chmod(mode)


def read_tensors(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file and the JSON object beside them, empty where there is none.

    Raises:
        TensorFileError: the file is missing or damaged.
    """
    with _opened(path, device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get(_ABOUT, "{}"))


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a file, the tensors left on the disk.

    Raises:
        TensorFileError: the file is missing or damaged.
    """
    with _opened(path, "cpu") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TensorFileError(f"{path} is missing.")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise TensorFileError(f"{path} is damaged ({error}).") from error
