"""Words of a user turned into a dtype, a device and a quantization, or one sentence why not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from probes.load_error import LoadError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def dtype_named(dtype: Any) -> torch.dtype | None:
    """The dtype, or ``None`` for the one of the checkpoint (``None`` or ``"auto"``).

    >>> dtype_named("bf16")
    torch.bfloat16
    """
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, str):
        dtype = _DTYPES.get(dtype.removeprefix("torch."), dtype)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise LoadError(
        f"`dtype` must be 'auto', 'float32', 'bfloat16', 'float16' or a floating torch dtype, "
        f"got {dtype!r}. Choose one of those."
    )


def device_named(device: Any) -> torch.device:
    """The device; without one the first GPU, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LoadError(
            f"`device` must be like 'cpu', 'cuda' or 'cuda:1', got {device!r}. Correct it."
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise LoadError(
            f"Device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} GPUs. "
            "Use another, or 'cpu'."
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise LoadError("Device 'mps' is not available here. Use 'cpu'.")
    return found


def quantization_config(quantization: str | None, dtype: torch.dtype | None) -> Any:
    """The transformers configuration for ``"4bit"`` or ``"8bit"``, or ``None``."""
    if quantization is None:
        return None
    if quantization not in ("4bit", "8bit"):
        raise LoadError(f"`quantization` must be '4bit' or '8bit', got {quantization!r}.")
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise LoadError(
            f"Quantization needs {' and '.join(missing)}. "
            f"Install with `pip install {' '.join(missing)}`."
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype or torch.bfloat16)
