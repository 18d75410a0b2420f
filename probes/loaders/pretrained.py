"""A transformers model in a folder or on the hub: class, weights, dtype, device, processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from probes.load_error import LoadError
from probes.loaders.placement import device_named, dtype_named, quantization_config
from probes.loaders.processors import find_processor
from probes.loading import LoadOptions
from probes.subject import Subject

_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
"""Tried in this order for a config that names no class of transformers."""
_LARGE_BYTES = 1_000_000_000
_HARMLESS = ("position_ids", "inv_freq", "masked_bias", "attn.bias")
"""Buffers that older checkpoints left out and the class computes."""


def load_pretrained(
    source: str, options: LoadOptions, *, name: str, kind: str | None = None
) -> Subject:
    """The model that `save_pretrained` wrote to ``source``, or that the hub keeps under this id."""
    from transformers import AutoConfig

    dtype = dtype_named(options.dtype)
    device = None if options.device_map is not None else device_named(options.device)
    known = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    config = AutoConfig.from_pretrained(source, **known)
    settings: dict[str, Any] = {**known, "config": config, "dtype": dtype or "auto"}
    quantized = quantization_config(options.quantization, dtype)
    if quantized is not None:
        settings["quantization_config"] = quantized
    if options.device_map is not None or quantized is not None:
        settings["device_map"] = options.device_map or {"": device}
    model = _load_model(source, config, settings, options.trust_remote_code, name)
    if "device_map" not in settings and device is not None:
        model = model.to(device)
    processor, problem = find_processor(source, options, name)
    return Subject(
        model.eval(),
        processor,
        name=name,
        revision=getattr(config, "_commit_hash", None) or options.revision,
        kind=kind,
        processor_problem=problem,
    )


def model_class(config: Any, trust_remote_code: bool = False) -> Any:
    """The class that a config asks for: the one it names, or else the first Auto class that fits.

    A class that comes with the model itself (`auto_map`) is used only under ``trust_remote_code``.
    """
    import transformers

    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code:
        for name in _AUTO_CLASSES:
            if name in remote:
                return getattr(transformers, name)
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModel


def _load_model(
    source: str, config: Any, settings: dict[str, Any], trust_remote_code: bool, name: str
) -> nn.Module:
    kind = model_class(config, trust_remote_code)
    if not kind.__name__.startswith("Auto"):
        settings = {key: value for key, value in settings.items() if key != "trust_remote_code"}
    with _quiet(source):
        model, report = kind.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    wrong = sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:
        raise LoadError(
            f"{len(wrong)} weights of {name!r} have another shape than its config says, the first "
            f"{wrong[0]!r}. Save the model and its config together."
        )
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(_HARMLESS))
    if missing:
        raise LoadError(
            f"{len(missing)} weights of {name!r} are not in its files, the first {missing[0]!r}: "
            f"{type(model).__name__} would run on random numbers. Save the complete model, or "
            "pass the module itself."
        )
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def _quiet(source: str) -> Iterator[None]:
    """No warnings of transformers, whose report we turn into a sentence; no bar for small files."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    weights = Path(source).glob("*.safetensors") if Path(source).is_dir() else ()
    local = sum(file.stat().st_size for file in weights)
    logging.set_verbosity_error()
    if bar and 0 < local < _LARGE_BYTES:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
